"""As inside_a_span, where the span's provider is not the one that the API knows."""

from ml import app
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider

span = TracerProvider().get_tracer("main").start_span("the whole program")
context.attach(trace.set_span_in_context(span))

__all__ = ["app"]
