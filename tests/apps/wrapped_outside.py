"""The whole app stands inside OpenTelemetry's ASGI middleware."""

import ml
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

app = OpenTelemetryMiddleware(ml.app)
