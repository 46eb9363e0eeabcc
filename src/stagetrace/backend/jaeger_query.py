"""Queries of `jaeger.api_v3`, run on the local store, for every transport; values as Jaeger has them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from stagetrace.backend.counters import ThrottledLog
from stagetrace.backend.refusal import BUSY, SLOW, Refused, short
from stagetrace.errors import StagetraceError, StoreError
from stagetrace.store.local.search import Search

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    from stagetrace.backend.counters import Counters
    from stagetrace.store.local import LocalReader, LocalStore

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
INTERNAL: Final = 13
NO_TRACES: Final = 404  # the status of a search that found nothing, which is no failure
_UNSPECIFIED: Final = "unspecified"
_SHOWN: Final = {"grpc": "gRPC", "http": "HTTP"}


class QueryError(StagetraceError):
    """A query that cannot be run: `code` is gRPC's, `status` HTTP's."""

    def __init__(self, message: str, *, status: int = 400, code: int = UNKNOWN) -> None:
        super().__init__(short(message))
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

    def __init__(self, store: LocalStore, counters: Counters) -> None:
        self._store = store
        self._counters = counters
        self._log = ThrottledLog()
        self._idle: SimpleQueue[LocalReader] = SimpleQueue()

    @contextmanager
    def counted(self, transport: str) -> Iterator[None]:
        """Count a query and its failure. Raise QueryError for any, and Refused as it is."""
        self._counters.add("queries", transport)
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- the last stop before gRPC and uvicorn, which would print a traceback
            raise self.failure(transport, error) from None

    def failure(self, transport: str, error: Exception) -> QueryError | Refused:
        """Count a failure, and return it as the client may see it."""
        if not isinstance(error, QueryError) or error.status != NO_TRACES:
            self._counters.add("failed_queries", transport)
        if isinstance(error, Refused):
            if error.kind in (BUSY, SLOW):
                self._log.warning(error.kind.name, f"a query over {_SHOWN[transport]} was refused: {error.message}")
            return error
        if isinstance(error, QueryError):
            return error
        if isinstance(error, StoreError):
            return QueryError(str(error), status=500)
        if isinstance(error, DecodeError):
            return QueryError("the request cannot be decoded", code=INTERNAL)
        self._log.error("failed", f"a query over {_SHOWN[transport]} failed: {type(error).__name__}: {error}")
        return QueryError("the back end failed on this query; see its log", status=500, code=INTERNAL)

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
            yield from reader.find_traces(search)

    def trace(self, trace_id: str, query: Query | None = None) -> TracesData | None:
        """Return one trace, or None if it is not stored."""
        with self._reader(query) as reader:
            return reader.get_trace(trace_id)


def search_of_request(request: Any) -> Search:
    """Return the search in a FindTracesRequest; ends of times are within what the store can hold. Raise QueryError."""
    if not request.HasField("query"):
        raise QueryError("missing query", code=INVALID)
    query = request.query
    if not query.HasField("start_time_min") or not query.HasField("start_time_max"):
        raise QueryError("start time min and max are required parameters")
    return Search(
        start_min_ns=_clamp(query.start_time_min),
        start_max_ns=_clamp(query.start_time_max),
        depth=query.search_depth,
        service=query.service_name,
        operation=query.operation_name,
        attributes=dict(query.attributes),
        duration_min_ns=_clamp(query.duration_min),
        duration_max_ns=_clamp(query.duration_max),
    )


def _clamp(moment: Any) -> int:
    """Return a Timestamp or Duration in ns, within what the store can hold: clients send far ends for "all"."""
    found: int = moment.seconds * 10**9 + moment.nanos
    return max(-_MAX_NS, min(found, _MAX_NS - 1))
