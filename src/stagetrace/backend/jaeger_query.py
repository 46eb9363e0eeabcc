"""Queries of `jaeger.api_v3`, run on the local store, for every transport; values and traces as Jaeger has them."""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData

from stagetrace.errors import StagetraceError
from stagetrace.store.local.search import Search

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    from stagetrace.store.local import LocalReader, LocalStore

# --- Jaeger's changes to a trace that is not requested raw: for people to look at, not for counting.
#
# The same adjustments as in Jaeger 2.13 (`cmd/query/app/querysvc/v2/adjuster`), in its order. Clock skew, which it
# corrects only where configured to, is neither corrected nor remarked on here: times stay as recorded.

WARNINGS: Final = "@jaeger@warnings"
_ADDRESSES: Final = frozenset({"ip", "peer.ipv4"})
_LIBRARY: Final = frozenset(
    {
        "telemetry.sdk.language",
        "telemetry.sdk.name",
        "telemetry.sdk.version",
        "telemetry.distro.name",
        "telemetry.distro.version",
    }
)
_SPAN_ID_BYTES: Final = 8


def adjusted(traces: TracesData) -> TracesData:
    """Return `traces`, changed in place."""
    _tell_apart(traces)
    _warn_of_gaps(traces)
    for resource_spans in traces.resource_spans:
        _spell_addresses(resource_spans.resource.attributes)
        for span in _spans(resource_spans):
            _spell_addresses(span.attributes)
            _move_library(span, resource_spans)
            _drop_empty_links(span)
    return traces


def _spans(resource_spans: ResourceSpans) -> Iterator[Span]:
    for scope in resource_spans.scope_spans:
        yield from scope.spans


def _tell_apart(traces: TracesData) -> None:
    """Give server spans that share the id of a client span (Zipkin's way) one of their own, beneath that one."""
    spans = [span for resource_spans in traces.resource_spans for span in _spans(resource_spans)]
    clients = {span.span_id for span in spans if span.kind == Span.SPAN_KIND_CLIENT}
    used = {span.span_id for span in spans}
    renamed: dict[bytes, bytes] = {}
    number = 0
    for span in spans:
        if span.kind == Span.SPAN_KIND_SERVER and span.span_id in clients:
            number += 1
            while (fresh := number.to_bytes(_SPAN_ID_BYTES, "big")) in used:
                number += 1
            renamed[span.span_id] = fresh
            span.parent_span_id, span.span_id = span.span_id, fresh
    for span in spans:
        parent = renamed.get(span.parent_span_id)
        if parent is not None and parent != span.span_id:
            span.parent_span_id = parent


def _warn_of_gaps(traces: TracesData) -> None:
    """Add warnings to spans whose parent is missing, and to repeated ids."""
    spans = [span for resource_spans in traces.resource_spans for span in _spans(resource_spans)]
    seen: set[bytes] = set()
    for span in spans:
        if span.span_id in seen:
            _warn(span, "duplicate span IDs; skipping clock skew adjustment")
        seen.add(span.span_id)
    for span in spans:
        if any(span.parent_span_id) and span.parent_span_id not in seen:
            _warn(
                span, f"parent span ID={span.parent_span_id.hex()} is not in the trace; skipping clock skew adjustment"
            )


def _spell_addresses(attributes: MutableSequence[KeyValue]) -> None:
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        if attribute.key in _ADDRESSES and kind in ("int_value", "double_value"):
            number = int(getattr(attribute.value, kind)) & 0xFFFFFFFF
            attribute.value.string_value = str(ipaddress.IPv4Address(number))


def _move_library(span: Span, resource_spans: ResourceSpans) -> None:
    """Move attributes of the library from the span to its resource, unless that has its own."""
    for attribute in [one for one in span.attributes if one.key in _LIBRARY]:
        its = next((one for one in resource_spans.resource.attributes if one.key == attribute.key), None)
        if its is not None and its.value != attribute.value:
            _warn(span, f"conflicting values between Span and Resource for attribute {attribute.key}")
            continue
        if its is None:
            resource_spans.resource.attributes.add().CopyFrom(attribute)
        span.attributes.remove(attribute)


def _drop_empty_links(span: Span) -> None:
    kept = [link for link in span.links if any(link.trace_id)]
    for _ in range(len(span.links) - len(kept)):
        _warn(span, "Invalid span link removed")
    if len(kept) < len(span.links):
        kept = [type(link).FromString(link.SerializeToString()) for link in kept]
        del span.links[:]
        span.links.extend(kept)


def _warn(span: Span, text: str) -> None:
    found: AnyValue | None = next((one.value for one in span.attributes if one.key == WARNINGS), None)
    if found is None:
        found = span.attributes.add(key=WARNINGS).value
    found.array_value.values.add(string_value=text)


# --- Query parameters as Go writes them: RFC 3339 times to the nanosecond, durations such as `1m30.5s`, booleans.

_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)",
)
_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART: Final = r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})

# --- Queries of `jaeger.api_v3`, run on the local store, for every transport.

_MAX_NS: Final = 2**63 - 1
_NS_DIGITS: Final = 9


def time_ns(text: str) -> int:
    """Return an RFC 3339 time in ns since 1970. Raise ValueError."""
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f'parsing time "{text}" as "2006-01-02T15:04:05.999999999Z07:00": cannot parse it')
    seconds, fraction, zone = match.groups()
    moment = datetime.fromisoformat(seconds + ("+00:00" if zone == "Z" else zone))
    whole = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(seconds=1)
    return whole * 10**9 + int((fraction or "")[:_NS_DIGITS].ljust(_NS_DIGITS, "0"))


