"""OpenTelemetry's middleware has a provider of its own, which exports nothing: as BentoML's, sampled by a rate of 0."""

import os

os.environ["GLOBAL"] = "0"
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from silent_provider import app

rate = os.environ.get("RATE")
sampler = ALWAYS_ON if rate is None else ParentBased(TraceIdRatioBased(float(rate)))
app.add_middleware(OpenTelemetryMiddleware, tracer_provider=TracerProvider(sampler))

__all__ = ["app"]
