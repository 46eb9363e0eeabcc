"""Spans' bytes to columns by protobuf's own messages: the Python implementation of the decoder.

What has no column is kept: `rest` is a serialized Span of just what the columns do not hold, a newer OTLP's fields too.
The native implementation calls `row_or_reason` for spans that are not written as encoders write them.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from math import isfinite
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stagetrace import semconv
from stagetrace.otlp.decode.columns import DOUBLE, INT, OTHER_MS, REST, TYPED
from stagetrace.otlp.decode.wire import DELIMITED, MORE, BrokenError, field_at, varint, varint_at
from stagetrace.system.native import native

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LATEST_NS: Final = 2**63 - 2  # in 2262, so that every time is before 2**63 - 1; a later one is kept in `rest`
EVER: Final = 2**64 - 1  # the latest time that OTLP has
NO_TRACE: Final = bytes(16)
NO_SPAN: Final = bytes(8)
BAD_TRACE_ID: Final = "a trace id is 16 bytes, not all zero"
BAD_SPAN_ID: Final = "a span id is 8 bytes, not all zero"
BAD_PARENT_ID: Final = "a parent span id is 8 bytes or none"
TOO_LATE: Final = "a span starts in the future"
UNREADABLE: Final = "not readable as protobuf"

SMALLEST_SPAN: Final = 28  # bytes of both ids with tags and lengths; nothing smaller holds a span, or what holds one
LARGEST: Final = 16 * 1024 * 1024  # bytes of a span, or of another part of a scope or a resource
HELD: Final = 0x12  # tag of a ResourceSpans' scopes, and of a ScopeSpans' spans
RESOURCES: Final = 0x0A  # tag of a request's resources
_ATTRIBUTE: Final = b"\x4a"  # tag of a field of Span
_DOUBLE_VALUE: Final = b"\x12\x09\x21"  # what precedes the number in an attribute
_NUMBERS: Final = {key.encode(): typed.column for key, typed in TYPED.items() if typed.kind == DOUBLE}
_DOUBLE: Final = Struct("<d").unpack_from
_KEPT: Final = 4096  # attributes that are remembered
_LONGEST: Final = 64  # bytes of one that is

Row = dict[str, Any]  # by column, without those that a span has nothing for


class Refused(Exception):  # noqa: N818 -- short, since it is raised in each refusal
    """A span cannot be stored; the message is the reason."""


class Parts(NamedTuple):
    """A message without what it holds, and that: where each span, or scope with spans, begins and ends (`pairs`)."""

    around: bytes
    held: bytes
    small: int  # how many are too small to hold a span
    broken: bool  # it ends in bytes that are no field
    large: bool  # something around is too large, so nothing of it is returned


def pairs(held: bytes) -> zip[tuple[int, int]]:
    """Return the beginnings and ends of `Parts.held`."""
    numbers = memoryview(held).cast("Q")
    return zip(numbers[::2], numbers[1::2], strict=True)


def parts_in_python(data: bytes, at: int, end: int, most: int, tag: int = HELD) -> Parts:
    """Take the message at data[at:end] apart, until more than `most` of what it holds under `tag` are too small."""
    around: list[bytes] = []
    held = array("Q")  # a list of pairs would take ten times the memory
    small = 0
    try:
        while at < end and small <= most:
            start = at
            if data[at] == tag and at + 1 < end and data[at + 1] < MORE:  # as most are, and quicker
                first = at + 2
                at = first + data[at + 1]
                is_held = True
            else:
                field = field_at(data, at, end)
                first, at = field.first, field.after
                is_held = field.delimited and field.number << 3 | DELIMITED == tag
            if at > end:
                raise BrokenError(at)  # noqa: TRY301 -- as `field_at` does
            if is_held and at - first >= SMALLEST_SPAN:
                held.append(first)
                held.append(at)
            elif is_held:
                small += 1
            elif at - start > LARGEST:
                return Parts(b"", b"", small, broken=False, large=True)
            else:
                around.append(data[start:at])
    except BrokenError:
        return Parts(b"".join(around), held.tobytes(), small, broken=True, large=False)
    return Parts(b"".join(around), held.tobytes(), small, broken=False, large=False)


class SpanColumns:
    """The spans of a request as lists: of each column the places of the spans that have it, and its values."""

    def __init__(self) -> None:
        """Begin without a span."""
        self.size = 0
        self.columns: dict[str, tuple[list[int], list[Any]]] = {}

    def add(self, data: bytes, held: bytes, most: int, latest: int = EVER) -> dict[str, int]:
        """Add spans of `data` until more than `most` are refused; return why spans were, and how many.

        `held` is as in Parts. Spans that start after `latest` are refused.
        """
        refused: dict[str, int] = {}
        for first, after in pairs(held):
            found = row_or_reason(data[first:after], latest)
            if isinstance(found, dict):
                self._append(found)
                continue
            refused[found] = refused.get(found, 0) + 1
            if sum(refused.values()) > most:
                break
        return refused

    def _append(self, row: Row) -> None:
        for name, value in row.items():
            places, values = self.columns.get(name) or self.columns.setdefault(name, ([], []))
            places.append(self.size)
            values.append(value)
        self.size += 1


def row_or_reason(data: bytes, latest: int = EVER) -> Row | str:
    """Return a serialized span as columns, or why it cannot be stored."""
    try:
        span = Span.FromString(data)
        if span.start_time_unix_nano > latest:
            return TOO_LATE
        row = _take_fields(span)
    except DecodeError:
        return UNREADABLE
    except Refused as error:
        return str(error)
    if rest := _take_attributes(span, row):
        row[REST] = rest
    return row


def _take_fields(span: Span) -> Row:
    """Return the columns that hold no attribute, and clear the fields that they hold."""
    trace_id, span_id, parent = span.trace_id, span.span_id, span.parent_span_id
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    if len(trace_id) != len(NO_TRACE) or trace_id == NO_TRACE:
        raise Refused(BAD_TRACE_ID)
    if len(span_id) != len(NO_SPAN) or span_id == NO_SPAN:
        raise Refused(BAD_SPAN_ID)
    if parent and len(parent) != len(NO_SPAN):
        raise Refused(BAD_PARENT_ID)
    row: Row = {
        "trace_id": trace_id,
        "span_id": span_id,
        "name": span.name,
        "kind": span.kind,
        "start_unix_nano": min(start, LATEST_NS),
        "end_unix_nano": min(end, LATEST_NS),
        "flags": span.flags,
    }
    for field in ("trace_id", "span_id", "name", "kind", "flags"):
        span.ClearField(field)
    if start <= LATEST_NS:
        span.ClearField("start_time_unix_nano")
    if end <= LATEST_NS:
        span.ClearField("end_time_unix_nano")
    if parent and parent != NO_SPAN:  # some exporters write that of a root
        row["parent_span_id"] = parent
        span.ClearField("parent_span_id")
    if span.HasField("status"):
        row["status"] = span.status.code
        if span.status.SerializeToString() == Status(code=span.status.code).SerializeToString():
            span.ClearField("status")
    return row


def _take_attributes(span: Span, row: Row) -> bytes:
    """Put attributes into their columns; return what no column holds, as a serialized Span."""
    data = span.SerializeToString()
    span.ClearField("attributes")
    rest = [span.SerializeToString()]
    is_repeated = False
    # A message for each attribute would take three times as long as its bytes.
    for pair in _split(data) if not rest[0] else [one.SerializeToString() for one in Span.FromString(data).attributes]:
        column, value, is_whole = _remembered(pair) if len(pair) <= _LONGEST else _meaning(pair)
        if column == OTHER_MS and column in row:
            row[column] += value
        elif column is not None:
            is_repeated = is_repeated or column in row
            row[column] = value
        if not is_whole:
            rest.append(_ATTRIBUTE + varint(len(pair)) + pair)
    return data if is_repeated else b"".join(rest)  # of a key that comes twice the last one counts, and all are kept


def _split(data: bytes) -> list[bytes]:
    """Return the attributes of a serialized span that has nothing else."""
    found = []
    at = 1  # behind the tag
    while at < len(data):
        size, first = data[at], at + 1
        if size >= MORE:
            size, first = varint_at(data, at)
        found.append(data[first : first + size])
        at = first + size + 1
    return found


def _meaning(pair: bytes) -> tuple[str | None, Any, bool]:
    """Return the column that an attribute belongs in, the value for it if it has one, and whether that is all of it."""
    if pair[-11:-8] == _DOUBLE_VALUE and pair[1] == len(pair) - 13 and (column := _NUMBERS.get(pair[2:-11])):
        (number,) = _DOUBLE(pair, len(pair) - 8)  # as of most attributes that are not remembered
        if isfinite(number):
            return column, number, True
    read = KeyValue.FromString(pair)
    kind = read.value.WhichOneof("value")
    value: Any = None if kind is None else getattr(read.value, kind)
    number = float(value) if kind in (INT, DOUBLE) and isfinite(value) else None
    typed = TYPED.get(read.key)
    if typed is None:
        return (None if number is None or not semconv.stage_of_total(read.key) else OTHER_MS), number, False
    if typed.kind == DOUBLE:
        value = number
    if value is None or typed.kind not in (kind, DOUBLE):
        return typed.column, None, False
    plain = KeyValue(key=read.key)
    setattr(plain.value, typed.kind, value)
    return typed.column, value, plain.SerializeToString() == pair


_remembered: Final = lru_cache(_KEPT)(_meaning)


if TYPE_CHECKING:
    import pyarrow as pa

    # How many are NULL, then what Arrow's columnar format prescribes; None where there is no value at all.
    Buffers = tuple[Any, ...] | None

# --- The decoder's two implementations: the native one, if it was built, reads the same spans for a tenth of the CPU.

_in_c = native("decoder")


def _parts(data: bytes, at: int, end: int, most: int, tag: int = HELD) -> Parts:
    """Do as `parts_in_python`."""
    return Parts(*_in_c.decode_parts(data, at, end, most, tag))


class NativeSpanColumns:
    """Do as `SpanColumns`, in a log of native code."""

    def __init__(self) -> None:
        """Begin without a span."""
        self.size = 0
        self.log = _in_c.open_log()

    def add(self, data: bytes, held: bytes, most: int, latest: int = EVER) -> dict[str, int]:
        """Do as `SpanColumns.add`."""
        refused: dict[str, int]
        size, refused = _in_c.add_spans(self.log, data, held, most, latest)
        self.size += size
        return refused


class Implementation(NamedTuple):
    """What `request.decode` calls."""

    parts: Callable[[bytes, int, int, int, int], Parts]
    columns: type[SpanColumns | NativeSpanColumns]


PYTHON: Final = Implementation(parts_in_python, SpanColumns)
NATIVE: Final = None if _in_c is None else Implementation(_parts, NativeSpanColumns)


def join_logs(spans: Sequence[NativeSpanColumns]) -> list[Buffers]:
    """Return the spans of several requests as the buffers of FIXED's and SPARSE's columns."""
    found: list[Buffers] = _in_c.join_logs([one.log for one in spans])
    return found


STRANGE: Final = 0xFF


def find(spans: pa.Array, key: bytes) -> pa.Array:
    """Return the serialized value of the last attribute of each serialized span that has the key; b"" where none has.

    Of a span that may have it but is not written as encoders do, it is STRANGE and the span.
    """
    import pyarrow as pa

    if _in_c is None:
        strange = bytes((STRANGE,))
        found = [strange + one if one and key in one else b"" for one in spans.to_pylist()]
        return pa.array(found, pa.binary())
    whole = spans.fill_null(b"")
    _, offsets, data = (b"" if one is None else one.to_pybytes() for one in whole.buffers())
    first = whole.offset * 4  # bytes of an offset
    places = offsets[first : first + 4 * (len(whole) + 1)] or bytes(4)
    buffers = _in_c.find_attribute(data, places, key)
    return pa.Array.from_buffers(pa.binary(), len(whole), [None, *map(pa.py_buffer, buffers)])
