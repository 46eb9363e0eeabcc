"""Encode spans as OTLP, some five times cheaper under the GIL than message by message, to the same message.

The official encoder is the oracle of the tests.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import getrandbits
from typing import TYPE_CHECKING, Any

from stagetrace.request.stages import coalesced, totals_of
from stagetrace.semconv import ML_STAGE, stage_total_ms
from stagetrace.system.native import native
from stagetrace.tracing.span import Link

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from stagetrace.request.details import Detail
    from stagetrace.request.own_span import Identity
    from stagetrace.request.stages import Segment, Stages
    from stagetrace.tracing.span import Event
    from stagetrace.tracing.span_context import SpanContext, TraceState

_logger = logging.getLogger(__name__)

# Tags of opentelemetry/proto/trace/v1/trace.proto: field number << 3 | wire type.
_TIMES = struct.Struct("<BQBQ")  # start_time_unix_nano (7), end_time_unix_nano (8): fixed64
_TIME = struct.Struct("<BQ")
_DOUBLE = struct.Struct("<Bd")
_DOUBLE_ALONE = struct.Struct("<d")
_FLAGS = struct.Struct("<BI")
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
# flags (16): fixed32, whose tag takes two bytes
_NO_REMOTE_PARENT = struct.pack("<HI", 0x0185, _HAS_IS_REMOTE)
_REMOTE_PARENT = struct.pack("<HI", 0x0185, _HAS_IS_REMOTE | _IS_REMOTE)
_INT64 = range(-(1 << 63), 1 << 63)
_KINDS = {0: b"\x30\x01", 1: b"\x30\x02", 2: b"\x30\x03", 3: b"\x30\x04", 4: b"\x30\x05"}  # the API's numbers, plus one
_ONE_BYTE = [bytes([number]) for number in range(128)]
_LONGEST_CACHED = 128
# span_id (2), whose tag and length come first, then both times: what differs from one stage span to the next
_STAGE = struct.Struct("<2s8sBQBQ")


class Block:
    """Attributes that many spans share, with their bytes, which are made once."""

    __slots__ = ("attributes", "encoded")

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = attributes
        self.encoded = encode_pairs(b"\x4a", attributes)


def encode_spans(spans: Sequence[Any]) -> bytes:
    """Return the serialized request for the export of these spans, which may be an SDK's."""
    parts: dict[Any, dict[Any, list[bytes]]] = {}
    known: dict[tuple[int, int], list[bytes]] = {}
    for span in spans:
        resource, scope = span.resource, span.instrumentation_scope or None
        # By identity first: comparing resources means serializing each to JSON.
        encoded = known.get((id(resource), id(scope)))
        if encoded is None:
            encoded = parts.setdefault(resource, {}).setdefault(scope, [])
            known[id(resource), id(scope)] = encoded
        encoded.append(encode_span(span))
    return b"".join(resource_spans(resource, scopes) for resource, scopes in parts.items())


def encode_span(span: Any) -> bytes:
    """Return one span, of ours or of an SDK, as it stands in its ScopeSpans, tag and length included."""
    return encode_field(b"\x12", _span(span))


def stage_head(context: SpanContext) -> bytes:
    """Return the bytes with which each stage span below the entry span of this context begins."""
    trace_id, span_id, _, _, state, _ = context
    head = b"\x0a\x10" + trace_id.to_bytes(16, "big") + b"\x22\x08" + span_id.to_bytes(8, "big")
    return head + _trace_state(state) if state else head


def stage_tail(segment: Segment, mark: bytes) -> bytes:
    """Return what a stage span ends with; `mark` are encoded attributes that every stage span of the request has."""
    if not segment.attributes and not segment.coalesced:
        return _stage(segment.stage) + mark
    parts = [_stage(segment.stage), mark]
    _append_attributes(parts, segment.attributes)
    if segment.coalesced:
        _append_attributes(parts, segment.visits())
    return b"".join(parts)


