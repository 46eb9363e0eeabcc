"""The author's whole program is inside a span of their own, the server with it."""

from opentelemetry import context, trace
from own_provider import app, provider

span = provider.get_tracer("main").start_span("the whole program")
context.attach(trace.set_span_in_context(span))

__all__ = ["app"]
