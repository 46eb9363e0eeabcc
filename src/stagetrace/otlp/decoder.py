"""OTLP requests, as they came off the wire, to columns of spans.

protobuf reads the request first, which checks it; then `decoder_walk` takes the columns from the bytes. A request that
protobuf refuses, or that is large, is taken apart by hand, span by span: the good ones are kept, in bounded memory.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from stagetrace.errors import StoreError
from stagetrace.otlp.decoder_walk import Refused, Sparse, Walker
from stagetrace.otlp.wire import MORE, BrokenError, field_at, fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SMALL: Final = 1024 * 1024  # larger requests are checked span by span: two bytes of protobuf unpack to a hundred
LARGEST_SPAN: Final = 16 * 1024 * 1024
PIECE: Final = 4096  # spans
_MOST_REFUSED: Final = 1_000_000
_KEPT: Final = 256  # resources that are remembered
UNREADABLE: Final = "not readable as protobuf"
_RESOURCE_SPANS: Final = 1  # field of ExportTraceServiceRequest
_HELD: Final = 2  # field of ResourceSpans: its scopes; of ScopeSpans: its spans
_HELD_TAG: Final = 0x12
SMALLEST_SPAN: Final = 28  # bytes of two ids; nothing smaller holds a span
TOO_SMALL: Final = "smaller than the two ids of a span"
_SERVICE_NAME: Final = "service.name"


class MalformedRequest(StoreError):  # noqa: N818 - reads as what it says
    """Say that a request is no OTLP at all: nothing of it can be kept, and sending it again is of no use."""


class Run(NamedTuple):
    """Spans in a row that have service, resource and scope in common; both as serialized without what they hold."""

    length: int
    shared: tuple[str, bytes, bytes]


class Piece(NamedTuple):
    """Some spans as columns: `fixed` as in FIXED, `sparse` column -> (places, values)."""

    size: int
    fixed: tuple[list[Any], ...]
    runs: list[Run]
    sparse: Sparse


class Decoded(NamedTuple):
    """All of one request: its spans, and how many were refused and why."""

    pieces: list[Piece]
    accepted: int
    rejected: int
    reason: str | None


def decode(request: bytes) -> Decoded:
    """Return the spans of one serialized ExportTraceServiceRequest.

    A span that cannot be stored is left out and counted; its neighbours stay. Raise MalformedRequest where nothing
    could be read.
    """
    decoder = _Decoder(request, checked=len(request) <= SMALL and _is_message(request))
    pieces = list(decoder.pieces())
    accepted = sum(piece.size for piece in pieces)
    reasons = decoder.reasons
    if UNREADABLE in reasons and not accepted:
        message = f"the request is no OTLP: {UNREADABLE}\nsend a serialized ExportTraceServiceRequest"
        raise MalformedRequest(message)
    return Decoded(pieces, accepted, sum(reasons.values()), "; ".join(reasons) or None)


class _TooManyError(Exception):
    """Say that so many spans are bad that the remainder is not worth reading."""


class _Decoder:
    """Reads one request. `checked`: protobuf has read it, so each part of it is as it should be."""

    def __init__(self, request: bytes, *, checked: bool) -> None:
        self.reasons: dict[str, int] = {}  # why spans were refused, and how many
        self._data = request
        self._checked = checked
        self._refused = 0
        self._walker = Walker()
        self._runs: list[Run] = []

    def pieces(self) -> Iterator[Piece]:
        """Yield the spans that can be stored."""
        try:
            for field in fields(self._data, 0, len(self._data)):
                if field.number == _RESOURCE_SPANS and field.delimited:
                    yield from self._resource_spans(field.first, field.after)
        except BrokenError:
            self._refuse(UNREADABLE)
        except _TooManyError:
            self._count(f"more than {_MOST_REFUSED} bad spans, the remainder was not read", 1)
        yield from self._piece()

    def _resource_spans(self, at: int, end: int) -> Iterator[Piece]:
        around, scopes = self._opened(at, end, spans=False)
        header = _resource(around)
        if header is None:
            self._refuse(UNREADABLE)
            return
        for first, after in scopes:
            yield from self._scope_spans(first, after, *header)

    def _scope_spans(self, at: int, end: int, service: str, resource: bytes) -> Iterator[Piece]:
        around, spans = self._opened(at, end, spans=True)
        scope = _serialized(ScopeSpans, around)
        if scope is None:
            self._refuse(UNREADABLE, sum(1 for _ in spans))
            return
        shared = (service, resource, scope)
        walker, before = self._walker, self._walker.size
        for first, after in spans:
            if not self._checked and not self._is_span(first, after):
                continue
            try:
                walker.add(self._data, first, after)
            except Refused as refused:
                self._refuse(str(refused))
            if walker.size - before >= PIECE:
                self._runs.append(Run(walker.size - before, shared))
                yield from self._piece()
                walker, before = self._walker, 0
        if walker.size > before:
            self._runs.append(Run(walker.size - before, shared))

    def _piece(self) -> Iterator[Piece]:
        """Yield what the walker has, and begin another."""
        walker = self._walker
        if walker.size:
            yield Piece(walker.size, walker.fixed(), self._runs, walker.sparse())
        self._walker, self._runs = Walker(), []

    def _opened(self, at: int, end: int, *, spans: bool) -> tuple[bytes, Iterable[tuple[int, int]]]:
        """Return a message without what it holds, and where that is: each a span, or a scope with spans."""
        data = self._data
        around: list[bytes] = []
        starts, ends = array("Q"), array("Q")  # a list of pairs would take ten times the memory
        try:
            while at < end:
                start = at
                if data[at] == _HELD_TAG and at + 1 < end and data[at + 1] < MORE:  # as most are, and quicker
                    first = at + 2
                    at = first + data[at + 1]
                    held = True
                else:
                    field = field_at(data, at, end)
                    first, at = field.first, field.after
                    held = field.number == _HELD and field.delimited
                if at > end:
                    raise BrokenError(at)  # noqa: TRY301 -- as `field_at` does
                if held and at - first >= SMALLEST_SPAN:
                    starts.append(first)
                    ends.append(at)
                elif held:
                    if spans:  # else an empty scope, which is nothing to speak of
                        self._refuse(TOO_SMALL)
                elif at - start > LARGEST_SPAN:
                    self._refuse(f"a resource or scope of more than {LARGEST_SPAN >> 20} MiB")
                    return b"", ()
                else:
                    around.append(data[start:at])
        except BrokenError:
            self._refuse(UNREADABLE)
        return b"".join(around), zip(starts, ends, strict=True)

    def _is_span(self, first: int, after: int) -> bool:
        """Tell whether protobuf can read a span, and say so if not."""
        if after - first > LARGEST_SPAN:
            self._refuse(f"a span of more than {LARGEST_SPAN >> 20} MiB")
            return False
        if _serialized(Span, self._data[first:after]) is None:
            self._refuse(UNREADABLE)
            return False
        return True

    def _refuse(self, why: str, count: int = 1) -> None:
        self._count(why, max(1, count))
        if self._refused > _MOST_REFUSED:
            raise _TooManyError

    def _count(self, why: str, count: int) -> None:
        self.reasons[why] = self.reasons.get(why, 0) + count
        self._refused += count


def _is_message(request: bytes) -> bool:
    try:
        ExportTraceServiceRequest.FromString(request)
    except DecodeError:
        return False
    return True


def _serialized(kind: type[Message], data: bytes) -> bytes | None:
    """Return a message as protobuf writes it, so that equal ones are equal bytes, or None if it is none."""
    try:
        return kind.FromString(data).SerializeToString()
    except DecodeError:
        return None


_resources: dict[bytes, tuple[str, bytes]] = {}


def _resource(around: bytes) -> tuple[str, bytes] | None:
    """Return service and bytes of a ResourceSpans without spans, or None if it is none."""
    known = _resources.get(around)
    if known is not None:
        return known
    try:
        message = ResourceSpans.FromString(around)
    except DecodeError:
        return None
    attributes = message.resource.attributes
    service = next((item.value.string_value for item in attributes if item.key == _SERVICE_NAME), "")
    if len(_resources) >= _KEPT:
        _resources.clear()
    _resources[around] = service, message.SerializeToString()
    return _resources[around]
