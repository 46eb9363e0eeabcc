"""OTLP requests, as they came off the wire, to columns of spans.

Fast because each field is read for all spans of a scope at once and because what has no column is kept as the bytes
that it has on the wire: `rest`, a serialized Span that holds just what the columns do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from stagetrace import semconv
from stagetrace.errors import StoreError
from stagetrace.otlp.decoder_columns import DOUBLE, INT, OTHER_MS, REST, TYPED
from stagetrace.otlp.decoder_split import SMALL, UNREADABLE, Part, split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
_NO_TRACE: Final = bytes(TRACE_ID_BYTES)
_NO_SPAN: Final = bytes(SPAN_ID_BYTES)
LATEST_NS: Final = 2**63 - 1  # 2262-04-11; a later time is kept in `rest`
_ATTRIBUTE_TAG: Final = b"\x4a"  # field 9 of Span, length-delimited
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
    sparse: dict[str, tuple[list[int], list[Any]]]


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
    pieces: list[Piece] = []
    refused: list[tuple[int, str]] = []
    for part in _parts(request, refused):
        spans = _valid(part.spans, refused)
        if spans:
            pieces.append(_piece(spans, part))
    accepted = sum(piece.size for piece in pieces)
    rejected = sum(count for count, _ in refused)
    if rejected and not accepted and any(why == UNREADABLE for _, why in refused):
        message = f"the request is no OTLP: {UNREADABLE}\nsend a serialized ExportTraceServiceRequest"
        raise MalformedRequest(message)
    return Decoded(pieces, accepted, rejected, "; ".join(dict.fromkeys(why for _, why in refused)) or None)


def _parts(request: bytes, refused: list[tuple[int, str]]) -> Iterator[Part]:
    """Yield the scopes of a request with their spans; a large or broken request bit by bit."""
    if len(request) <= SMALL:
        message = ExportTraceServiceRequest()
        try:
            message.ParseFromString(request)
        except DecodeError:
            pass
        else:
            yield from _scopes(message)
            return
    yield from split(request, refused)


def _scopes(message: ExportTraceServiceRequest) -> Iterator[Part]:
    known = message.ByteSize()
    has_unknown = _has_unknown(message, known)
    for resource_spans in message.resource_spans:
        scopes = list(resource_spans.scope_spans)
        service = next(
            (item.value.string_value for item in resource_spans.resource.attributes if item.key == _SERVICE_NAME), ""
        )
        resource_spans.ClearField("scope_spans")
        resource = resource_spans.SerializeToString()
        for scope_spans in scopes:
            spans = list(scope_spans.spans)
            scope_spans.ClearField("spans")
            yield Part(service, resource, scope_spans.SerializeToString(), spans, has_unknown)


def _has_unknown(message: ExportTraceServiceRequest, size: int) -> bool:
    """Tell whether a newer OTLP's fields are inside."""
    known = ExportTraceServiceRequest()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != size


def _valid(spans: Sequence[Span], refused: list[tuple[int, str]]) -> Sequence[Span]:
    """Return the spans whose ids are ids, and count the others."""
    traces = {span.trace_id for span in spans}
    ids = [span.span_id for span in spans]
    parents = {len(span.parent_span_id) for span in spans}
    if (
        {len(trace) for trace in traces} == {TRACE_ID_BYTES}
        and _NO_TRACE not in traces
        and set(map(len, ids)) == {SPAN_ID_BYTES}
        and _NO_SPAN not in ids
        and parents <= {0, SPAN_ID_BYTES}
    ):
        return spans
    good = []
    for span in spans:
        wrong = _wrong(span)
        if wrong is None:
            good.append(span)
        else:
            refused.append((1, wrong))
    return good


def _wrong(span: Span) -> str | None:
    """Return why a span cannot be stored, or None."""
    if len(span.trace_id) != TRACE_ID_BYTES or span.trace_id == _NO_TRACE:
        return "a trace id is 16 bytes, not all zero"
    if len(span.span_id) != SPAN_ID_BYTES or span.span_id == _NO_SPAN:
        return "a span id is 8 bytes, not all zero"
    if len(span.parent_span_id) not in (0, SPAN_ID_BYTES):
        return "a parent span id is 8 bytes or none"
    return None


