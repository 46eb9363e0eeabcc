"""Stored columns back to OTLP, without loss: the reverse of `request`.

Written as bytes: what `rest` holds is a serialized Span already, and fields of a message may come in any order and in
pieces. protobuf's objects would take six times as long.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from stagetrace.otlp.decode.columns import BOOL, DOUBLE, INT, REST, TYPED
from stagetrace.otlp.decode.wire import varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LENGTHS: Final = tuple(bytes((size,)) for size in range(128))  # as varints, those of nearly everything
_IDS: Final = Struct("<2s16s2s8s").pack
_TIME: Final = Struct("<cQ").pack
_FLAGS: Final = Struct("<2sI").pack
_DOUBLE: Final = Struct("<d").pack
_NEGATIVE: Final = 1 << 64  # what a negative number is taken from, where it is written as a varint
_KEPT: Final = 4096  # texts of one attribute that are remembered


def _length(size: int) -> bytes:
    return _LENGTHS[size] if size < len(_LENGTHS) else varint(size)


def _with_length(tag: bytes, content: bytes) -> bytes:
    return b"%b%b%b" % (tag, _length(len(content)), content)


class _Attribute:
    """Writes the attribute that one column holds."""

    def __init__(self, key: str, column: str, kind: str) -> None:
        self.key = key
        self.column = column
        self.named = _with_length(b"\x0a", key.encode())  # as in each serialized attribute of this key
        self._kind = kind
        self._known: dict[str, bytes] = {}

    def __call__(self, value: Any) -> bytes:
        """Return the attribute as a field of Span."""
        if self._kind == DOUBLE:
            return self._field(b"\x21" + _DOUBLE(value))
        if self._kind == BOOL:
            return self._field(b"\x10\x01" if value else b"\x10\x00")
        if self._kind == INT:
            return self._field(b"\x18" + varint(value % _NEGATIVE))
        known = self._known.get(value)
        if known is None:
            known = self._field(_with_length(b"\x0a", value.encode()))
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[value] = known
        return known

    def _field(self, value: bytes) -> bytes:
        return _with_length(b"\x4a", self.named + _with_length(b"\x12", value))


_ATTRIBUTES: Final = tuple(_Attribute(key, typed.column, typed.kind) for key, typed in TYPED.items())


def serialize(row: Mapping[str, Any]) -> bytes:
    """Return the span that a row was made of, its typed attributes first; columns may be missing from the row."""
    fields = [_IDS(b"\x0a\x10", row["trace_id"], b"\x12\x08", row["span_id"])]
    if (parent := row.get("parent_span_id")) is not None:
        fields.append(_with_length(b"\x22", parent))
    if name := row["name"]:
        fields.append(_with_length(b"\x2a", name.encode()))
    if kind := row["kind"]:
        fields.append(b"\x30" + varint(kind % _NEGATIVE))
    if start := row["start_unix_nano"]:
        fields.append(_TIME(b"\x39", start))
    if end := row["end_unix_nano"]:
        fields.append(_TIME(b"\x41", end))
    if flags := row["flags"]:
        fields.append(_FLAGS(b"\x85\x01", flags))
    if (status := row.get("status")) is not None:
        fields.append(_with_length(b"\x7a", b"\x18" + varint(status % _NEGATIVE) if status else b""))
    rest = row.get(REST) or b""
    for attribute in _ATTRIBUTES:
        value = row.get(attribute.column)
        # A value of another type than its column, and a key that came twice, are in the rest as they were.
        if value is not None and not (attribute.named in rest and attribute.key in _keys(rest)):
            fields.append(attribute(value))
    fields.append(rest)
    return b"".join(fields)


def _keys(rest: bytes) -> set[str]:
    return {attribute.key for attribute in Span.FromString(rest).attributes}


def resource_spans(row: Mapping[str, Any]) -> bytes:
    """Return the serialized ResourceSpans that holds the span of a row, and nothing else."""
    resource: bytes = row["resource"]
    return resource + _with_length(b"\x12", row["scope"] + _with_length(b"\x12", serialize(row)))


def request_of(rows: Iterable[Mapping[str, Any]]) -> ExportTraceServiceRequest:
    """Return a request with the spans of these rows under their resources and scopes."""
    request = ExportTraceServiceRequest()
    _fill(request, rows)
    return request


def traces_of(rows: Iterable[Mapping[str, Any]]) -> TracesData:
    """Return a TracesData with the spans of these rows under their resources and scopes."""
    traces = TracesData()
    _fill(traces, rows)
    return traces


def _fill(message: ExportTraceServiceRequest | TracesData, rows: Iterable[Mapping[str, Any]]) -> None:
    resources: dict[bytes, ResourceSpans] = {}
    scopes: dict[tuple[bytes, bytes], ScopeSpans] = {}
    for row in rows:
        key = (row["resource"], row["scope"])
        scope = scopes.get(key)
        if scope is None:
            resource = resources.get(key[0])
            if resource is None:
                resource = resources[key[0]] = message.resource_spans.add()
                resource.MergeFromString(key[0])
            scope = scopes[key] = resource.scope_spans.add()
            scope.MergeFromString(key[1])
        scope.spans.add().MergeFromString(serialize(row))
