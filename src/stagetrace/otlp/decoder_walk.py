"""Spans' bytes into columns, read straight off the wire: protobuf's Python objects would cost three times as much.

protobuf has parsed the bytes before, so that lengths and texts can be relied on. What has no column is kept as the very
bytes it came in: `rest`, joined, is a serialized Span of just what the columns do not hold, a newer OTLP's fields too.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stagetrace.otlp.decoder_attributes import OTHER, known, meaning
from stagetrace.otlp.decoder_columns import COLUMNS, OTHER_MS, REST
from stagetrace.otlp.wire import MORE, field_at, varint, varint_at

Sparse = dict[str, tuple[list[int], list[Any]]]

LATEST_NS: Final = 2**63 - 2  # in 2262, so that every time is before 2**63 - 1; a later one is kept in `rest`
NO_TRACE: Final = bytes(16)
NO_SPAN: Final = bytes(8)
BAD_TRACE_ID: Final = "a trace id is 16 bytes, not all zero"
BAD_SPAN_ID: Final = "a span id is 8 bytes, not all zero"
BAD_PARENT_ID: Final = "a parent span id is 8 bytes or none"

_TRACE_HEAD: Final = b"\x0a\x10"
_SPAN_HEAD: Final = b"\x12\x08"
_IDS: Final = 28  # bytes of both ids with tags and lengths, as every encoder writes them
_HEAD: Final = Struct("<2s16s2s8s").unpack_from
_TIME: Final = Struct("<Q").unpack_from
_TIMES: Final = Struct("<BQBQ").unpack_from
_TWO_TIMES: Final = 18  # bytes of both, tags included
_FLAGS: Final = Struct("<I").unpack_from
_KEPT: Final = 4096  # names that are remembered

# Tags of fields of Span: its number and its wire type.
_TRACE_ID: Final = 0x0A
_SPAN_ID: Final = 0x12
_PARENT: Final = 0x22
_NAME: Final = 0x2A
_KIND: Final = 0x30
_START: Final = 0x39
_END: Final = 0x41
_ATTRIBUTE: Final = 0x4A
_STATUS: Final = 0x7A
_FLAGS_HEAD: Final = 0x85  # of two bytes; the other is 1
_ONCE: Final = frozenset((_TRACE_ID, _SPAN_ID, _PARENT, _NAME, _KIND, _START, _END, _STATUS))

_names: dict[bytes, str] = {}


class Refused(Exception):  # noqa: N818 - reads as what it says
    """Say why a span cannot be stored."""


class _OddError(Exception):
    """Say that a span is not written as encoders write it: a field twice, or out of order."""


class Walker:
    """Collects spans as columns. Not safe for several threads."""

    def __init__(self) -> None:
        self.size = 0
        self._rows: list[tuple[Any, ...]] = []
        self._columns: list[tuple[list[int], list[Any]]] = [([], []) for _ in (*COLUMNS, OTHER_MS)]
        self._rest: tuple[list[int], list[Any]] = ([], [])
        self._repeated = False  # whether the present span has one key twice

    def sparse(self) -> Sparse:
        """Return the columns that not every span has, with the places of their values."""
        named = {**dict(zip((*COLUMNS, OTHER_MS), self._columns, strict=True)), REST: self._rest}
        return {name: column for name, column in named.items() if column[0]}

    def fixed(self) -> tuple[list[Any], ...]:
        """Return the columns that every span has, as in FIXED."""
        return tuple(map(list, zip(*self._rows, strict=True)))

    def add(self, data: bytes, at: int, end: int) -> None:
        """Take in the span at data[at:end]. Raise Refused, and keep nothing of it, if it cannot be stored."""
        try:
            rest = self._read(data, at, end)
        except _OddError:
            self._undo()
            plain, unknown = _in_order(data[at:end])
            rest = [*self._read(plain, 0, len(plain)), unknown]
        except Refused:
            self._undo()
            raise
        if self._repeated:
            rest = [_with_all_attributes(data[at:end], b"".join(rest))]
            self._repeated = False
        if rest:
            self._rest[0].append(self.size)
            self._rest[1].append(b"".join(rest))
        self.size += 1

    def _read(self, data: bytes, at: int, end: int) -> list[bytes]:  # noqa: C901, PLR0912 -- a call per field costs
        """Append a span to the columns; return what they do not tell."""
        if end - at < _IDS:
            raise _problem(data[at:end])
        trace_tag, trace_id, span_tag, span_id = _HEAD(data, at)
        if trace_tag != _TRACE_HEAD or span_tag != _SPAN_HEAD or trace_id == NO_TRACE or span_id == NO_SPAN:
            raise _problem(data[at:end])
        at += _IDS
        parent, name, kind, status, start, stop, flags = None, "", 0, None, 0, 0, 0
        rest: list[bytes] = []
        before = _SPAN_ID
        while at < end:
            tag = data[at]
            if tag == _ATTRIBUTE:
                at = self._attributes(data, at, end, rest)
                continue
            if tag == _FLAGS_HEAD and data[at + 1] == 1:
                flags, at = _FLAGS(data, at + 2)[0], at + 6
                continue
            if tag in _ONCE:
                if tag <= before:
                    raise _OddError
                before = tag
            if tag == _PARENT:
                parent, at = _parent(data, at, rest)
            elif tag == _NAME:
                name, at = _name(data, at)
            elif tag == _KIND and data[at + 1] < MORE:
                kind, at = data[at + 1], at + 2
                if end - at >= _TWO_TIMES:  # both times follow, as a rule
                    start_tag, first, end_tag, last = _TIMES(data, at)
                    if start_tag == _START and end_tag == _END and first <= LATEST_NS and last <= LATEST_NS:
                        start, stop, before = first, last, _END
                        at += _TWO_TIMES
            elif tag == _START:
                start, at = _time(data, at, rest)
            elif tag == _END:
                stop, at = _time(data, at, rest)
            elif tag == _STATUS:
                status, at = _status(data, at, rest)
            else:
                after = field_at(data, at, end).after
                rest.append(data[at:after])
                at = after
        self._rows.append((trace_id, span_id, parent, name, kind, status, start, stop, flags))
        return rest

    def _attributes(self, data: bytes, at: int, end: int, rest: list[bytes]) -> int:
        """Put attributes that follow each other into their columns; return what is behind them."""
        place = self.size
        columns = self._columns
        while at < end and data[at] == _ATTRIBUTE:
            size, first = data[at + 1], at + 2
            if size >= MORE:
                size, first = varint_at(data, at + 1)
            after = first + size
            pair = data[first:after]
            column, value, kept = known.get(pair) or meaning(pair)
            if column is not None:
                places, values = columns[column]
                if places and places[-1] == place:
                    self._again(column, value)
                else:
                    places.append(place)
                    values.append(value)
            if kept is not None:
                rest.append(data[at:after] if kept is pair else _attribute(kept))
            at = after
        return at

    def _again(self, column: int, value: Any) -> None:
        """Take in a value for a column that has one of the present span."""
        values = self._columns[column][1]
        if column == OTHER:
            values[-1] += value
        else:  # the key comes again: the last one counts, and all are kept
            values[-1] = value
            self._repeated = True

    def _undo(self) -> None:
        """Take back what the present span has left in columns."""
        self._repeated = False
        for places, values in self._columns:
            if places and places[-1] == self.size:
                places.pop()
                values.pop()


def _time(data: bytes, at: int, rest: list[bytes]) -> tuple[int, int]:
    time: int = _TIME(data, at + 1)[0]
    if time > LATEST_NS:
        rest.append(data[at : at + 9])
        time = LATEST_NS
    return time, at + 9


def _name(data: bytes, at: int) -> tuple[str, int]:
    size, first = data[at + 1], at + 2
    if size >= MORE:
        size, first = varint_at(data, at + 1)
    written = data[first : first + size]
    name = _names.get(written)
    if name is None:
        name = written.decode()
        if size < MORE:
            if len(_names) >= _KEPT:
                _names.clear()
            _names[written] = name
    return name, first + size


def _parent(data: bytes, at: int, rest: list[bytes]) -> tuple[bytes | None, int]:
    if data[at + 1] != len(NO_SPAN):
        if data[at + 1] == 0:
            raise _OddError
        raise Refused(BAD_PARENT_ID)
    after = at + 2 + len(NO_SPAN)
    parent = data[at + 2 : after]
    if parent == NO_SPAN:  # some exporters write this of a root
        rest.append(data[at:after])
        return None, after
    return parent, after


def _status(data: bytes, at: int, rest: list[bytes]) -> tuple[int, int]:
    size, first = varint_at(data, at + 1)
    after = first + size
    if size == 0:
        return 0, after
    status = Status.FromString(data[first:after])
    if status.ByteSize() != 2 or size != 2:  # noqa: PLR2004 -- a code alone
        rest.append(data[at:after])
    return int(status.code), after


def _attribute(pair: bytes) -> bytes:
    """Return a serialized KeyValue as an attribute of a span."""
    return bytes((_ATTRIBUTE,)) + varint(len(pair)) + pair


def _problem(data: bytes) -> Exception:
    """Return what is wrong with a span that does not begin with two good ids."""
    span = Span.FromString(data)
    if len(span.trace_id) != len(NO_TRACE) or span.trace_id == NO_TRACE:
        return Refused(BAD_TRACE_ID)
    if len(span.span_id) != len(NO_SPAN) or span.span_id == NO_SPAN:
        return Refused(BAD_SPAN_ID)
    return _OddError()


def _in_order(data: bytes) -> tuple[bytes, bytes]:
    """Return a span as protobuf writes it, each field once and in order, and apart from it those not known."""
    span = Span.FromString(data)
    plain = span.SerializeToString()
    for field in Span.DESCRIPTOR.fields:
        span.ClearField(field.name)  # type: ignore[arg-type]  # the stubs list the names
    unknown = span.SerializeToString()
    return (plain[len(unknown) :] if plain.startswith(unknown) else plain.removesuffix(unknown)), unknown


def _with_all_attributes(data: bytes, rest: bytes) -> bytes:
    """Return a rest that has all attributes of the span at `data`."""
    kept = Span.FromString(rest)
    del kept.attributes[:]
    kept.attributes.extend(Span.FromString(data).attributes)
    return kept.SerializeToString()
