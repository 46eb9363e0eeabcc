"""Requests made by hand, for the tests of the local store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from messages import add_scope, put
from stagetrace import semconv
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stagetrace.store.local import LocalReader

NOW = 1_790_000_000_000_000_000
MS = 1_000_000
HOUR = 3_600_000 * MS
EVER = Selection(-(2**63), 2**63 - 1)

LINES = ("app.py:41 in predict", "app.py:7 in load")  # of code


def span(
    number: int, *, trace: int = 1, start: int = NOW, ms: float = 10.0, parent: int = 0, **attributes: Any
) -> Span:
    """Return a span whose id is `number`; an entry span unless it has a parent. `__` in a name stands for a dot."""
    made = Span(trace_id=trace.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"), name=f"span {number}")
    made.kind = Span.SPAN_KIND_INTERNAL if parent else Span.SPAN_KIND_SERVER
    if parent:
        made.parent_span_id = parent.to_bytes(8, "big")
    made.start_time_unix_nano, made.end_time_unix_nano = start, min(start + round(ms * MS), 2**64 - 1)
    put(made, {key.replace("__", "."): value for key, value in attributes.items()})
    return made


def judged(number: int, *, breached: bool = True, **rest: Any) -> Span:
    """Return an entry span with a verdict."""
    verdict = {"sla__breached": breached, "sla__threshold_ms": 5.0, semconv.stage_total_ms("inference"): 9.5}
    return span(number, **{"trace": number, **rest, **verdict})


def request(spans: Iterable[Span], service: str = "api") -> bytes:
    """Return a serialized request of one service."""
    message = ExportTraceServiceRequest()
    add_scope(message, service).spans.extend(spans)
    return message.SerializeToString()


def ids(reader: LocalReader) -> list[int]:
    """Return the span ids of all spans, sorted; one that is there twice comes twice."""
    with reader.relations(EVER) as relations:
        rows = list(relations.select("SELECT span_id FROM spans ORDER BY 1")[1])
    return [int(span_id, 16) for (span_id,) in rows]
