"""The author added OpenTelemetry's ASGI middleware like any other."""

from ml import app
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

app.add_middleware(OpenTelemetryMiddleware)

__all__ = ["app"]
