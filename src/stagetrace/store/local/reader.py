"""Reader of a local store, beside its writer or without one."""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from stagetrace import log
from stagetrace.analysis.estimates import Counted
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.columns import SEQUENCE
from stagetrace.otlp.decode.to_otlp import request_of, traces_of
from stagetrace.store.base import (
    CANDIDATES,
    COUNTS,
    TAIL,
    WHOLE,
    Selection,
    SpanRow,
    Trace,
    TraceIds,
)
from stagetrace.store.database import close, rows_of
from stagetrace.store.load import DuckDBRelations, select
from stagetrace.store.local import counts, marks, relation, search, wal
from stagetrace.store.local.folder import Outside, View, check_format
from stagetrace.store.local.relation import ALL_TIME, DistinctTail
from stagetrace.store.message_reader import SAMPLED, RelationReader
from stagetrace.store.rows import distinct, spans_of
from stagetrace.store.stored import KINDS, loaded_query

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    from stagetrace.store.local.delta import File


T = TypeVar("T")
_ATTEMPTS: Final = 5
_BATCH: Final = 2000
_IN_MESSAGE: Final = 500  # spans, which make up to a few hundred kilobytes
_REMEDY: Final = "put it back from a copy; without the file, answers report what they lack"
_TRACES_AT_ONCE: Final = 500  # found out of all files; only a batch of their spans is in Python at a time


def open_url(url: str) -> LocalReader:
    """Return a reader of `local:///folder`."""
    parts = urlsplit(url)
    return LocalReader.open(Path(unquote(f"{parts.netloc}{parts.path}")))


