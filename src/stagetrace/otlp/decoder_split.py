"""Broken or very large OTLP requests, taken apart by hand: what can be read is, in bounded memory.

protobuf refuses a whole message for one bad byte, and unpacks two bytes into a hundred. So such a request is cut along
its nested lengths into spans, and only few of them are parsed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SMALL: Final = 2 * 1024 * 1024  # larger requests are parsed bit by bit
LARGEST_SPAN: Final = 16 * 1024 * 1024
UNREADABLE: Final = "not readable as protobuf"
_AT_ONCE_BYTES: Final = 512 * 1024
_MOST_REFUSED: Final = 1_000_000  # after so many bad spans the remainder of a request is not looked at

_RESOURCE_SPANS: Final = 1  # in ExportTraceServiceRequest
_SCOPE_SPANS: Final = 2  # in ResourceSpans
_SPANS: Final = 2  # in ScopeSpans
_SERVICE_NAME: Final = "service.name"

Refused = list[tuple[int, str]]


class Part(NamedTuple):
    """Spans of one scope. `resource` and `scope` are the messages around them, serialized without what they hold."""

    service: str
    resource: bytes
    scope: bytes
    spans: Sequence[Span]
    has_unknown: bool  # whether there may be fields that this version does not know


class _Field(NamedTuple):
    """One field of a message: its number, its bytes with the tag, its value (empty unless length-delimited)."""

    number: int
    whole: memoryview
    value: memoryview


class _TooManyError(Exception):
    """Say that so many spans are bad that the remainder is not worth reading."""


class _Refusals:
    """Counts what is refused, up to a limit."""

    def __init__(self, refused: Refused) -> None:
        self._refused = refused
        self._budget = _MOST_REFUSED

    def add(self, count: int, why: str) -> None:
        self._refused.append((count, why))
        self._budget -= count
        if self._budget <= 0:
            raise _TooManyError


def split(request: bytes, refused: Refused) -> Iterator[Part]:
    """Yield what can be read of a request, some spans at a time; add to `refused` what cannot, and why."""
    refusals = _Refusals(refused)
    try:
        for field in _fields(memoryview(request), refusals):
            if field.number == _RESOURCE_SPANS:
                yield from _resource_spans(field.value, refusals)
    except _TooManyError:
        refused.append((1, f"more than {_MOST_REFUSED} bad spans, the remainder was not read"))


def _resource_spans(data: memoryview, refusals: _Refusals) -> Iterator[Part]:
    """Yield the parts of one serialized ResourceSpans."""
    header, scopes = _opened(data, _SCOPE_SPANS, refusals)
    try:
        around = ResourceSpans.FromString(header)
    except DecodeError:
        refusals.add(1, UNREADABLE)
        return
    service = next((item.value.string_value for item in around.resource.attributes if item.key == _SERVICE_NAME), "")
    resource = around.SerializeToString()
    for scope in scopes:
        scope_header, spans = _opened(scope, _SPANS, refusals)
        try:
            scope_bytes = ScopeSpans.FromString(scope_header).SerializeToString()
        except DecodeError:
            refusals.add(max(1, len(spans)), UNREADABLE)
            continue
        for group in _parsed(spans, refusals):
            yield Part(service, resource, scope_bytes, group, has_unknown=True)


def _opened(data: memoryview, number: int, refusals: _Refusals) -> tuple[bytes, list[memoryview]]:
    """Return a message without its field `number`, and the values of that field."""
    around = bytearray()
    held: list[memoryview] = []
    for field in _fields(data, refusals):
        if field.number != number:
            around += field.whole
        else:
            held.append(field.value)
    if len(around) > LARGEST_SPAN:
        refusals.add(max(1, len(held)), f"a resource or scope of more than {LARGEST_SPAN >> 20} MiB")
        return b"", []
    return bytes(around), held


def _parsed(spans: list[memoryview], refusals: _Refusals) -> Iterator[list[Span]]:
    """Yield the spans that can be parsed, in groups of bounded size."""
    group: list[Span] = []
    size = 0
    for data in spans:
        if len(data) > LARGEST_SPAN:
            refusals.add(1, f"a span of more than {LARGEST_SPAN >> 20} MiB")
            continue
        try:
            group.append(Span.FromString(bytes(data)))
        except DecodeError:
            refusals.add(1, UNREADABLE)
            continue
        size += len(data)
        if size >= _AT_ONCE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _fields(data: memoryview, refusals: _Refusals) -> Iterator[_Field]:
    """Yield the fields of a serialized message, up to where it breaks."""
    at = 0
    while at < len(data):
        start = at
        try:
            tag, at = _varint(data, at)
            kind = tag & 7
            value = data[0:0]
            if kind == _VARINT:
                _, at = _varint(data, at)
            elif kind in _WIDTHS:
                at += _WIDTHS[kind]
            elif kind == _DELIMITED:
                size, at = _varint(data, at)
                value = data[at : at + size]
                at += size
            else:
                raise ValueError(kind)
            if at > len(data):
                raise IndexError(at)
        except (ValueError, IndexError):
            refusals.add(1, UNREADABLE)
            return
        yield _Field(tag >> 3, data[start:at], value)


_VARINT: Final = 0
_DELIMITED: Final = 2
_WIDTHS: Final = {1: 8, 5: 4}


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends; IndexError where the data ends first, ValueError if too long."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError(number)
