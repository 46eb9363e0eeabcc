"""Queries of `jaeger.api_v3`, run on the local store, for every transport."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from stagetrace.backend.adjust import adjusted
from stagetrace.errors import StagetraceError
from stagetrace.store.local.search import Search

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    from stagetrace.store.local import LocalReader, LocalStore

CANCELLED: Final = 1
INVALID: Final = 3
UNKNOWN: Final = 2  # a Go server's code for an error without one of its own
_UNSPECIFIED: Final = "unspecified"
_MAX_NS: Final = 2**63 - 1


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


def search_of_request(request: Any, *, only_found: bool = False) -> Search:
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
        only_found=only_found,
    )


def _clamped(moment: Any) -> int:
    """Return a Timestamp or Duration in ns, within what the store can hold: clients send far ends for "all"."""
    found: int = moment.seconds * 10**9 + moment.nanos
    return max(-_MAX_NS, min(found, _MAX_NS - 1))
