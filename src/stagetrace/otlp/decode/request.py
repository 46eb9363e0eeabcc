"""OTLP requests, as received, to columns of spans.

protobuf reads the request first, which checks it; then the columns are taken from the bytes. A request that protobuf
refuses, or that is large, is read span by span: the good ones are kept, in bounded memory.
"""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.native import NATIVE, PYTHON, Implementation, NativeSpanColumns
from stagetrace.otlp.decode.protobuf_wire import BrokenError, fields
from stagetrace.otlp.decode.spans import LARGEST, UNREADABLE, SpanColumns, pairs

SMALL: Final = 1024 * 1024  # larger requests are checked span by span: two bytes of protobuf unpack to a hundred
_MOST_REFUSED: Final = 1_000_000
_KEPT: Final = 256  # resources that are remembered
_RESOURCE_SPANS: Final = 1  # field of ExportTraceServiceRequest
TOO_SMALL: Final = "smaller than the two ids of a span"
_SERVICE_NAME: Final = "service.name"


class MalformedRequest(StoreError):  # noqa: N818 -- part of the interface
    """A request is no OTLP at all: none of it can be stored, and sending it again does not help."""


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
    spans: SpanColumns | NativeSpanColumns


def decode(request: bytes) -> Decoded:
    """Return the spans of one serialized ExportTraceServiceRequest.

    A span that cannot be stored is skipped and counted; its neighbours stay. Raise MalformedRequest where nothing
    could be read.
    """
    if NATIVE is None:
        return decode_by(PYTHON, request)
    try:
        return decode_by(NATIVE, request)
    except MalformedRequest:
        raise
    except Exception as error:  # noqa: BLE001 -- the Python implementation goes on in its place
        found = decode_by(PYTHON, request)  # raises if the fault is in the data
        log.once(
            "stagetrace._native.decoder",
            f"stagetrace's decoder in C failed ({type(error).__name__}: {str(error)[:200]}); Python goes on in its "
            "place.\nThis is a fault of stagetrace: please report it. STAGETRACE_NATIVE=0 does without the C part.",
        )
        return found


def decode_by(implementation: Implementation, request: bytes) -> Decoded:
    """Do as `decode`, by one of its implementations."""
    decoder = _Decoder(implementation, request, checked=len(request) <= SMALL and _is_message(request))
    decoder.read()
    spans, reasons = decoder.spans, decoder.reasons
    if UNREADABLE in reasons and not spans.size:
        message = f"the request is no OTLP: {UNREADABLE}\nsend a serialized ExportTraceServiceRequest"
        raise MalformedRequest(message)
    return Decoded(decoder.runs, spans.size, sum(reasons.values()), "; ".join(reasons) or None, spans)


class _TooManyError(Exception):
    """So many spans are bad that the remainder is not worth reading."""


class _Decoder:
    """Reads one request. `checked`: protobuf has read it, so each part of it is as it should be."""

    def __init__(self, implementation: Implementation, request: bytes, *, checked: bool) -> None:
        self.runs: list[Run] = []
        self.spans = implementation.columns()
        self.reasons: dict[str, int] = {}  # why spans were refused, and how many
        self._data = request
        self._parts = implementation.parts
        self._is_checked = checked
        self._refused = 0

    def read(self) -> None:
        """Take in the spans that can be stored."""
        try:
            for field in fields(self._data, 0, len(self._data)):
                if field.number == _RESOURCE_SPANS and field.delimited:
                    self._resource_spans(field.first, field.after)
        except BrokenError:
            self._refuse(UNREADABLE)
        except _TooManyError:
            self._count(f"more than {_MOST_REFUSED} bad spans, the remainder was not read", 1)

    def _resource_spans(self, at: int, end: int) -> None:
        around, scopes = self._opened(at, end, spans=False)
        header = _resource(around)
        if header is None:
            self._refuse(UNREADABLE)
            return
        for first, after in pairs(scopes):
            self._scope_spans(first, after, *header)

    def _scope_spans(self, at: int, end: int, service: str, resource: bytes) -> None:
        around, spans = self._opened(at, end, spans=True)
        scope = _serialized(ScopeSpans, around)
        if scope is None:
            self._refuse(UNREADABLE, sum(1 for _ in pairs(spans)))
            return
        before = self.spans.size
        most = _MOST_REFUSED - self._refused
        unreadable: dict[str, int] = {}
        if not self._is_checked:
            spans, unreadable = self._readable(spans, most)
        refused = self.spans.add(self._data, spans, most)
        if size := self.spans.size - before:
            self.runs.append(Run(size, (service, resource, scope)))
        for why, count in (*unreadable.items(), *refused.items()):
            self._refuse(why, count)

    def _readable(self, held: bytes, most: int) -> tuple[bytes, dict[str, int]]:
        """Return where the spans are that protobuf can read, and why others are refused, until more than `most` are."""
        readable = array("Q")
        refused: dict[str, int] = {}
        for first, after in pairs(held):
            if after - first > LARGEST:
                why = f"a span of more than {LARGEST >> 20} MiB"
            elif _is_message(self._data[first:after], Span):
                readable.extend((first, after))
                continue
            else:
                why = UNREADABLE
            refused[why] = refused.get(why, 0) + 1
            if sum(refused.values()) > most:
                break
        return readable.tobytes(), refused

    def _opened(self, at: int, end: int, *, spans: bool) -> tuple[bytes, bytes]:
        """Return a message without what it holds, and where that is: spans, or scopes with spans."""
        most = _MOST_REFUSED - self._refused
        found = self._parts(self._data, at, end, most)
        if found.small and (spans or found.small > most):  # a few empty scopes are nothing to speak of
            self._refuse(TOO_SMALL, found.small)
        if found.large:
            self._refuse(f"a resource or scope of more than {LARGEST >> 20} MiB")
        if found.broken:
            self._refuse(UNREADABLE)
        return found.around, found.held

    def _refuse(self, why: str, count: int = 1) -> None:
        self._count(why, max(1, count))
        if self._refused > _MOST_REFUSED:
            raise _TooManyError

    def _count(self, why: str, count: int) -> None:
        self.reasons[why] = self.reasons.get(why, 0) + count
        self._refused += count


def _is_message(data: bytes, kind: type[Message] = ExportTraceServiceRequest) -> bool:
    try:
        kind.FromString(data)
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
