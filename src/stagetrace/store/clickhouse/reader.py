"""Reader of ClickHouse: reductions and single spans are asked where the data is, by SELECT alone."""

# ruff: noqa: S608 -- names are quoted, columns are constants; every value is bound

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log
from stagetrace.errors import QueryError, StoreError
from stagetrace.store import answers
from stagetrace.store.answers import named_in
from stagetrace.store.base import CANDIDATES, COUNTS, WHOLE, Relations, Selection, SpanRow, Trace, TraceIds
from stagetrace.store.clickhouse import counts, relation, requests_table, spans
from stagetrace.store.clickhouse.client import Client, parse
from stagetrace.store.message_reader import SAMPLED, RelationReader
from stagetrace.store.reductions import CLICKHOUSE
from stagetrace.store.rows import distinct, spans_of

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from stagetrace.analysis.estimates import Counted
    from stagetrace.store.clickhouse.relation import Table

_NEEDED: Final = (
    *("Timestamp", "TraceId", "SpanId", "ParentSpanId", "SpanName", "SpanKind", "ServiceName"),
    *("ResourceAttributes", "SpanAttributes", "Duration", "StatusCode"),
)
_IN_MESSAGE: Final = 500
_TRACES_AT_ONCE: Final = 500
_MUCH: Final = 1 << 30  # bytes that answers read, above which a table of requests is worth it


def open_url(url: str) -> ClickHouseReader:
    """Return a reader of a table. Raise StoreError for a bad URL."""
    return ClickHouseReader(Client(parse(url)))


