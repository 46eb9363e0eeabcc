"""OTLP requests, as received, to columns of spans.

protobuf reads the request first, which checks it; then the columns are taken from the bytes. A request that protobuf
refuses, or that is large, is read span by span: the good ones are kept, in bounded memory. The work is bounded, too: a
sender chooses how many messages its bytes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from stagetrace.errors import StoreError
from stagetrace.otlp.decode.arrow_table import table
from stagetrace.otlp.decode.spans import (
    EVER,
    HELD,
    LARGEST,
    RESOURCES,
    UNREADABLE,
    Decoded,
    Parts,
    Run,
    SpanColumns,
    pairs,
    take_apart,
)
from stagetrace.otlp.decode.to_otlp import request_of
from stagetrace.otlp.decode.wire import TOO_DEEP, holds_more, is_readable, varint

Check: TypeAlias = Callable[[], None]

SMALL: Final = 1024 * 1024  # larger requests are checked span by span: two bytes of protobuf unpack to a hundred
MOST_HOLDERS: Final = 100_000  # resources and scopes of a request
MOST_HELD: Final = 65_536  # messages in a span (attributes, events, links and their values), a resource or a scope
_UNCOUNTED: Final = 2 * MOST_HELD  # bytes that cannot hold more: each message has a tag and a length
_MOST_REFUSED: Final = 1_000_000
_ANY: Final = 2**62
_KEPT: Final = 256  # resources that are remembered
_LONGEST: Final = 65_536  # bytes of one that is
_PAIR: Final = 16  # bytes of a place in `Parts.held`
_STEP: Final = 1024 * _PAIR
TOO_SMALL: Final = "smaller than the two ids of a span"
TOO_MANY: Final = f"more than {MOST_HELD} attributes, events, links and values"
_SERVICE_NAME: Final = "service.name"


class MalformedRequest(StoreError):  # noqa: N818 -- part of the interface
    """A request is no OTLP at all: none of it can be stored, and sending it again does not help."""


class TooManyHolders(MalformedRequest):
    """A request has more than MOST_HOLDERS resources and scopes."""

    def __init__(self) -> None:
        """Make the message."""
        super().__init__(f"the request has more than {MOST_HOLDERS} resources and scopes; send smaller batches")


def decode(request: bytes, check: Check | None = None, latest: int = EVER) -> Decoded:
    """Return the spans of one serialized ExportTraceServiceRequest.

    A span that cannot be stored, or starts after `latest`, is skipped and counted; its neighbours stay. Raise
    MalformedRequest where nothing could be read.

    `check` is for requests that others send: it is called between steps, and ends the work by an error. Their resources
    and scopes are limited: raise TooManyHolders beyond.
    """
    decoder = _Decoder(request, check, latest)
    decoder.read()
    if UNREADABLE in decoder.reasons and not decoder.spans.size:
        message = f"the request is no OTLP: {UNREADABLE}\nsend a serialized ExportTraceServiceRequest"
        raise MalformedRequest(message)
    return decoder.decoded()


class _TooManyError(Exception):
    """So many spans are bad that the remainder is not worth reading."""


class _Decoder:
    """Reads one request."""

    def __init__(self, request: bytes, check: Check | None, latest: int) -> None:
        self.runs: list[Run] = []
        self.spans = SpanColumns()
        self.reasons: dict[str, int] = {}  # why spans were refused, and how many
        self.empty = 0
        self._data = request
        self._check = check
        self._latest = latest
        # Whether protobuf has read all of it, so each part is as it should be.
        self._is_checked = len(request) <= SMALL and is_readable(ExportTraceServiceRequest, request)
        self._refused = 0
        self._holders_left = _ANY if check is None else MOST_HOLDERS

    def read(self) -> None:
        """Take in the spans that can be stored."""
        try:
            _, resources = self._open(0, len(self._data), RESOURCES)
            for first, after in pairs(resources):
                self._resource_spans(first, after)
        except _TooManyError:
            self._count(f"more than {_MOST_REFUSED} bad spans, the remainder was not read", 1)

    def decoded(self) -> Decoded:
        """Return what was read."""
        reasons, spans = self.reasons, self.spans
        return Decoded(self.runs, spans.size, sum(reasons.values()), "; ".join(reasons) or None, spans, self.empty)

    def _resource_spans(self, at: int, end: int) -> None:
        around, scopes = self._open(at, end, HELD)
        refusal = self._refusal(ResourceSpans, around)
        for first, after in pairs(scopes):
            if refusal is None:
                self._scope_spans(first, after, *_resource(around))
            else:
                self._refuse(refusal, len(self._spans(first, after)[1]) // _PAIR)

    def _scope_spans(self, at: int, end: int, service: str, resource: bytes) -> None:
        around, spans, dense = self._spans(at, end)
        refusal = self._refusal(ScopeSpans, around)
        if refusal is not None:
            self._refuse(refusal, len(spans) // _PAIR)
            return
        shared = (service, resource, ScopeSpans.FromString(around).SerializeToString())
        for step in _steps(spans):
            self._stop_if_asked()
            self._take(step, shared, dense=dense)

    def _take(self, held: bytes, shared: tuple[str, bytes, bytes], *, dense: bool) -> None:
        """Take in some spans of a scope."""
        most = _MOST_REFUSED - self._refused
        spans, unfit = self._spans_at(held, dense=dense)
        before = self.spans.size
        refused = self.spans.add(spans, most, self._latest)
        if size := self.spans.size - before:
            self.runs.append(Run(size, shared))
        for why, count in (*unfit.items(), *refused.items()):
            self._refuse(why, count)

    def _spans_at(self, held: bytes, *, dense: bool) -> tuple[Iterable[Span], dict[str, int]]:
        """Return those of some spans that can be read, and why others are refused."""
        places = memoryview(held).cast("Q")
        begin, after, end = places[0], places[1], places[-1]
        if dense and end - begin <= _UNCOUNTED:  # protobuf reads many at once for a third of the time
            scope = b"%c%b%b" % (HELD, varint(after - begin), self._data[begin:end])
            if self._is_checked or is_readable(ScopeSpans, scope):
                return ScopeSpans.FromString(scope).spans, {}
        fit = []
        refused: dict[str, int] = {}
        for first, after in pairs(held):
            why = f"a span of more than {LARGEST >> 20} MiB" if after - first > LARGEST else None
            why = why or self._refusal(Span, self._data[first:after])
            if why is None:
                fit.append(Span.FromString(self._data[first:after]))
            else:
                refused[why] = refused.get(why, 0) + 1
        return fit, refused

    def _refusal(self, kind: type[Message], data: bytes) -> str | None:
        """Return why a message cannot be stored, None if it can."""
        if len(data) > _UNCOUNTED and holds_more(kind, data, MOST_HELD):
            return TOO_MANY
        if self._is_checked or is_readable(kind, data):
            return None
        try:
            kind.FromString(data)
        except DecodeError as error:
            if "MaxDepth" not in str(error):  # it nests even deeper
                return UNREADABLE
        return TOO_DEEP

    def _spans(self, at: int, end: int) -> tuple[bytes, bytes, bool]:
        """Return a scope without its spans, where these are, and whether nothing is between them."""
        self._stop_if_asked()
        found = take_apart(self._data, at, end, _MOST_REFUSED - self._refused, HELD)
        if found.small:
            self._refuse(TOO_SMALL, found.small)
        return *self._whole(found, is_empty=not found.held and not found.small), found.dense

    def _open(self, at: int, end: int, tag: int) -> tuple[bytes, bytes]:
        """Return a request without its resources, or one of these without its scopes, and where these are."""
        self._stop_if_asked()
        found = take_apart(self._data, at, end, self._holders_left, tag)
        self._holders_left -= found.small + len(found.held) // _PAIR
        if self._holders_left < 0:
            raise TooManyHolders
        self.empty += found.small
        return self._whole(found, is_empty=tag == HELD and not found.held and not found.small)

    def _whole(self, found: Parts, *, is_empty: bool) -> tuple[bytes, bytes]:
        """Return what was read of a message and where what it holds is; count what was not read, or is not there."""
        if found.large:
            self._refuse(f"a resource or scope of more than {LARGEST >> 20} MiB")
        elif found.broken:
            self._refuse(UNREADABLE)
        elif is_empty:
            self.empty += 1
        return found.around, found.held

    def _stop_if_asked(self) -> None:
        """Call `check`, which raises where the work is no longer wanted."""
        if self._check is not None:
            self._check()

    def _refuse(self, why: str, count: int = 1) -> None:
        self._count(why, max(1, count))
        if self._refused > _MOST_REFUSED:
            raise _TooManyError

    def _count(self, why: str, count: int) -> None:
        self.reasons[why] = self.reasons.get(why, 0) + count
        self._refused += count


def _steps(held: bytes) -> Iterator[bytes]:
    """Yield the places of spans in steps: at most 1024 spans, of _UNCOUNTED bytes, or a single one."""
    for at in range(0, len(held), _STEP):
        yield from _halve(held[at : at + _STEP])


def _halve(held: bytes) -> Iterator[bytes]:
    places = memoryview(held).cast("Q")
    if len(held) == _PAIR or places[-1] - places[0] <= _UNCOUNTED:
        yield held
        return
    middle = len(held) // _PAIR // 2 * _PAIR
    yield from _halve(held[:middle])
    yield from _halve(held[middle:])


_resources: dict[bytes, tuple[str, bytes]] = {}


def _resource(around: bytes) -> tuple[str, bytes]:
    """Return service and bytes of a ResourceSpans without spans."""
    known = _resources.get(around)
    if known is not None:
        return known
    message = ResourceSpans.FromString(around)
    attributes = message.resource.attributes
    service = next((item.value.string_value for item in attributes if item.key == _SERVICE_NAME), "")
    found = service, message.SerializeToString()
    if len(around) <= _LONGEST:
        if len(_resources) >= _KEPT:
            _resources.clear()
        _resources[around] = found
    return found


# --- Messages from elsewhere that protobuf refuses as a whole: one bad span is no reason to lose the others.

T = TypeVar("T", ExportTraceServiceRequest, TracesData)


class Unreadable:
    """The spans that are excluded since they cannot be read, each once. Their number is a text in `cuts`."""

    def __init__(self, cuts: list[str], where: str = "") -> None:
        """Say that the spans are `where`."""
        self._cuts = cuts
        self._where = where
        self._text = ""
        self._counts: dict[int, int] = {}  # by message, since a search may read one more than once

    def add(self, message: bytes, spans: int = 1) -> None:
        """Count the spans of a serialized message that are excluded."""
        self._counts[hash(message)] = spans
        text = f"{sum(self._counts.values())} spans{self._where} cannot be read, and are excluded"
        if self._text:
            self._cuts[self._cuts.index(self._text)] = text
        else:
            self._cuts.append(text)
        self._text = text


def read(kind: type[T], data: bytes, unreadable: Unreadable) -> T:
    """Return a message, without spans that cannot be stored where it is not readable as a whole.

    Raise DecodeError where it is cut off, or no span can be read.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        if take_apart(data, 0, len(data), _ANY, RESOURCES).broken:
            raise
        decoder = _Decoder(data, None, EVER)
        decoder.read()
        if not decoder.spans.size:
            raise
        unreadable.add(data, sum(decoder.reasons.values()))
        return kind.FromString(request_of(table([decoder.decoded()]).to_pylist()).SerializeToString())