def encode_stages(segments: Sequence[Segment], head: bytes, mark: bytes) -> bytes:
    """Return the stage spans of one request, as `encode_span` would return them.

    `head` is `stage_head`; `mark` as in `stage_tail`.
    """
    ids = getrandbits(64 * len(segments)).to_bytes(8 * len(segments), "little")  # as the SDK's unique, not secret
    size = len(head) + _STAGE.size
    parts: list[bytes] = []
    for number, segment in enumerate(segments):
        context = segment.context
        span_id = ids[8 * number : 8 * number + 8] if context is None else context.span_id.to_bytes(8, "big")
        tail = stage_tail(segment, mark)
        if segment.link is not None:
            tail += encode_link(segment.link)
        times = _STAGE.pack(b"\x12\x08", span_id, 0x39, segment.start, 0x41, segment.end)
        parts += span_prefix(size + len(tail)), head, times, tail
    return b"".join(parts)


def encode_details(details: Sequence[Detail], mark: bytes) -> bytes:
    """Return detail spans as `encode_span` would return them; `mark` as in `stage_tail`."""
    parts: list[bytes] = []
    for name, parent, start, end, attributes in details:
        head = stage_head(parent)
        tail = [_name(name), _KINDS[0], _NO_REMOTE_PARENT, b"\x7a\x00", mark]
        _append_attributes(tail, attributes)
        span_id = (getrandbits(64) or 1).to_bytes(8, "big")
        body = b"".join((head, _STAGE.pack(b"\x12\x08", span_id, 0x39, start, 0x41, end), *tail))
        parts += span_prefix(len(body)), body
    return b"".join(parts)


def entry_rest(name: str, kind: int, blocks: Sequence[Block], *, failed: bool) -> bytes:
    """Return what all entry spans of one kind of request have in common: by route, by status, by verdict."""
    status = b"\x7a\x02\x18\x02" if failed else b"\x7a\x00"
    return _name(name) + _KINDS[kind] + b"".join([block.encoded for block in blocks]) + status


def encode_entry(
    identity: Identity,
    times: tuple[int, int],
    rest: bytes,
    attributes: Mapping[str, Any],
    totals: Mapping[str, int],
    model: Mapping[str, Any],
) -> bytes:
    """Return an entry span as `encode_span` would.

    `times` are its start and end, `rest` is `entry_rest` and whatever else is encoded already. It has `attributes` and
    those of `model`, and the `totals` of its stages in nanoseconds.
    """
    (trace_id, span_id, _, _, state, _), parent, _ = identity
    span = [b"\x0a\x10", trace_id.to_bytes(16, "big"), b"\x12\x08", span_id.to_bytes(8, "big"), rest]
    span.append(_TIMES.pack(0x39, times[0], 0x41, times[1]))
    if state:
        span.append(_trace_state(state))
    if parent is None:
        span.append(_NO_REMOTE_PARENT)
    else:
        span += b"\x22\x08", parent.span_id.to_bytes(8, "big"), _REMOTE_PARENT
    for stage, total in totals.items():
        span += _total_head(stage), _DOUBLE_ALONE.pack(total / 1e6)
    if model:
        _append_attributes(span, model)
    _append_attributes(span, attributes)
    body = b"".join(span)
    return span_prefix(len(body)) + body


def encode_notes(notes: Any, taken: Container[str]) -> bytes:
    """Return what was set on an entry span besides: attributes, events, links, the status if there is one.

    Attributes in `taken` are on the span already.
    """
    parts: list[bytes] = []
    _append_attributes(parts, {key: value for key, value in (notes.attributes or {}).items() if key not in taken})
    _append_rest(parts, notes)
    return b"".join(parts)


def encode_events(events: Iterable[Event]) -> bytes:
    """Return events of a span, as a part of it."""
    return b"".join([encode_field(b"\x5a", _event(event)) for event in events])


@lru_cache(maxsize=1024)
def _total_head(stage: str) -> bytes:
    return _double_head(stage_total_ms(stage))


@lru_cache(maxsize=1024)
def _stage(name: str) -> bytes:
    """Return what all spans of one stage have in common."""
    return _name(name) + _KINDS[0] + _NO_REMOTE_PARENT + _cached_pair(ML_STAGE, name) + b"\x7a\x00"


@lru_cache(maxsize=2048)
def span_prefix(size: int) -> bytes:
    """Return the tag and length before a span of `size` bytes."""
    return b"\x12" + encode_varint(size)


def _trace_state(state: TraceState | None) -> bytes:
    return encode_text(b"\x1a", ",".join([f"{key}={value}" for key, value in state.items()])) if state else b""


