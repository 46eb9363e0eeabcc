"""Conditions on stored columns for a search of Jaeger's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from stagetrace.columns import names_of
from stagetrace.otlp.decode.columns import BOOL, DOUBLE, INT, STRING, TYPED
from stagetrace.otlp.decode.wire import varint
from stagetrace.store.stored import values_of

_SPAN_ATTRIBUTE: Final = b"\x4a"  # tag of field 9 of Span
_RESOURCE_ATTRIBUTE: Final = b"\x0a"  # tag of field 1 of Resource

_ERROR: Final = "error"  # Jaeger's word for the status, as newer ones than 2.13 read it
_STATUS_ERROR: Final = 2
Condition = tuple[str, list[Any]]


@dataclass(frozen=True)
class Search:
    """A search of Jaeger's: a single span must meet all conditions. Times are in ns, and both ends included.

    Durations of 0 and empty texts ask for nothing.
    """

    start_min_ns: int = 0
    start_max_ns: int = 2**63 - 2
    depth: int = 100
    service: str = ""
    operation: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    duration_min_ns: int = 0
    duration_max_ns: int = 0


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
