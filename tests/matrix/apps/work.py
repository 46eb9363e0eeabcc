"""What the handlers of these applications do, with the OpenTelemetry that MATRIX_OTEL names and nothing else."""

import os
import time
from contextlib import nullcontext
from typing import Any

OTEL = os.environ["MATRIX_OTEL"]

if OTEL != "none":
    from opentelemetry import trace

if OTEL == "SDK":
    import opentelemetry.sdk.trace  # noqa: F401 -- as services do that set a provider by a condition

if OTEL == "own provider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def spanned() -> bytes:
    """Do something in a span of one's own, where there is OpenTelemetry."""
    within: Any = trace.get_tracer("app").start_as_current_span("work") if OTEL != "none" else nullcontext()
    with within as span:
        if span is not None:
            span.set_attribute("answer", 42)
            span.add_event("half", {"done": 0.5})
    return b"spanned"


def late() -> bytes:
    """Sleep for longer than the objective allows."""
    time.sleep(0.3)
    return b"late"


def fail() -> bytes:
    """Raise."""
    raise ValueError("on purpose")


def health() -> bytes:
    """Return at once."""
    return b"well"


WORK = {"/health": health, "/spanned": spanned, "/late": late, "/fail": fail}