class LocalReader(RelationReader):
    """Reader of one folder. Not for use by several threads at once."""

    capabilities = WHOLE | {TAIL, COUNTS}

    def __init__(
        self, folder: Path, view: Callable[[], View], connection: DuckDBPyConnection, tail: DistinctTail
    ) -> None:
        """Read the state that `view` returns at each query; `connection` is this reader's own."""
        super().__init__(str(folder))
        self._folder = folder
        self._view = view
        self._connection = connection
        self._tail = tail

    @classmethod
    def open(cls, folder: Path) -> LocalReader:
        """Open a folder that some process writes to, or none. Raise StoreError if it is not a store."""
        check_format(folder)
        return cls(folder, Outside(folder).view, relation.database(folder, relation.MEMORY), DistinctTail())

    def services(self) -> tuple[str, ...]:
        """Return the names of all services that have spans here, sorted."""
        rows = self._all("SELECT DISTINCT service FROM ({spans}) ORDER BY 1")
        return tuple(service for (service,) in rows)

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, as `Reader.trace_ids` specifies."""
        bounds = [bytes.fromhex(prefix.ljust(32, digit)) for digit in "0f"]
        rows = self._all(
            "SELECT trace_id FROM ({spans}) WHERE trace_id >= $1 AND trace_id <= $2 GROUP BY trace_id "
            f"ORDER BY max(start_unix_nano) DESC, trace_id DESC LIMIT {CANDIDATES}",
            bounds,
        )
        return TraceIds(tuple(trace_id.hex() for (trace_id,) in rows))

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies, a part of them at a time."""
        for at in range(0, len(trace_ids), _TRACES_AT_ONCE):
            wanted = [bytes.fromhex(one) for one in trace_ids[at : at + _TRACES_AT_ONCE]]
            for rows in self._whole(wanted, self._view()):
                yield Trace(rows[0]["trace_id"].hex(), tuple(distinct(_span_rows(rows))))

    def _select(self, selection: Selection) -> DuckDBRelations:
        view, files, damaged = self._files(self._view(), self._window(selection))
        connection = relation.database_for_loaded(self._folder)
        tail = self._tail.of(connection, view)
        relation.register(connection, tail)
        query = loaded_query(relation.stored(view, files, tail, later=True), selection.segments)
        cuts = self._cuts(view, damaged)
        relations = select(connection, query, selection, cuts, files=relation.paths(view, files))
        times = range(selection.since_ns, selection.until_ns)
        relations.marks = [one for one in marks.read(self._folder) if one.at_unix_nano in times]
        return relations

    def _window(self, selection: Selection) -> tuple[int, int]:
        """Return when all spans of a selection start: of requests, they do at any time."""
        return (selection.since_ns, selection.until_ns) if not selection.is_filtered else ALL_TIME

    def _files(
        self, view: View, window: tuple[int, int], *, entry: bool | None = None
    ) -> tuple[View, list[File], list[File]]:
        """Return a view, its files of a time window, and those among them that are missing or damaged, which it logs.

        The view is a newer one where files are missing: its writer may have replaced them.
        """
        files, damaged = view.split(*window, entry=entry)
        if damaged:
            view = self._view()
            files, damaged = view.split(*window, entry=entry)
        for file in damaged:
            log.once(file.path, f"{view.table / file.path}, with {file.rows} spans, is missing or damaged; {_REMEDY}")
        return view, files, damaged

    def _cuts(self, view: View, damaged: Sequence[File]) -> list[str]:
        """Return what an answer lacks: spans in damaged files, and requests that are missing from the log."""
        cuts = []
        if damaged:
            spans, path = sum(file.rows for file in damaged), view.table / damaged[0].path
            cuts.append(
                f"{spans} spans cannot be read: of {len(damaged)} files that are missing or damaged one is {path}"
            )
        if view.lost:
            cuts.append(wal.lost_requests(view.lost))
        return cuts

    def find_traces(self, wanted: search.Search) -> Iterator[TracesData]:
        """Yield whole traces, newest first, of which one span meets all conditions."""
        where, values = search.of_search(wanted)
        window, view = (wanted.start_min_ns, wanted.start_max_ns + 1), self._view()
        newest = (
            f"WHERE {where} GROUP BY trace_id ORDER BY max(start_unix_nano) DESC, trace_id LIMIT {int(wanted.depth)}"
        )
        found = self._all(f"SELECT trace_id FROM ({{spans}}) {newest}", values, window, view=view)
        for at in range(0, len(found), _TRACES_AT_ONCE):
            ids = [trace_id for (trace_id,) in found[at : at + _TRACES_AT_ONCE]]
            yield from map(traces_of, self._whole(ids, view))

    def _whole(self, wanted: Sequence[bytes], view: View) -> Iterator[list[dict[str, Any]]]:
        """Yield the spans of each of these traces, in this order, out of one query."""
        import pyarrow as pa

        ranks = pa.array(range(len(wanted)), pa.int32())
        self._connection.register("wanted", pa.table({"trace_id": pa.array(wanted, pa.binary()), "rank": ranks}))
        # A list of constants goes into the scan, which a join does not: half the time.
        places = ", ".join(f"${number}" for number in range(1, len(wanted) + 1))
        ranked = f"JOIN wanted USING (trace_id) WHERE trace_id IN ({places})"
        order = "ORDER BY rank, seq, start_unix_nano, span_id"

        def first(result: DuckDBPyConnection) -> tuple[list[str], list[tuple[Any, ...]]]:
            return [column[0] for column in result.description or ()], result.fetchmany(_BATCH)

        query = f"SELECT * FROM ({{spans}}) {ranked} {order}"
        names, rows = self._ask(first, query, wanted, view=view)
        trace: list[dict[str, Any]] = []
        while rows:
            for cells in rows:
                row = dict(zip(names, cells, strict=True))
                if trace and trace[0]["rank"] != row["rank"]:
                    yield trace
                    trace = []
                trace.append(row)
            rows = self._connection.fetchmany(_BATCH)
        if trace:
            yield trace

    def get_trace(self, trace_id: str) -> TracesData | None:
        """Return all of one trace as it came, or None if it is not here."""
        rows = self._trace_rows(trace_id)
        return traces_of(rows) if rows else None

    def operations(self, service: str) -> list[tuple[str, str]]:
        """Return (name, kind) of all spans of a service, kinds in OTLP's words, lower case, as Jaeger has them."""
        rows = self._all("SELECT DISTINCT name, kind FROM ({spans}) WHERE service = $1 ORDER BY name, kind", [service])
        return [(name, KINDS[kind].lower() if 0 <= kind < len(KINDS) else str(kind)) for name, kind in rows]

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` specifies."""
        self._check(selection)
        with self._select(selection) as relations:
            if relations.reason is not None:
                cuts.append(relations.reason)
            # Once, and in order of time: a file written so can be read in parts.
            result = relations.connection.execute(
                "SELECT stored FROM whole ORDER BY start_unix_nano, trace_id, span_id"
            )
            while rows := result.fetchmany(_IN_MESSAGE):
                yield request_of(row for (row,) in rows)

    def spans_after(self, cursor: int | None, *, entries: bool = False) -> tuple[list[SpanRow], int]:
        """Return the spans acknowledged after `cursor`, and the next cursor; None: no spans yet, only the cursor."""
        view = self._view()
        newest = view.last
        if cursor is None or newest <= cursor:
            return [], newest
        query = f"SELECT * FROM ({{spans}}) WHERE {SEQUENCE} > $1 AND {SEQUENCE} <= $2 AND (is_entry OR $3)"
        found = self._rows(query, [cursor, newest, not entries], entries=entries or None)
        return distinct(_span_rows(found)), newest

    def others_after(
        self, cursor: int | None, since_ns: int, objectives: Sequence[str], most: int
    ) -> tuple[list[SpanRow], int]:
        """Return entry spans acknowledged after `cursor` that show none of these objectives, and the next cursor.

        They began at `since_ns` or later; of more than `most` the newest. None: of any time of acknowledgement.
        """
        view = self._view()
        if cursor is not None and view.last <= cursor:
            return [], view.last
        query = (
            f"SELECT * FROM ({{spans}}) WHERE {SEQUENCE} > $1 AND {SEQUENCE} <= $2 AND is_entry "
            "AND start_unix_nano >= $3 AND (objective IS NULL OR NOT list_contains($4::VARCHAR[], objective)) "
            "ORDER BY start_unix_nano DESC LIMIT $5"
        )
        values = [-1 if cursor is None else cursor, view.last, since_ns, list(objectives), most]
        window = (since_ns, ALL_TIME[1])
        return distinct(_span_rows(self._rows(query, values, window, entries=True, view=view))), view.last

    def counted(self, selection: Selection) -> list[Counted]:
        """Return counts that services have sent in the selection's time."""
        found = counts.read(self._folder, selection.since_ns, selection.until_ns)
        return [one for one in found if selection.service in (None, one.service)]

    def interrupt(self) -> None:
        """Have the query that runs in another thread fail; without one, do nothing."""
        self._connection.interrupt()

    def close(self) -> None:
        """Release the database; the reader is not used afterwards."""
        close(self._connection)

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield the newest entry spans of a service, or of all."""
        newest = f"ORDER BY start_unix_nano DESC LIMIT {SAMPLED}"
        query = f"SELECT * FROM ({{spans}}) WHERE is_entry AND ($1 IS NULL OR service = $1) {newest}"
        return _span_rows(self._rows(query, [service], entries=True))

    def _trace_rows(self, trace_id: str) -> list[dict[str, Any]]:
        try:
            wanted = bytes.fromhex(trace_id)
        except ValueError:
            return []
        query = "SELECT * FROM ({spans}) WHERE trace_id = $1 ORDER BY seq, start_unix_nano, span_id"
        return self._rows(query, [wanted], trace_id=wanted)

    def _ask(
        self,
        read: Callable[[DuckDBPyConnection], T],
        query: str,
        values: Sequence[Any] = (),
        window: tuple[int, int] = ALL_TIME,
        *,
        entries: bool | None = None,
        trace_id: bytes | None = None,
        view: View | None = None,
    ) -> T:
        """Return what `read` takes of a query over `{spans}`: those of a time window or a trace, now or in `view`.

        Of a trace, columns without a value may be missing. Asked again where a file was replaced by a larger one just
        before DuckDB opened it.
        """
        import duckdb

        for attempt in range(_ATTEMPTS):
            view = view if view is not None and not attempt else self._view()
            view, files, _ = self._files(view, window, entry=entries)
            try:
                if trace_id is not None:
                    files = relation.holding(self._connection, view, files, trace_id)
                tail = self._tail.of(self._connection, view)
                relation.register(self._connection, tail)
                how = relation.stored if trace_id is None else relation.stored_values
                spans = how(view, files, tail)
                return read(self._connection.execute(query.replace("{spans}", spans), list(values)))
            except duckdb.Error as error:
                bad = relation.unreadable(view, files)
                if not bad and not isinstance(error, duckdb.IOException):
                    raise
                if bad or attempt == _ATTEMPTS - 1:
                    which = f" ({', '.join(bad)} is damaged)" if bad else ""
                    problem = f"cannot read the store in {self._folder}: {str(error).splitlines()[0]}{which}"
                    raise StoreError(f"{problem}\n{_REMEDY}") from None
        raise AssertionError

    def _all(self, query: str, *about: Any, **where: Any) -> list[tuple[Any, ...]]:
        return self._ask(lambda result: result.fetchall(), query, *about, **where)

    def _rows(self, query: str, *about: Any, **where: Any) -> list[dict[str, Any]]:
        return self._ask(rows_of, query, *about, **where)


def _span_rows(rows: Sequence[dict[str, Any]]) -> Iterator[SpanRow]:
    """Yield stored rows as the reading side's rows."""
    for one in spans_of(request_of(rows)):
        yield one.row()
