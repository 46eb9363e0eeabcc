"""Spans out of the Parquet that `stagetrace export` writes: `relations.LOADED`, and each span as OTLP in `otlp`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from stagetrace.columns import names_of
from stagetrace.errors import StoreError
from stagetrace.semconv import SLA_BREACH_MISSED
from stagetrace.store import stored
from stagetrace.store.base import CANDIDATES, Selection, SpanRow, Trace, TraceIds
from stagetrace.store.database import connect
from stagetrace.store.load import DuckDBRelations, select
from stagetrace.store.message_reader import SAMPLED, RelationReader
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


class ParquetReader(RelationReader):
    """Reader of Parquet files; DuckDB reads from them only the columns and times that a question needs."""

    def __init__(self, path: Path, paths: Sequence[Path]) -> None:
        """Read `paths`, which are `path` itself or lie in it."""
        super().__init__(str(path))
        self._paths = [str(one) for one in paths]

    def services(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        with self._open() as connection:
            rows = connection.execute("SELECT DISTINCT service FROM files ORDER BY service").fetchall()
        return tuple(service for (service,) in rows)

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies."""
        with self._open() as connection:
            result = connection.execute(
                f"SELECT {OTLP} FROM files WHERE list_contains($1, trace_id) ORDER BY trace_id",  # noqa: S608
                [list(trace_ids)],
            )
            rows = chain.from_iterable(map(_rows, iter(lambda: result.fetchmany(_BATCH), [])))
            for trace_id, spans in groupby(rows, key=lambda one: one.trace_id):
                yield Trace(trace_id, tuple(distinct(spans)))

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, as `Reader.trace_ids` specifies."""
        with self._open() as connection:
            rows = connection.execute(
                "SELECT trace_id FROM files WHERE starts_with(trace_id, $1) GROUP BY trace_id "
                "ORDER BY max(start_unix_nano) DESC, trace_id DESC LIMIT $2",
                [prefix, CANDIDATES],
            ).fetchall()
        return TraceIds(tuple(trace_id for (trace_id,) in rows))

    def _select(self, selection: Selection) -> DuckDBRelations:
        wanted = " AND ".join(starmap(_has, enumerate(selection.segments, 1))) or "true"
        query = (
            "SELECT *, NULL AS rest, resource AS of_resource, "  # noqa: S608 -- constants of ours
            f"attributes['{SLA_BREACH_MISSED}'] AS {stored.MISSED}, {wanted} AS has_segments FROM files"
        )
        return select(self._open(), query, selection, files=self._paths, engine=_ENGINE)

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` specifies."""
        self._check(selection)
        with self._select(selection) as relations:
            if relations.reason is not None:
                cuts.append(relations.reason)
            result = relations.connection.execute(f"SELECT {OTLP} FROM whole")  # noqa: S608
            while rows := result.fetchmany(_BATCH):
                yield _request(rows)

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield the newest entry spans of a service, or of all."""
        query = (
            f"SELECT {OTLP} FROM files WHERE is_entry AND ($1 IS NULL OR service = $1) "  # noqa: S608
            f"ORDER BY start_unix_nano DESC LIMIT {SAMPLED}"
        )
        with self._open() as connection:
            found = connection.execute(query, [service]).fetchall()
        yield from _rows(found)

    def _open(self) -> DuckDBPyConnection:
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
            raise StoreError(f"cannot read {self.name}: {str(error).splitlines()[0]}\ncheck the file") from None
        if missing:
            connection.close()
            wrong = f"{self.name} is Parquet without the column {missing[0]}"
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
    """Return serialized ResourceSpans as one request."""
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans.FromString(content) for (content,) in found])
