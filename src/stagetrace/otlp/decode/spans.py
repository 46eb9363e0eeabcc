"""Spans to columns, out of protobuf's messages.

What has no column is kept: `rest` is a serialized Span of just what the columns do not hold, a newer OTLP's fields too.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from math import isfinite
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stagetrace import semconv
from stagetrace.otlp.decode.columns import DOUBLE, FIXED, INT, OTHER_MS, REST, TYPED
from stagetrace.otlp.decode.wire import DELIMITED, MORE, BrokenError, field_at, varint_at
from stagetrace.system.bounded import BoundedCache

if TYPE_CHECKING:
    from collections.abc import Iterable

IDS: Final = {"trace_id": 16, "span_id": 8}  # columns of ids that every span has, and their sizes
NO_TRACE: Final = bytes(16)
NO_SPAN: Final = bytes(8)
LATEST_NS: Final = 2**63 - 2  # in 2262, so that every time is before 2**63 - 1; a later one is kept in `rest`
EVER: Final = 2**64 - 1  # the latest time that OTLP has
BAD_TRACE_ID: Final = "a trace id is 16 bytes, not all zero"
BAD_SPAN_ID: Final = "a span id is 8 bytes, not all zero"
BAD_PARENT_ID: Final = "a parent span id is 8 bytes or none"
TOO_LATE: Final = "a span starts in the future"
UNREADABLE: Final = "not readable as protobuf"

SMALLEST_SPAN: Final = 28  # bytes of both ids with tags and lengths; nothing smaller holds a span, or what holds one
LARGEST: Final = 16 * 1024 * 1024  # bytes of a span, or of another part of a scope or a resource
HELD: Final = 0x12  # tag of a ResourceSpans' scopes, and of a ScopeSpans' spans
RESOURCES: Final = 0x0A  # tag of a request's resources
_ATTRIBUTE: Final = 0x4A  # tag of a field of Span
_NUMBER: Final = Struct("<d").unpack_from
# What precedes the number in a serialized attribute -> its column.
_NUMBERS: Final = {
    b"\x0a%c%b\x12\x09\x21" % (len(key), key.encode()): typed.column
    for key, typed in TYPED.items()
    if typed.kind == DOUBLE
}
_KEPT: Final = 4096  # attributes that are remembered, and remainders of spans
_LONGEST: Final = 64  # bytes of an attribute that is
_LONGEST_LEFT: Final = 128  # bytes of a remainder that is

# Of an attribute: its column, the value there if it has one, and whether that is all of it.
Meaning = tuple[str | None, Any, bool]
# The columns of FIXED in their order; then pairs of another column and its value.
Row = tuple[tuple[Any, ...], list[tuple[str, Any]]]


class Parts(NamedTuple):
    """A message without what it holds, and that: where each span, or scope with spans, begins and ends (`pairs`)."""

    around: bytes
    held: bytes
    small: int  # how many are too small to hold a span
    broken: bool  # it ends in bytes that are no field
    large: bool  # something around is too large, so nothing of it is returned
    dense: bool  # nothing is between what is in `held`


def pairs(held: bytes) -> zip[tuple[int, int]]:
    """Return the beginnings and ends of `Parts.held`."""
    numbers = memoryview(held).cast("Q")
    return zip(numbers[::2], numbers[1::2], strict=True)


def take_apart(data: bytes, at: int, end: int, most: int, tag: int = HELD) -> Parts:
    """Take the message at data[at:end] apart, until more than `most` of what it holds under `tag` are too small."""
    around: list[bytes] = []
    held = array("Q")  # a list of pairs would take ten times the memory
    small, next_at, dense, broken = 0, None, True, False
    try:
        while at < end and small <= most:
            start = at
            if data[at] == tag and at + 1 < end and data[at + 1] < MORE:  # as most are, and quicker
                first = at + 2
                at = first + data[at + 1]
                is_held = True
            elif data[at] == tag and at + 2 < end and data[at + 2] < MORE:
                first = at + 3
                at = first + data[at + 1] - MORE + (data[at + 2] << 7)
                is_held = True
            else:
                field = field_at(data, at, end)
                first, at = field.first, field.after
                is_held = field.delimited and field.number << 3 | DELIMITED == tag
            if at > end:
                raise BrokenError(at)  # noqa: TRY301 -- as `field_at` does
            if is_held and at - first >= SMALLEST_SPAN:
                dense = dense and next_at in (None, start)
                held.append(first)
                held.append(at)
                next_at = at
            elif is_held:
                small += 1
            elif at - start > LARGEST:
                return Parts(b"", b"", small, broken=False, large=True, dense=True)
            else:
                around.append(data[start:at])
    except BrokenError:
        broken = True
    return Parts(b"".join(around), held.tobytes(), small, broken, large=False, dense=dense)


class SpanColumns:
    """The spans of a request: the columns that each has, and of others the places of the spans with one, and values."""

    def __init__(self) -> None:
        """Begin without a span."""
        self.size = 0
        # By column; ids and 64-bit numbers as bare bytes, which take a fifth of the memory.
        self.fixed: list[Any] = [
            bytearray() if name in IDS else array("q") if kind == "int64" else [] for name, kind in FIXED
        ]
        self.sparse: dict[str, tuple[list[int], list[Any]]] = {}

    def add(self, spans: Iterable[Span], most: int, latest: int = EVER) -> dict[str, int]:
        """Take in spans, until more than `most` are refused; return why spans were, and how many.

        Spans that start after `latest` are refused. Fields of the messages are cleared.
        """
        rows: list[tuple[Any, ...]] = []
        refused: dict[str, int] = {}
        sparse, size = self.sparse, self.size
        for span in spans:
            found = row_or_reason(span, latest)
            if isinstance(found, str):
                refused[found] = refused.get(found, 0) + 1
                if sum(refused.values()) > most:
                    break
                continue
            row, cells = found
            for column, value in cells:
                places, values = sparse.get(column) or sparse.setdefault(column, ([], []))
                places.append(size)
                values.append(value)
            rows.append(row)
            size += 1
        if rows:
            for own, more in zip(self.fixed, zip(*rows, strict=True), strict=True):
                own.extend(b"".join(more) if isinstance(own, bytearray) else more)
        self.size = size
        return refused


class Run(NamedTuple):
    """How many spans in a row have service, resource and scope in common; both serialized without what they hold."""

    size: int
    shared: tuple[str, bytes, bytes]


class Decoded(NamedTuple):
    """All of one request: its spans, and how many were refused and why."""

    runs: list[Run]
    accepted: int
    rejected: int
    reason: str | None
    spans: SpanColumns
    empty: int = 0  # resources and scopes without a span


def row_or_reason(span: Span, latest: int = EVER) -> Row | str:
    """Return a span as columns, clearing its fields, or why it cannot be stored."""
    trace_id, span_id, parent = span.trace_id, span.span_id, span.parent_span_id
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    if start > latest:
        return TOO_LATE
    if len(trace_id) != len(NO_TRACE) or trace_id == NO_TRACE:
        return BAD_TRACE_ID
    if len(span_id) != len(NO_SPAN) or span_id == NO_SPAN:
        return BAD_SPAN_ID
    if parent and len(parent) != len(NO_SPAN):
        return BAD_PARENT_ID
    name, kind, flags = span.name, span.kind, span.flags
    clear = span.ClearField
    for field in ("trace_id", "span_id", "name", "kind", "flags"):
        clear(field)
    is_root = not parent or parent == NO_SPAN  # some exporters write zeros
    if not is_root:
        clear("parent_span_id")
    if start <= LATEST_NS:
        clear("start_time_unix_nano")
    if end <= LATEST_NS:
        clear("end_time_unix_nano")
    status = _take_status(span) if span.HasField("status") else None
    left = span.SerializeToString()
    cells = _read_known(left) if len(left) <= _LONGEST_LEFT else _read(left)
    times = min(start, LATEST_NS), min(end, LATEST_NS)
    return (trace_id, span_id, None if is_root else parent, name, kind, status, *times, flags), cells


def _take_status(span: Span) -> int:
    """Return the status code, and clear the status if that is all of it."""
    code = span.status.code
    if span.status.SerializeToString() == Status(code=code).SerializeToString():
        span.ClearField("status")
    return code


def _read(left: bytes) -> list[tuple[str, Any]]:
    """Return the columns of what is left of a span: those of its attributes, and REST."""
    found: dict[str, Any] = {}
    rest = []
    at, is_repeated = 0, False
    while at < len(left):
        start = at
        if left[at] != _ATTRIBUTE:
            at = _after(left, at)
        else:
            size, first = left[at + 1], at + 2
            if size >= MORE:
                size, first = varint_at(left, at + 1)
            at = first + size
            pair = left[first:at]
            column, value, is_whole = _known.get(pair) or _meaning(pair)
            if column == OTHER_MS and column in found:
                value += found[column]
            elif column in found:
                is_repeated = True
            if column is not None:
                found[column] = value
            if is_whole:
                continue
        rest.append(left[start:at])
    # Of a key that comes twice the last one counts, and all are kept.
    if rest or is_repeated:
        found[REST] = left if is_repeated else b"".join(rest)
    return list(found.items())


_read_known: Final = lru_cache(_KEPT)(_read)


def attribute_of(rest: bytes, key: bytes) -> bytes | None:
    """Return the last attribute of a serialized span (REST) that begins with `key`, a serialized field; None if none.

    It is a serialized KeyValue. To decode all attributes takes five times as long.
    """
    found, at = None, 0
    while at < len(rest):
        if rest[at] != _ATTRIBUTE:
            at = _after(rest, at)
            continue
        size, first = rest[at + 1], at + 2
        if size >= MORE:
            size, first = varint_at(rest, at + 1)
        at = first + size
        if rest.startswith(key, first, at):
            found = rest[first:at]
    return found


def _after(data: bytes, at: int) -> int:
    """Return what follows a field of a serialized span: of one that OTLP does not have the end, as these come last."""
    try:
        return field_at(data, at, len(data)).after
    except BrokenError:  # a group
        return len(data)


_known: Final[BoundedCache[bytes, Meaning]] = BoundedCache(_KEPT)


def _meaning(pair: bytes) -> Meaning:
    """Return what an attribute means."""
    if column := _NUMBERS.get(pair[:-8]):
        (number,) = _NUMBER(pair, len(pair) - 8)  # as of most attributes that are not remembered
        if isfinite(number):
            return column, number, True
    found = _read_attribute(pair)
    if len(pair) <= _LONGEST:
        _known[pair] = found
    return found


def _read_attribute(pair: bytes) -> Meaning:
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
