"""Spans' bytes into columns, read straight off the wire: protobuf's Python objects would cost three times as much.

protobuf has parsed the bytes before, so that lengths and texts can be relied on. What has no column is kept as the very
bytes it came in: `rest`, joined, is a serialized Span of just what the columns do not hold, a newer OTLP's fields too.

This is the reference of `native/decoder_*.c`, which calls what is odd and rare from here (docs/decisions/011).
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stagetrace.otlp.decode.attributes import OTHER, known, meaning
from stagetrace.otlp.decode.columns import COLUMNS, OTHER_MS, REST
from stagetrace.otlp.decode.protobuf_wire import MORE, BrokenError, field_at, varint, varint_at

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[[int, int], "str | None"]  # why data[first:after] is no span

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
SMALLEST_SPAN: Final = _IDS  # nothing smaller holds a span, or a scope with one
LARGEST: Final = 16 * 1024 * 1024  # bytes of a span, or of another part of a scope or a resource
_HELD: Final = 2  # field of ResourceSpans: its scopes; of ScopeSpans: its spans
_HELD_TAG: Final = 0x12

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
_CODE: Final = 0x18  # of a field of Status
_ONCE: Final = frozenset((_TRACE_ID, _SPAN_ID, _PARENT, _NAME, _KIND, _START, _END, _STATUS))

_names: dict[bytes, str] = {}


class Refused(Exception):  # noqa: N818 -- short, since it is raised in each refusal
    """A span cannot be stored; the message is the reason."""


class _OddError(Exception):
    """A span is not written as encoders write it: a field twice, or out of order."""


class Lists(NamedTuple):
    """Spans as lists of values: `fixed` as in FIXED, `sparse` column -> (places, values)."""

    fixed: tuple[list[Any], ...]
    sparse: Sparse


class Walked(NamedTuple):
    """Some spans: those that can be stored, as lists or as logs of native code; why others cannot."""

    size: int
    spans: Lists | list[bytes]
    refused: dict[str, int]


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


def parts_in_python(data: bytes, at: int, end: int, most: int) -> Parts:
    """Take the ResourceSpans or ScopeSpans at data[at:end] apart, until more than `most` parts are too small."""
    around: list[bytes] = []
    held = array("Q")  # a list of pairs would take ten times the memory
    small = 0
    try:
        while at < end and small <= most:
            start = at
            if data[at] == _HELD_TAG and at + 1 < end and data[at + 1] < MORE:  # as most are, and quicker
                first = at + 2
                at = first + data[at + 1]
                is_held = True
            else:
                field = field_at(data, at, end)
                first, at = field.first, field.after
                is_held = field.number == _HELD and field.delimited
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


def walk_in_python(data: bytes, held: bytes, check: Check | None, most: int) -> Walked:
    """Take in spans of `data` until more than `most` are refused. `held` is as in Parts.

    `check` is asked before each span, unless protobuf has read them all.
    """
    walker = _Walker()
    refused: dict[str, int] = {}
    count = 0
    for first, after in pairs(held):
        try:
            if check is not None and (why := check(first, after)):
                raise Refused(why)  # noqa: TRY301 -- as `add` does
            walker.add(data, first, after)
        except Refused as error:  # noqa: PERF203
            refused[str(error)] = refused.get(str(error), 0) + 1
            count += 1
            if count > most:
                break
    return Walked(walker.size, Lists(walker.fixed(), walker.sparse()), refused)


class _Walker:
    """Collects spans as columns."""

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
        except (_OddError, BrokenError):  # the latter is a group, which protobuf still reads
            self._undo()
            plain, unknown = straightened(data[at:end])
            rest = [*self._read(plain, 0, len(plain)), unknown]
        except Refused:
            self._undo()
            raise
        kept = b"".join(rest)
        if self._repeated:
            kept = with_all_attributes(data[at:end], kept)
            self._repeated = False
        if kept:
            self._rest[0].append(self.size)
            self._rest[1].append(kept)
        self.size += 1

    def _read(self, data: bytes, at: int, end: int) -> list[bytes]:  # noqa: C901, PLR0912 -- a call per field costs
        """Append a span to the columns; return the fields that have no column."""
        if end - at < _IDS:
            raise _OddError
        trace_tag, trace_id, span_tag, span_id = _HEAD(data, at)
        if trace_tag != _TRACE_HEAD or span_tag != _SPAN_HEAD or trace_id == NO_TRACE or span_id == NO_SPAN:
            raise _OddError
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
                rest.append(data[at:after] if kept == pair else attribute(kept))
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
    if size == 2 and data[first] == _CODE and 0 < data[first + 1] < MORE:  # noqa: PLR2004 -- a code alone
        return data[first + 1], after
    rest.append(data[at:after])
    return status_code(data[first:after]), after


def status_code(status: bytes) -> int:
    """Return the code of a serialized Status."""
    return int(Status.FromString(status).code)


def attribute(pair: bytes) -> bytes:
    """Return a serialized KeyValue as an attribute of a span."""
    return bytes((_ATTRIBUTE,)) + varint(len(pair)) + pair


def straightened(data: bytes) -> tuple[bytes, bytes]:
    """Return a span as protobuf writes it, each field once and in order, and apart from it those not known.

    Raise Refused if its ids are no ids.
    """
    span = Span.FromString(data)
    if len(span.trace_id) != len(NO_TRACE) or span.trace_id == NO_TRACE:
        raise Refused(BAD_TRACE_ID)
    if len(span.span_id) != len(NO_SPAN) or span.span_id == NO_SPAN:
        raise Refused(BAD_SPAN_ID)
    plain = span.SerializeToString()
    for field in Span.DESCRIPTOR.fields:
        span.ClearField(field.name)  # type: ignore[arg-type]  # the stubs list the names
    unknown = span.SerializeToString()
    return (plain[len(unknown) :] if plain.startswith(unknown) else plain.removesuffix(unknown)), unknown


def with_all_attributes(data: bytes, rest: bytes) -> bytes:
    """Return a rest that has all attributes of the span at `data`."""
    kept = Span.FromString(rest)
    del kept.attributes[:]
    kept.attributes.extend(Span.FromString(data).attributes)
    return kept.SerializeToString()