def _piece(spans: Sequence[Span], part: Part) -> Piece:
    """Return the columns of valid spans of one scope."""
    starts = [span.start_time_unix_nano for span in spans]
    ends = [span.end_time_unix_nano for span in spans]
    parents: list[bytes | None] = [span.parent_span_id or None for span in spans]
    statuses = [span.status.code if span.HasField("status") else None for span in spans]
    odd = set(range(len(spans))) if part.has_unknown else _odd(spans)
    if _NO_SPAN in parents:
        odd |= {at for at, parent in enumerate(parents) if parent == _NO_SPAN}
        parents = [None if parent == _NO_SPAN else parent for parent in parents]
    if max(starts) > LATEST_NS or max(ends) > LATEST_NS:
        odd |= {at for at in range(len(spans)) if starts[at] > LATEST_NS or ends[at] > LATEST_NS}
        starts = [min(start, LATEST_NS) for start in starts]
        ends = [min(end, LATEST_NS) for end in ends]
    fixed = (
        [span.trace_id for span in spans],
        [span.span_id for span in spans],
        parents,
        [span.name for span in spans],
        [span.kind for span in spans],
        statuses,
        starts,
        ends,
        [span.flags for span in spans],
    )
    run = Run(len(spans), (part.service, part.resource, part.scope))
    return Piece(len(spans), fixed, [run], _sparse(spans, odd))


def _odd(spans: Sequence[Span]) -> set[int]:
    """Return the places of spans that have more than columns and attributes."""
    return {
        at
        for at, span in enumerate(spans)
        if span.events
        or span.links
        or span.trace_state
        or span.dropped_attributes_count
        or span.dropped_events_count
        or span.dropped_links_count
        or span.status.message
    }


def _sparse(spans: Sequence[Span], odd: set[int]) -> dict[str, tuple[list[int], list[Any]]]:
    """Return the columns that not every span has: typed attributes, and the rest."""
    sparse: dict[str, tuple[list[int], list[Any]]] = {}
    for at, span in enumerate(spans):
        left = _typed_attributes(span.attributes, at, sparse)
        if left or at in odd:
            places, values = sparse.setdefault(REST, ([], []))
            places.append(at)
            values.append(_rest(span, left) if at in odd else _joined(left))
            _add_other_stages(sparse, at, left)
    return sparse


def _typed_attributes(
    attributes: Sequence[KeyValue], at: int, sparse: dict[str, tuple[list[int], list[Any]]]
) -> list[KeyValue]:
    """Put the attributes of the span at place `at` into their columns; return those that a column does not tell."""
    left: list[KeyValue] = []
    for attribute in attributes:
        typed = TYPED.get(attribute.key)
        if typed is None:
            left.append(attribute)
            continue
        column, wanted = typed
        value = attribute.value
        kind = value.WhichOneof("value")
        if kind != wanted:
            left.append(attribute)
            if kind != INT or wanted != DOUBLE:
                continue
            found = float(value.int_value)
        else:
            found = getattr(value, wanted)
        places, values = sparse.get(column) or sparse.setdefault(column, ([], []))
        if places and places[-1] == at:  # the key comes again: the last one counts, and all are kept
            values[-1] = found
            left[:] = attributes
        else:
            places.append(at)
            values.append(found)
    return left if len(left) <= len(attributes) else list(attributes)


def _add_other_stages(sparse: dict[str, tuple[list[int], list[Any]]], at: int, left: Sequence[KeyValue]) -> None:
    """Sum the totals of stages that have no column."""
    totals = [
        attribute.value.double_value
        for attribute in left
        if attribute.key not in TYPED and semconv.stage_of_total(attribute.key) and attribute.value.HasField(DOUBLE)
    ]
    if totals:
        places, values = sparse.setdefault(OTHER_MS, ([], []))
        places.append(at)
        values.append(sum(totals))


def _joined(attributes: Iterable[KeyValue]) -> bytes:
    """Return a serialized Span that has these attributes and nothing else."""
    pieces: list[bytes] = []
    for attribute in attributes:
        encoded = attribute.SerializeToString()
        pieces += (_ATTRIBUTE_TAG, varint(len(encoded)), encoded)
    return b"".join(pieces)


def _rest(span: Span, left: Iterable[KeyValue]) -> bytes:
    """Return a serialized Span that has all that the columns do not tell, fields of a newer OTLP included."""
    kept = list(left)
    rest = Span()
    rest.CopyFrom(span)
    for field in ("trace_id", "span_id", "name", "kind", "flags", "attributes"):
        rest.ClearField(field)
    if any(span.parent_span_id):
        rest.ClearField("parent_span_id")
    for field in ("start_time_unix_nano", "end_time_unix_nano"):
        if getattr(span, field) <= LATEST_NS:
            rest.ClearField(field)
    if span.HasField("status"):
        rest.status.ClearField("code")
        if not rest.status.ByteSize():
            rest.ClearField("status")
    rest.attributes.extend(kept)
    return rest.SerializeToString()


def varint(number: int) -> bytes:
    """Return a number as protobuf writes lengths."""
    if number < 0x80:
        return _SHORT[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SHORT: Final = [bytes((number,)) for number in range(0x80)]
