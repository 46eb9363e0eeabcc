"""The headers that the service's global response propagator adds to a response."""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from stagetrace.bridge.contexts import span_context


class _Append(Setter[list[tuple[str, str]]]):
    def set(self, carrier: list[tuple[str, str]], key: str, value: str) -> None:
        carrier.append((key, value))


_append = _Append()


def announced(span: Any) -> list[tuple[str, str]]:
    """Return the headers that the propagator, if there is one, writes for a span."""
    from opentelemetry.instrumentation.propagators import get_global_response_propagator

    propagator: Any = get_global_response_propagator()  # type: ignore[no-untyped-call]
    headers: list[tuple[str, str]] = []
    if propagator is not None:
        context = getattr(span, "context", None) or span.get_span_context()  # not the open stage's
        around = set_span_in_context(NonRecordingSpan(span_context(context)), Context())
        propagator.inject(headers, around, _append)
    return headers
