"""Messages that protobuf refuses as a whole, read span by span: one bad span is no reason to lose the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from stagetrace.otlp.decode.depth import shallow
from stagetrace.otlp.decode.protobuf_wire import varint
from stagetrace.otlp.decode.spans import HELD, RESOURCES, pairs, parts_in_python

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T", ExportTraceServiceRequest, TracesData)
_ANY: Final = 2**62
# From the outermost message to a span: the tag under which each holds the next one.
_LEVELS: Final[tuple[tuple[type[Message], int], ...]] = (
    (TracesData, RESOURCES),
    (ResourceSpans, HELD),
    (ScopeSpans, HELD),
    (Span, 0),
)


class Unreadable:
    """The spans that are excluded since they cannot be read, each once. Their number is a text in `cuts`."""

    def __init__(self, cuts: list[str], where: str = "") -> None:
        """Say that the spans are `where`."""
        self._cuts = cuts
        self._where = where
        self._text = ""
        self._seen: set[int] = set()

    def add(self, span: bytes) -> None:
        """Count a serialized span."""
        self._seen.add(hash(span))
        text = f"{len(self._seen)} spans{self._where} cannot be read, and are excluded"
        if self._text:
            self._cuts[self._cuts.index(self._text)] = text
        else:
            self._cuts.append(text)
        self._text = text


def read(kind: type[T], data: bytes, unreadable: Unreadable) -> T:
    """Return a message, without spans that cannot be read, and attributes that nest too deep (`depth.shallow`).

    Raise DecodeError where no span can be read.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        excluded: list[bytes] = []
        message = kind.FromString(_good(data, 0, excluded))
        if not any(scope.spans for one in message.resource_spans for scope in one.scope_spans):
            raise
        for span in excluded:
            unreadable.add(span)
        return message


def _good(data: bytes, level: int, excluded: list[bytes]) -> bytes:
    """Return the readable part of a serialized message; append the spans in it that are not. Raise DecodeError."""
    kind, tag = _LEVELS[level]
    if kind is Span:
        return _readable(kind, data)
    around, held = _apart(data, tag)
    try:
        found = [_readable(kind, around)]
    except DecodeError:
        excluded += (span for one in held for span in _spans(one, level + 1))
        return b""
    for one in held:
        try:
            good = _good(one, level + 1, excluded)
        except DecodeError:  # noqa: PERF203 -- only of messages that are not readable as a whole
            excluded.append(one)
        else:
            found.append(b"%c%b%b" % (tag, varint(len(good)), good))
    return b"".join(found)


def _readable(kind: type[Message], data: bytes) -> bytes:
    """Return a message without what it holds as all can read it. Raise DecodeError where that is not possible."""
    found = data if kind is TracesData else shallow(kind, data)
    kind.FromString(found)
    return found


def _apart(data: bytes, tag: int) -> tuple[bytes, list[bytes]]:
    """Return a message without what it holds, and that. Raise DecodeError where it is cut off."""
    parts = parts_in_python(data, 0, len(data), _ANY, tag)
    if parts.broken or parts.large:
        raise DecodeError
    return parts.around, [data[first:after] for first, after in pairs(parts.held)]


def _spans(data: bytes, level: int) -> Iterator[bytes]:
    """Yield the spans in a message."""
    kind, tag = _LEVELS[level]
    if kind is Span:
        yield data
        return
    for one in _apart(data, tag)[1]:
        yield from _spans(one, level + 1)