def resource_spans(resource: Any, scopes: Mapping[Any, list[bytes]]) -> bytes:
    """Return encoded spans, by scope, as they stand in a request."""
    parts = [encode_field(b"\x0a", encode_pairs(b"\x0a", resource.attributes))]
    for scope, spans in scopes.items():
        around = encode_field(b"\x0a", _scope(scope)), encode_text(b"\x1a", _schema_url(scope))
        parts += b"\x12", encode_varint(sum(map(len, spans)) + sum(map(len, around))), around[0], *spans, around[1]
    parts.append(encode_text(b"\x1a", resource.schema_url))
    # Joined once: each copy of a whole batch is time in which the service's threads stand still.
    return b"".join((b"\x0a", encode_varint(sum(map(len, parts))), *parts))


def _schema_url(scope: Any) -> str | None:
    return scope.schema_url if scope else None


def _scope(scope: Any) -> bytes:
    if scope is None:
        return b""
    return (
        encode_text(b"\x0a", scope.name) + encode_text(b"\x12", scope.version) + encode_pairs(b"\x1a", scope.attributes)
    )


def _span(span: Any) -> bytes:
    context: Any = span.context
    parent = span.parent
    parts = [
        b"\x0a\x10",
        context.trace_id.to_bytes(16, "big"),
        b"\x12\x08",
        context.span_id.to_bytes(8, "big"),
        _name(span.name),
        _KINDS[span.kind.value],
        _TIMES.pack(0x39, span.start_time, 0x41, span.end_time),
    ]
    if parent:
        parts += b"\x22\x08", parent.span_id.to_bytes(8, "big")
    if parent and parent.is_remote:
        parts.append(_REMOTE_PARENT)
    else:
        parts.append(_NO_REMOTE_PARENT)
    attributes = span.attributes
    if attributes:
        _append_attributes(parts, attributes)
    if context.trace_state:
        parts.append(_trace_state(context.trace_state))
    _append_rest(parts, span)
    return b"".join(parts)


def encode_link(context: SpanContext) -> bytes:
    """Return a span's link to another one, without attributes."""
    return encode_field(b"\x6a", _link(Link(context)))


def encode_attributes(attributes: Mapping[str, Any]) -> bytes:
    """Return a span's attributes; what cannot be sent is logged and left out."""
    parts: list[bytes] = []
    _append_attributes(parts, attributes)
    return b"".join(parts)


def _append_attributes(parts: list[bytes], attributes: Mapping[str, Any]) -> None:
    """As `encode_pairs` for a span's own: the one loop that runs for each attribute of each span."""
    for key, value in attributes.items():
        kind = type(value)
        try:
            if (kind is str and len(value) <= _LONGEST_CACHED) or kind is bool or kind is int:
                parts.append(_cached_pair(key, value))
            elif kind is float:
                parts += _double_head(key), _DOUBLE_ALONE.pack(value)
            else:
                parts.append(_pair(b"\x4a", key, value))
        except Exception as error:
            # As the official encoder does: one attribute that cannot be sent does not cost the span.
            _logger.exception("Failed to encode key %s: %s", key, error)  # noqa: TRY401 -- its words


def _append_rest(parts: list[bytes], span: Any) -> None:
    """Append what most spans have none of, and the status, which is there even where it is empty."""
    events = span.events
    if events:
        parts.append(encode_events(events))
    links = span.links
    if links:
        parts.extend([encode_field(b"\x6a", _link(link)) for link in links])
    if span.dropped_attributes:
        parts.append(_count(b"\x50", span.dropped_attributes))
    if span.dropped_events:
        parts.append(_count(b"\x60", span.dropped_events))
    if span.dropped_links:
        parts.append(_count(b"\x70", span.dropped_links))
    status: Any = span.status
    if status is not None:
        code, text = status.status_code.value, status.description
        parts.append(_status(code, text) if code or text else b"\x7a\x00")


def _status(code: int, description: str | None) -> bytes:
    return encode_field(b"\x7a", encode_text(b"\x12", description) + (b"\x18" + _ONE_BYTE[code] if code else b""))


def _event(event: Event) -> bytes:
    return (
        _TIME.pack(0x09, event.timestamp)
        + encode_text(b"\x12", event.name)
        + encode_pairs(b"\x1a", event.attributes)
        + _count(b"\x20", event.dropped_attributes)
    )


