"""OpenTelemetry's middleware has a provider of its own, which exports nothing: as BentoML's, sampled by a rate of 0."""

import os
from typing import Any

os.environ["GLOBAL"] = "0"
from opentelemetry import metrics
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.propagators import TraceResponsePropagator, set_global_response_propagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from silent_provider import Started, app

rate = os.environ.get("RATE")
sampler = ALWAYS_ON if rate is None else ParentBased(TraceIdRatioBased(float(rate)))
provider = TracerProvider(sampler)
provider.add_span_processor(Started())
app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
set_global_response_propagator(TraceResponsePropagator())


@app.get("/counted")
def counted() -> list[str]:
    """Return how often each HTTP histogram was recorded, whoever did."""
    data: Any = reader.get_metrics_data()
    metrics_of = [scope.metrics for resource in data.resource_metrics for scope in resource.scope_metrics]
    points = [(metric.name, point) for each in metrics_of for metric in each for point in metric.data.data_points]
    return [f"{name} {point.count}" for name, point in points if "http" in name and hasattr(point, "count")]


__all__ = ["app"]
