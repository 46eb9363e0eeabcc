"""The context of the service's OpenTelemetry, and what ours are in it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, TraceFlags, TraceState
from opentelemetry.trace.propagation import _SPAN_KEY

from stagetrace.tracing.propagation import PAIRS, SPAN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _direct() -> tuple[Callable[[Any], Any], Callable[[], Any]]:
    """Return OpenTelemetry's `attach` and `get_current`, without its two calls around those of a ContextVar.

    Where OTEL_PYTHON_CONTEXT names another runtime context, or a release keeps its own otherwise, its own functions.
    """
    otel_context.get_current()  # some releases load it here
    runtime = getattr(otel_context, "_RUNTIME_CONTEXT", None)
    variable = getattr(runtime, "_current_context", None)
    if type(runtime).__module__ == "opentelemetry.context.contextvars_context" and isinstance(variable, ContextVar):
        return variable.set, variable.get
    return otel_context.attach, otel_context.get_current


attach, get_current = _direct()


def span_context(given: Any) -> trace.SpanContext:
    """Return the identity of a span, ours or OpenTelemetry's, as OpenTelemetry's."""
    if isinstance(given, trace.SpanContext):
        return given
    trace_id, span_id, is_remote, flags, state, _ = given
    its_state = TraceState(list(state.items())) if state else None
    return trace.SpanContext(trace_id, span_id, is_remote, TraceFlags(flags), its_state)


def context_of(given: Mapping[str, Any] | None) -> Context:
    """Return a context, ours or OpenTelemetry's, as OpenTelemetry's."""
    if not given:
        return Context()
    if SPAN not in given and PAIRS not in given:
        return given if isinstance(given, Context) else Context(given)
    found = {key: value for key, value in given.items() if key not in (SPAN, PAIRS)}
    if SPAN in given:
        found[_SPAN_KEY] = NonRecordingSpan(span_context(given[SPAN]))
    made = Context(found)
    for name, value in given.get(PAIRS, {}).items():
        made = baggage.set_baggage(name, value, context=made)
    return made