def _link(link: Link) -> bytes:
    return b"".join(
        (
            b"\x0a\x10" + link.context.trace_id.to_bytes(16, "big"),
            b"\x12\x08" + link.context.span_id.to_bytes(8, "big"),
            encode_pairs(b"\x22", link.attributes),
            _count(b"\x28", link.dropped_attributes),
            _FLAGS.pack(0x35, _flags(link.context)),
        )
    )


def _flags(context: SpanContext | None) -> int:
    return _HAS_IS_REMOTE | _IS_REMOTE if context and context.is_remote else _HAS_IS_REMOTE


def encode_pairs(tag: bytes, attributes: Mapping[str, Any] | None) -> bytes:
    """Return attributes, each with the tag of its field; what cannot be sent is logged and left out."""
    parts = []
    for key, value in (attributes or {}).items():
        try:
            parts.append(_pair(tag, key, value))
        except Exception as error:  # noqa: PERF203
            _logger.exception("Failed to encode key %s: %s", key, error)  # noqa: TRY401
    return b"".join(parts)


def _pair(tag: bytes, key: str, value: Any) -> bytes:
    return encode_field(tag, encode_field(b"\x0a", key.encode()) + encode_field(b"\x12", _value(value)))


@lru_cache(maxsize=4096, typed=True)
def _cached_pair(key: str, value: str | bool | int) -> bytes:
    """Return a span's attribute. Bounded and shared: a service's names and values repeat.

    Only for types in which equal values mean the same: 0.0 == -0.0 and (1,) == (True,).
    """
    return _pair(b"\x4a", key, value)


@lru_cache(maxsize=1024)
def _double_head(key: str) -> bytes:
    """Return a span's attribute up to its eight bytes of double."""
    return _pair(b"\x4a", key, 0.0)[:-8]


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return encode_text(b"\x2a", name)


def _value(value: Any) -> bytes:  # noqa: PLR0911 -- one for each type
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, str):
        return encode_field(b"\x0a", value.encode())
    if isinstance(value, int):
        if value not in _INT64:
            raise ValueError(f"Value out of range: {value}")
        return b"\x18" + encode_varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return _DOUBLE.pack(0x21, value)
    if isinstance(value, bytes):
        return encode_field(b"\x3a", value)
    if isinstance(value, Sequence):
        return encode_field(b"\x2a", b"".join([encode_field(b"\x0a", _value(item)) for item in value]))
    if isinstance(value, Mapping):
        return encode_field(b"\x32", b"".join([_pair(b"\x0a", str(key), item) for key, item in value.items()]))
    raise TypeError(f"Invalid type {type(value)} of value {value}")


def encode_text(tag: bytes, text: str | None) -> bytes:
    """Return a field of text; nothing where that is empty."""
    return encode_field(tag, text.encode()) if text else b""


def _count(tag: bytes, count: int) -> bytes:
    return tag + encode_varint(count) if count else b""


def encode_field(tag: bytes, body: bytes) -> bytes:
    """Return a field of bytes, or of a message."""
    size = len(body)
    return tag + (_ONE_BYTE[size] if size < 128 else encode_varint(size)) + body  # noqa: PLR2004 -- one byte holds 7 bits


def encode_varint(number: int) -> bytes:
    """Return a number that is not negative in groups of seven bits."""
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# --- All spans of a request as bytes, when it ends: in C where a compiler was there (docs/decisions/011).


def _encode_request(
    stages: Stages,
    identity: Identity,
    times: tuple[int, int],
    mark: bytes,
    rest: bytes,
    attributes: Mapping[str, Any],
    model: Mapping[str, Any],
    cuts: Sequence[int],
) -> tuple[bytes, int]:
    """Return all spans of one request, encoded, the entry span last, and how many they are.

    `identity` and `times` (start and end) are the entry span's, which has `rest` (see `encode_entry`), `attributes`,
    those of `model`, and the totals of its stages; `mark` is on each stage (see `encode_stages`), and no visits are
    summed across `cuts` (see `coalesced`).
    """
    few = coalesced(stages.segments(), cuts)
    spans = encode_stages(few, stage_head(identity.context), mark)
    return spans + encode_entry(identity, times, rest, attributes, totals_of(few), model), len(few) + 1


_in_c = native("marks") and native("encoder")
NATIVE = _in_c is not None
encode_request = _encode_request if _in_c is None else _in_c.encode_request
