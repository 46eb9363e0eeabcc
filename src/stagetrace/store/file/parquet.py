"""Spans out of the Parquet that `stagetrace export` writes: `relations.LOADED`, and each span as OTLP in `otlp`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from stagetrace.columns import names_of
from stagetrace.errors import StoreError, UnknownTrace
from stagetrace.otlp.decode.spans import RESOURCES, Unreadable, read
from stagetrace.otlp.decode.wire import varint
from stagetrace.semconv import stage_totals
from stagetrace.store import message_reader, stored
from stagetrace.store.answers import named_in, requests_of
from stagetrace.store.base import CANDIDATES, WHOLE, Breaches, Closing, Relations, Selection, SpanRow, Trace, TraceIds
from stagetrace.store.database import connect
from stagetrace.store.entries import entry_of
from stagetrace.store.load import select
from stagetrace.store.reductions import LOADED, TYPED
from stagetrace.store.rows import distinct, spans_of
from stagetrace.store.stored import OTLP

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


_BATCH: Final = 2000
# Columns that an export of an older version lacks -> how they are made of those it has.
_LATER: Final = {
    **{column: f"try_cast(attributes['{attribute}'] AS {kind})" for column, (attribute, kind) in TYPED.items()},
    "url_path": "coalesce(attributes['url.path'], split_part(attributes['http.target'], '?', 1))",
    "stages": (
        "map_from_entries(list_transform(list_filter(map_entries(attributes), lambda one: "
        "one.key LIKE 'ml.stage.%.ms' AND try_cast(one.value AS DOUBLE) IS NOT NULL), lambda one: "
        "struct_pack(k := one.key[10:-4], v := try_cast(one.value AS DOUBLE))))"
    ),
}


class ParquetReader(Closing):
    """Reader of Parquet files; DuckDB reads from them only the columns and times that a question needs."""

    capabilities: Final = WHOLE

    def __init__(self, path: Path, paths: Sequence[Path]) -> None:
        """Read `paths`, which are `path` itself or lie in it."""
        self._path = path
        self._paths = [str(one) for one in paths]

    def services(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        with self._opened() as connection:
            rows = connection.execute("SELECT DISTINCT service FROM files ORDER BY service").fetchall()
        return tuple(service for (service,) in rows)

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` specifies."""
        from stagetrace.store import answers

        with self.relations(replace(selection, breached=True)) as relations:
            found = _rows(
                relations.connection.execute(
                    f"SELECT {OTLP} FROM loaded JOIN requests USING (trace_id, span_id, service) "  # noqa: S608
                    "WHERE is_entry ORDER BY requests.start_unix_nano DESC, trace_id, span_id"
                ).fetchall()
            )
            bare = [one.trace_id for one in found if not stage_totals(one, ())]
            traces = {one.trace_id: one.spans for one in self.traces(bare)} if bare else {}
        entries = tuple(entry_of(one, traces.get(one.trace_id, ())) for one in found)
        with self._selected(requests_of(selection)) as relations_of_all:
            tally = answers.tally(relations_of_all, selection)
        if not tally.requests:
            with self._selected(requests_of(selection, ever=True)) as relations_of_all:
                tally = replace(tally, newest_unix_nano=answers.newest(relations_of_all))
        reason = None if relations.reason is None else relations.reason.replace("older requests", "older breaches")
        return Breaches(entries, reason, tally)

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` specifies."""
        for found in self.traces((trace_id,)):
            return found
        raise UnknownTrace(
            f"{self._path}: there is no trace {trace_id}\nit may have been sampled out, or is in another store"
        )

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies."""
        with self._opened() as connection:
            result = connection.execute(
                f"SELECT {OTLP} FROM files WHERE list_contains($1, trace_id) ORDER BY trace_id",  # noqa: S608
                [list(trace_ids)],
            )
            rows = chain.from_iterable(map(_rows, iter(lambda: result.fetchmany(_BATCH), [])))
            for trace_id, spans in groupby(rows, key=lambda one: one.trace_id):
                yield Trace(trace_id, tuple(distinct(spans)))

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, as `Reader.trace_ids` specifies."""
        with self._opened() as connection:
            rows = connection.execute(
                "SELECT trace_id FROM files WHERE starts_with(trace_id, $1) GROUP BY trace_id "
                "ORDER BY max(start_unix_nano) DESC, trace_id DESC LIMIT $2",
                [prefix, CANDIDATES],
            ).fetchall()
        return TraceIds(tuple(trace_id for (trace_id,) in rows))

    def relations(self, selection: Selection) -> Relations:
        """Return both relations as `Reader.relations` specifies; nothing is read before they are asked."""
        ever = named_in(selection)
        if ever.is_filtered and not self.has(ever):
            message_reader.check(selection, self, str(self._path))
        return self._selected(selection)

    def _selected(self, selection: Selection) -> Relations:
        """Return both relations, whether or not anything is known by the names in the selection."""
        wanted = " AND ".join(starmap(_has, enumerate(selection.segments, 1))) or "true"
        query = (
            "SELECT *, NULL AS rest, resource AS of_resource, "  # noqa: S608 -- constants of ours
            f"{wanted} AS has_segments FROM files"
        )
        return select(self._opened(), query, selection, files=self._paths, engine=_ENGINE)

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` specifies."""
        with self.relations(selection) as relations:
            if relations.reason is not None:
                cuts.append(relations.reason)
            result = relations.connection.execute(f"SELECT {OTLP} FROM whole")  # noqa: S608
            while rows := result.fetchmany(_BATCH):
                yield _request(rows)

    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request."""
        with self._selected(selection) as relations:
            return relations.connection.execute("SELECT 1 FROM requests LIMIT 1").fetchone() is not None

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield the newest entry spans of a service, or of all."""
        query = (
            f"SELECT {OTLP} FROM files WHERE is_entry AND ($1 IS NULL OR service = $1) "  # noqa: S608
            f"ORDER BY start_unix_nano DESC LIMIT {message_reader.SAMPLED}"
        )
        with self._opened() as connection:
            found = connection.execute(query, [service]).fetchall()
        yield from _rows(found)

    def _opened(self) -> DuckDBPyConnection:
        """Return a database whose view `files` is the files. Raise StoreError if they are not an export."""
        import duckdb

        connection = connect()
        try:
            files = connection.read_parquet(self._paths)
            missing = [name for name in (*LOADED, OTLP) if name not in (*files.columns, *_LATER)]
            if not missing:
                later = [f"{how} AS {name}" for name, how in _LATER.items() if name not in files.columns]
                files.project(", ".join(["*", *later])).create_view("files")
        except duckdb.Error as error:
            connection.close()
            raise StoreError(f"cannot read {self._path}: {str(error).splitlines()[0]}\ncheck the file") from None
        if missing:
            connection.close()
            wrong = f"{self._path} is Parquet without the column {missing[0]}"
            raise StoreError(f"{wrong}\nonly the Parquet files of `stagetrace export` can be read")
        return connection


def _attribute(key: str) -> str:
    """Return the expression of an attribute's text form."""
    names = ["'" + name.replace("'", "''") + "'" for name in names_of(key)]
    return f"coalesce({', '.join(f'attributes[{name}]' for name in names)}, of_resource[{names[0]}])"


def _has(number: int, key: str) -> str:
    """Return whether a span has the attribute of this number, by the variables of `load`."""
    named = f"getvariable('segment_keys')[{number}]"
    others = "".join(f"attributes['{name}'], " for name in names_of(key)[1:])
    return f"coalesce(attributes[{named}], {others}resource[{named}]) = getvariable('segment_values')[{number}]"


_ENGINE: Final = stored.ENGINE._replace(attribute=_attribute, resource="of_resource")


def _rows(found: Sequence[tuple[Any, ...]]) -> list[SpanRow]:
    return [one.row() for one in spans_of(_request(found))]


def _request(found: Sequence[tuple[Any, ...]]) -> ExportTraceServiceRequest:
    """Return serialized ResourceSpans as one request: the fields of a message may repeat."""
    request = ExportTraceServiceRequest()
    for (content,) in found:
        try:
            request.resource_spans.append(ResourceSpans.FromString(content))
        except DecodeError:  # noqa: PERF203 -- nearly never raised: what an older version has written of a deep value
            one = b"%c%b%b" % (RESOURCES, varint(len(content)), content)
            request.MergeFrom(read(ExportTraceServiceRequest, one, Unreadable([])))
    return request
