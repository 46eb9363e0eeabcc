"""Conditions on stored columns for a selection, and for a search of Jaeger's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from stagetrace import semconv
from stagetrace.columns import names_of
from stagetrace.otlp.decode.columns import BOOL, DOUBLE, INT, OTHER_MS, REST, STRING, TYPED
from stagetrace.otlp.decode.wire import varint
from stagetrace.store import entries
from stagetrace.store.base import SERVER, Entry, Selection, SpanRow
from stagetrace.store.entries import entry_of, missed
from stagetrace.store.rows import values
from stagetrace.store.stored import PATH, ROUTE, values_of

_SPAN_ATTRIBUTE: Final = b"\x4a"  # tag of field 9 of Span
_RESOURCE_ATTRIBUTE: Final = b"\x0a"  # tag of field 1 of Resource

_ERROR: Final = "error"  # Jaeger's word for the status, as newer ones than 2.13 read it
_STATUS_ERROR: Final = 2
# As `store.entries.request_text`.
_SHOWN: Final = f"coalesce({ROUTE}, {PATH})"
_REQUEST: Final = f"CASE WHEN coalesce(contains(name, {_SHOWN}), true) THEN name ELSE name || ' ' || {_SHOWN} END"

Condition = tuple[str, list[Any]]


@dataclass(frozen=True)
class Search:
    """A search of Jaeger's: a single span must meet all conditions. Times are in ns, and both ends included.

    Durations of 0 and empty texts ask for nothing. `raw`: without Jaeger's changes for display. `only_found`: without
    the other spans of a trace, except where one that is found has no stage totals.
    """

    start_min_ns: int = 0
    start_max_ns: int = 2**63 - 2
    depth: int = 100
    service: str = ""
    operation: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    duration_min_ns: int = 0
    duration_max_ns: int = 0
    raw: bool = False
    only_found: bool = False


class _Conditions:
    """Collects conditions with their values, which stand as numbered parameters."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._parts: list[str] = []

    def add(self, text: str, *values: Any) -> None:
        """Add a condition; each `?` in it stands for a value."""
        self._parts.append(self.bound(text, *values))

    def bound(self, text: str, *values: Any) -> str:
        """Return a condition with its values numbered."""
        for value in values:
            self.values.append(value)
            text = text.replace("?", f"${len(self.values)}", 1)
        return text

    def done(self) -> Condition:
        """Return all as one condition."""
        return " AND ".join(self._parts) or "true", self.values


def of_selection(selection: Selection) -> Condition:
    """Return the condition on entry spans that a selection stands for, its limit aside."""
    conditions = _Conditions()
    conditions.add("is_entry AND start_unix_nano >= ? AND start_unix_nano < ?", selection.since_ns, selection.until_ns)
    for column, value in (("service", selection.service), ("model", selection.model)):
        if value is not None:
            conditions.add(f"{column} = ?", value)
    if selection.route is not None:
        conditions.add(f"({ROUTE} = ? OR {_REQUEST} = ?)", selection.route, selection.route)
    if selection.breached is not None:
        conditions.add("coalesce(breached, false) = ?", selection.breached)
    if selection.judged_by is not None:
        conditions.add(
            "(coalesce(objective = ?, false) OR coalesce(regexp_matches(verdicts, ?), false))",
            selection.judged_by,
            entries.verdict_pattern(selection.judged_by, breached=bool(selection.breached)),
        )
    if selection.causes:
        conditions.add(f"cause IN ({', '.join('?' * len(selection.causes))})", *selection.causes)
    if selection.codes:
        conditions.add("coalesce(regexp_full_match(code, ?), false)", entries.code_pattern(selection.codes))
    for key, text in selection.segments.items():
        conditions.add(_attribute(conditions, key, text))
    return conditions.done()


def of_search(search: Search) -> Condition:
    """Return the condition on single spans that a search of Jaeger's stands for."""
    conditions = _Conditions()
    conditions.add("start_unix_nano >= ? AND start_unix_nano <= ?", search.start_min_ns, search.start_max_ns)
    for condition, value in (
        ("service = ?", search.service),
        ("name = ?", search.operation),
        ("end_unix_nano - start_unix_nano >= ?", search.duration_min_ns),
        ("end_unix_nano - start_unix_nano <= ?", search.duration_max_ns),
    ):
        if value:
            conditions.add(condition, value)
    for key, text in search.attributes.items():
        wanted = _attribute(conditions, key, text)
        if key == _ERROR and text == "true":
            wanted = f"(status = {_STATUS_ERROR} OR {wanted})"
        elif key == _ERROR and text == "false":
            wanted = f"(coalesce(status, 0) <> {_STATUS_ERROR} OR {wanted})"
        conditions.add(wanted)
    return conditions.done()


def _attribute(conditions: _Conditions, key: str, text: str) -> str:
    """Return the condition that an attribute of the span, or else of its resource, has this text form."""
    in_span, absent = [], []
    for name in names_of(key):
        in_span.append(_kept_as(conditions, "rest", _SPAN_ATTRIBUTE, name, text))
        absent.append(conditions.bound("NOT coalesce(contains(hex(rest), ?), false)", _key(name).hex().upper()))
    if key in TYPED:
        column, kind = TYPED[key]
        absent.append(f"{column} IS NULL")
        in_span += [conditions.bound(f"{column} = ?", value) for value in values_of(text, kind)]
    in_resource = _kept_as(conditions, "resource", _RESOURCE_ATTRIBUTE, key, text)
    return f"(({' OR '.join(in_span)}) OR ({' AND '.join(absent)} AND {in_resource}))"


def _kept_as(conditions: _Conditions, column: str, tag: bytes, key: str, text: str) -> str:
    """Return the condition that serialized attributes hold this one, whatever its type: equality is of bytes."""
    needles = [_needle(tag, key, value) for value in _any_values(text)]
    tests = [conditions.bound(f"contains(hex({column}), ?)", needle.hex().upper()) for needle in needles]
    return f"coalesce({' OR '.join(tests)}, false)"


def _needle(tag: bytes, key: str, value: AnyValue) -> bytes:
    encoded = KeyValue(key=key, value=value).SerializeToString()
    return tag + varint(len(encoded)) + encoded


def _key(key: str) -> bytes:
    return KeyValue(key=key).SerializeToString()


def _any_values(text: str) -> Iterator[AnyValue]:
    """Yield the values whose text form this is; lists, maps and bytes aside."""
    for kind in (STRING, BOOL, INT, DOUBLE):
        for value in values_of(text, kind):
            yield AnyValue(**{kind: value})


# --- Stored columns of an entry span to its record, without a detour over the whole span.

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
