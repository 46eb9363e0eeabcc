"""A tracer provider for instrumentations that nobody has asked for by name: its spans are children, never roots."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Tracer, TracerProvider


class ChildSpans(TracerProvider):
    """The process's tracer provider, but that a span without a parent is none."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> Tracer:
        """Return a tracer of the process's provider that starts children only."""
        return _Tracer(trace.get_tracer_provider().get_tracer(*args, **kwargs))


class _Tracer(Tracer):
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(self, name: str, context: Any = None, *args: Any, **kwargs: Any) -> Any:
        if trace.get_current_span(context) is INVALID_SPAN:
            return INVALID_SPAN
        return self._tracer.start_span(name, context, *args, **kwargs)

    def start_as_current_span(self, name: str, context: Any = None, *args: Any, **kwargs: Any) -> Any:
        if trace.get_current_span(context) is INVALID_SPAN:
            return trace.use_span(INVALID_SPAN)
        return self._tracer.start_as_current_span(name, context, *args, **kwargs)