def duration_ns(text: str) -> int:
    """Return a duration in ns. Raise ValueError."""
    sign = -1 if text.startswith("-") else 1
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    if unsigned == "0":
        return 0
    if not re.fullmatch(f"(?:{_PART})+", unsigned, re.ASCII):
        raise ValueError(f'time: invalid duration "{text}"')
    total = sum(int(Decimal(number) * _UNITS[unit]) for number, unit in re.findall(_PART, unsigned, re.ASCII))
    if total > _MAX_NS:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * total


def boolean(text: str) -> bool:
    """Return a boolean as strconv.ParseBool reads it. Raise ValueError."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def integer(text: str) -> int:
    """Return an integer as strconv.Atoi reads it. Raise ValueError."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise ValueError(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def trace_id(text: str) -> str:
    """Return a trace id as 32 lower-case hex digits; shorter ones get zeros in front. Raise ValueError."""
    if len(text) > 32:  # noqa: PLR2004
        raise ValueError(f"TraceID cannot be longer than 32 hex characters: {text}")
    if not re.fullmatch("[0-9a-fA-F]+", text):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    return text.lower().zfill(32)


CANCELLED: Final = 1
INVALID: Final = 3
UNKNOWN: Final = 2  # a Go server's code for an error without one of its own
_UNSPECIFIED: Final = "unspecified"


class QueryError(StagetraceError):
    """A query that cannot be run: `code` is gRPC's, `status` HTTP's."""

    def __init__(self, message: str, *, status: int = 400, code: int = UNKNOWN) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Query:
    """One query in work. `abandon` may be called in any thread. `_lock` guards `_reader`, which others use later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader: LocalReader | None = None
        self._abandoned = False

    def abandon(self) -> None:
        """Have the query end soon: its client has disconnected. Call it again until it has: a new step may begin."""
        with self._lock:
            self._abandoned = True
            if self._reader is not None:
                self._reader.interrupt()

    @contextmanager
    def running(self, reader: LocalReader) -> Iterator[None]:
        """Note the reader that works on it. Raise QueryError where it was abandoned, also while the reader works."""
        with self._lock:
            if self._abandoned:
                raise _abandoned()
            self._reader = reader
        try:
            yield
        except Exception:
            if self._abandoned:
                raise _abandoned() from None
            raise
        finally:
            with self._lock:
                self._reader = None


def _abandoned() -> QueryError:
    return QueryError("the client disconnected", status=499, code=CANCELLED)


class Queries:
    """Runs queries on one store. Thread-safe: a reader runs one query at a time and is then kept for the next."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._idle: SimpleQueue[LocalReader] = SimpleQueue()

    @contextmanager
    def _reader(self, query: Query | None) -> Iterator[LocalReader]:
        """Yield a reader for exclusive use; after an error it is closed, not kept."""
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = self._store.reader()
        try:
            with (query or Query()).running(reader):
                yield reader
        except BaseException:
            reader.close()
            raise
        self._idle.put(reader)

    def close(self) -> None:
        """Close the idle readers."""
        while not self._idle.empty():
            self._idle.get().close()

    def services(self, query: Query | None = None) -> list[str]:
        """Return the names of all services."""
        with self._reader(query) as reader:
            return list(reader.services())

    def operations(self, service: str, kind: str, query: Query | None = None) -> list[tuple[str, str]]:
        """Return (name, kind) of the operations of a service; an empty `kind` selects any and means UNSPECIFIED."""
        with self._reader(query) as reader:
            found = [(name, "" if its == _UNSPECIFIED else its) for name, its in reader.operations(service)]
        return [(name, its) for name, its in found if kind in ("", its)]

    def find(self, search: Search, query: Query | None = None) -> Iterator[TracesData]:
        """Yield whole traces, newest first, one in each message. Raise QueryError."""
        if search.depth <= 0:
            raise QueryError("search depth must be greater than 0 and less than max traces", status=500)
        with self._reader(query) as reader:
            for traces in reader.find_traces(search):
                yield traces if search.raw else adjusted(traces)

    def trace(self, trace_id: str, *, raw: bool, query: Query | None = None) -> TracesData | None:
        """Return one trace, or None if it is not stored."""
        with self._reader(query) as reader:
            found = reader.get_trace(trace_id)
        return found if found is None or raw else adjusted(found)


def search_of_request(request: Any) -> Search:
    """Return the search in a FindTracesRequest; ends of times are within what the store can hold. Raise QueryError."""
    if not request.HasField("query"):
        raise QueryError("missing query", code=INVALID)
    query = request.query
    if not query.HasField("start_time_min") or not query.HasField("start_time_max"):
        raise QueryError("start time min and max are required parameters")
    return Search(
        start_min_ns=_clamped(query.start_time_min),
        start_max_ns=_clamped(query.start_time_max),
        depth=query.search_depth,
        service=query.service_name,
        operation=query.operation_name,
        attributes=dict(query.attributes),
        duration_min_ns=_clamped(query.duration_min),
        duration_max_ns=_clamped(query.duration_max),
        raw=query.raw_traces,
    )


def _clamped(moment: Any) -> int:
    """Return a Timestamp or Duration in ns, within what the store can hold: clients send far ends for "all"."""
    found: int = moment.seconds * 10**9 + moment.nanos
    return max(-_MAX_NS, min(found, _MAX_NS - 1))