class ClickHouseRelations(Relations):
    """Relations that are subqueries of each question."""

    def __init__(self, client: Client, table: Table, selection: Selection, reason: str | None = None) -> None:
        """Ask this table about a selection."""
        self._client = client
        self._table = table
        self._requests = relation.requests(table, selection)
        self._spans = relation.spans(table, selection)
        super().__init__(CLICKHOUSE._replace(source=self._requests.sql, spans=self._spans.sql), reason)

    @property
    def _values(self) -> dict[str, Any]:
        return {**self._requests.values, **self._spans.values}

    def ask(self, sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        """Return the rows of a query of ours."""
        return self._client.rows(sql, {**self._values, **values})

    def select(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Return column names and rows of one SELECT of the user's, in ClickHouse's SQL."""
        whole = relation.with_relations(self._requests.sql, self._spans.sql, sql)
        found = self._client.stream(whole, self._values, error=QueryError)
        names, _ = next(found)
        return names, (row for _, rows in found for row in rows)

    def narrow(self, selection: Selection) -> Relations:
        """Return the relations of a narrower selection."""
        return ClickHouseRelations(self._client, self._table, selection, self.reason)


class ClickHouseReader(RelationReader):
    """Reader of one table of spans. Not for use by several threads at once, `interrupt` aside."""

    def __init__(self, client: Client) -> None:
        """Ask this client, which is closed with the reader."""
        super().__init__(client.address.name)
        self.client = client
        self._known: Table | None = None

    @property
    def table(self) -> Table:
        """Return what there is of the table, asked once."""
        if self._known is None:
            self._known = describe(self.client)
        return self._known

    @property
    def capabilities(self) -> frozenset[str]:  # type: ignore[override]
        """Return its optional capabilities: counts where their table is there."""
        return WHOLE | {COUNTS} if self.table.has_counts else WHOLE

    def counted(self, selection: Selection) -> list[Counted]:
        """Return counts that services have sent in the selection's time."""
        return counts.read(self.client, self.table, selection)

    def services(self) -> tuple[str, ...]:
        """Return the names of all services that have spans here, sorted."""
        found = f"SELECT DISTINCT ServiceName AS service FROM {self.table.quoted()} ORDER BY service"
        return tuple(row["service"] for row in self.client.rows(found))

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, as `Reader.trace_ids` specifies."""
        found = self.client.rows(
            f"SELECT TraceId FROM {self.table.quoted()} WHERE startsWith(TraceId, {{prefix:String}}) "
            f"GROUP BY TraceId ORDER BY max(Timestamp) DESC, TraceId DESC LIMIT {CANDIDATES}",
            {"prefix": prefix},
        )
        return TraceIds(tuple(row["TraceId"] for row in found))

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies, a part of them at a time."""
        for at in range(0, len(trace_ids), _TRACES_AT_ONCE):
            some = list(trace_ids[at : at + _TRACES_AT_ONCE])
            where = f"WHERE TraceId IN {{ids:Array(String)}}{self._time_of(some)} ORDER BY TraceId, Timestamp, SpanId"
            rows = self.client.rows(spans.query(self.table, where), {"ids": some})
            for trace_id, its in groupby(rows, key=itemgetter("trace_id")):
                yield Trace(trace_id, tuple(distinct(_rows(its))))

    def _time_of(self, trace_ids: Sequence[str]) -> str:
        """Return a condition for the time of these traces, which spares looking at all others, if that is known."""
        table = self.table
        if not table.has_lookup:
            return ""
        ((first, last, traces),) = self.client.ask(
            "SELECT toUnixTimestamp(min(Start)), toUnixTimestamp(max(End)) + 1, uniqExact(TraceId) "
            f"FROM {table.quoted(table.name + relation.LOOKUP)} WHERE TraceId IN {{ids:Array(String)}}",
            {"ids": list(trace_ids)},
        )[1]
        if traces < len(set(trace_ids)):  # the lookup is younger than the trace, or lags behind
            return ""
        return f" AND Timestamp >= fromUnixTimestamp({int(first)}) AND Timestamp <= fromUnixTimestamp({int(last)})"

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` specifies; what the table does not keep, is not there."""
        self._check(selection)
        with self._select(selection) as relations:
            if relations.reason is not None:
                cuts.append(relations.reason)
        where, values = relation.whole(self.table, selection)
        sql = spans.query(self.table, f"WHERE {' AND '.join(where)}")
        for names, rows in self.client.stream(sql, values):
            for at in range(0, len(rows), _IN_MESSAGE):
                yield spans.request_of(dict(zip(names, row, strict=True)) for row in rows[at : at + _IN_MESSAGE])

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield the newest entry spans of a service, or of all."""
        of = "" if service is None else " AND ServiceName = {service:String}"
        sql = spans.query(self.table, f"WHERE SpanKind = 'Server'{of} ORDER BY Timestamp DESC LIMIT {SAMPLED}")
        return iter(_rows(self.client.rows(sql, {} if service is None else {"service": service})))

    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request. It may be there twice."""
        found = relation.requests(self.table, selection, once=False)
        return bool(self.client.rows(f"SELECT 1 AS found FROM {found.sql} LIMIT 1", found.values))

    def _check(self, selection: Selection) -> None:
        """Raise StoreError where a selection names what is not here; of its own time first, for that is quick."""
        ever = named_in(selection)
        if ever.is_filtered and not self.has(replace(ever, since_ns=selection.since_ns, until_ns=selection.until_ns)):
            super()._check(selection)

    def _select(self, selection: Selection) -> Relations:
        reason = None
        if selection.limit is not None:
            all_ = ClickHouseRelations(self.client, self.table, replace(selection, limit=None))
            if answers.count(all_, selection.limit + 1) > selection.limit:
                reason = f"limit {selection.limit} reached, there are older requests"
        return ClickHouseRelations(self.client, self.table, selection, reason)

    def interrupt(self) -> None:
        """Have the query that runs in another thread fail; without one, do nothing."""
        self.client.interrupt()

    def close(self) -> None:
        """Close the connection; say how much was read where a table of requests would have been quicker."""
        if self._known is not None and not self._known.has_requests and self.client.read_bytes > _MUCH:
            log.once(
                self.name,
                f"{self.name}: ClickHouse read {self.client.read_bytes / 1e9:.1f} GB for this; a table of requests "
                "takes a fraction: stagetrace clickhouse init",
            )
        self.client.close()


def describe(client: Client) -> Table:
    """Return what there is of the table that the client's URL names. Raise StoreError if it holds no spans."""
    address = client.address
    table = relation.Table(address.database, address.table, {})
    types = {row["name"]: row["type"] for row in client.rows(f"DESCRIBE TABLE {table.quoted()}")}
    missing = [column for column in _NEEDED if column not in types]
    if missing:
        raise StoreError(
            f"{address.name}: it has no column {missing[0]}, so it is no table of the Collector's clickhouseexporter\n"
            "name the one that is: clickhouse://HOST/DATABASE?table=NAME"
        )
    names = [f"{table.name}{relation.LOOKUP}", table.requests, relation.COUNTS]
    found = client.rows(
        "SELECT name, comment, engine FROM system.tables "
        "WHERE database = {database:String} AND name IN {names:Array(String)}",
        {"database": address.database, "names": [*names, table.name]},
    )
    comments = {row["name"]: row["comment"] for row in found}
    whole = relation.Table(
        address.database,
        address.table,
        types,
        has_lookup=names[0] in comments,
        has_counts=relation.COUNTS in comments,
        has_prewhere=any(row["name"] == table.name and row["engine"].endswith("MergeTree") for row in found),
    )
    made = comments.get(table.requests, "")
    is_filled = made == requests_table.version(whole)
    if made.startswith(relation.FILLED) and not is_filled:
        log.once(
            f"{address.name} made",
            f"{address.name}: the table {table.requests} is of another version of stagetrace and is not used; "
            "bring it up: stagetrace clickhouse init",
        )
    return whole._replace(has_requests=is_filled)


def _rows(rows: Any) -> list[SpanRow]:
    return [one.row() for one in spans_of(spans.request_of(rows))]
