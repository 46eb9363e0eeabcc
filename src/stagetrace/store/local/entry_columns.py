"""Stored columns of an entry span to its record, without a detour over the whole span."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from stagetrace import semconv
from stagetrace.otlp.decode.columns import OTHER_MS, REST, TYPED
from stagetrace.store.base import SERVER, Entry, SpanRow
from stagetrace.store.entries import entry_of, missed
from stagetrace.store.rows import values

_TIMES: Final = ("start_unix_nano", "end_unix_nano", "threshold_ms", "overrun_ms")
# Columns that an entry has under the same name.
_SAME: Final = ("service", "name", *_TIMES, "objective", "severity", "cause", "evidence", "code", "model")
_TOTALS: Final = {TYPED[semconv.stage_total_ms(stage)].column: stage for stage in semconv.STAGES}
# What `of` reads; the rest only for stages that have no column.
COLUMNS: Final = ", ".join(
    (
        *("trace_id", "span_id", *_SAME, "route", "rpc_method", "missed", "breach_stage", *_TOTALS, OTHER_MS),
        f"CASE WHEN {OTHER_MS} IS NOT NULL THEN {REST} END AS {REST}",
    )
)


def has_totals(row: dict[str, Any]) -> bool:
    """Return whether a span carries its stage totals."""
    return row[OTHER_MS] is not None or any(row[column] is not None for column in _TOTALS)


def of(row: dict[str, Any], trace: Callable[[str], Iterable[SpanRow]]) -> Entry:
    """Return the record of one row; `trace` gives the spans of a trace, for an entry span without stage totals."""
    stages = {stage: row[column] for column, stage in _TOTALS.items() if row[column] is not None}
    if row[REST] or not stages:
        return _by_attributes(row, stages, trace)
    return Entry(
        trace_id=row["trace_id"].hex(),
        span_id=row["span_id"].hex(),
        route=row["rpc_method"] if row["route"] is None else row["route"],
        stage=row["breach_stage"],
        **{name: row[name] for name in _SAME},
        stages=stages,
        missed=missed(row["missed"]),
    )


def _by_attributes(row: dict[str, Any], stages: dict[str, float], trace: Callable[[str], Iterable[SpanRow]]) -> Entry:
    """Return the record as every store makes it: with stages that have no column, or out of the stage spans."""
    attributes = values(Span.FromString(row[REST]).attributes) if row[REST] else {}
    attributes |= {semconv.stage_total_ms(stage): total for stage, total in stages.items()}
    columns = {one.column: key for key, one in TYPED.items()}
    attributes |= {columns[name]: row[name] for name in row if name in columns and row[name] is not None}
    span = SpanRow(
        trace_id=row["trace_id"].hex(),
        span_id=row["span_id"].hex(),
        parent_span_id=None,
        name=row["name"],
        service=row["service"],
        kind=SERVER,
        start_unix_nano=row["start_unix_nano"],
        end_unix_nano=row["end_unix_nano"],
        attributes=attributes,
    )
    return entry_of(span, () if stages or row[REST] else trace(span.trace_id))
