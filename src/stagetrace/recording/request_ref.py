"""A short text that names a request and its stage to the process that takes up the work for it."""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from stagetrace.guard import guarded
from stagetrace.recording.record import RequestRecord
from stagetrace.recording.remote_stages import hand_on, named


class RequestRef(NamedTuple):
    """A request that work is done for: its key, and the span that stands for it."""

    key: str
    context: SpanContext
    is_batch: bool = False  # it stands for several, whose span is that of their inference


def hand_on_reference(record: RequestRecord, reason: str) -> str | None:
    """Return a short text that names a request which is handed on now, for `read_reference` in any process.

    None where it has no entry span.
    """
    context = record.entry
    if context is None or not context.is_valid:
        return None
    return _text(hand_on(record, reason, is_server=True), record, context)


@guarded
def reference_to(record: RequestRecord) -> str | None:
    """Return a short text that names a request and, as its span, the stage that it is in, for `read_reference`.

    None where it has no entry span.
    """
    context = record.stage_context()
    return _text(named(record), record, context) if context is not None and context.is_valid else None


def _text(key: str, record: RequestRecord, context: SpanContext) -> str:
    kind = "batch" if record.is_batch else "request"
    flags = int(context.trace_flags)
    return f"{key} {kind} {context.trace_id:032x}-{context.span_id:016x}-{flags:02x} {context.trace_state.to_header()}"


@guarded
def read_reference(text: str) -> RequestRef:
    """Return the request that such a text names."""
    key, kind, ids, *state = text.split(" ", 3)
    trace_id, span_id, flags = (int(part, 16) for part in ids.split("-"))
    trace_state = TraceState.from_header(state) if any(state) else None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=trace_state)
    return RequestRef(key, context, kind == "batch")


RequestRecord.reference_to = staticmethod(lambda record: reference_to(record))  # noqa: PLW0108 -- looked up each time
