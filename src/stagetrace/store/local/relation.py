"""A view of the store as a DuckDB relation, `stored`, without the spans that were delivered twice."""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.columns import GENERATION
from stagetrace.otlp.decode.columns import join_tables
from stagetrace.store.database import connect
from stagetrace.store.stored import KEY, SERVER_KIND, add_functions, nothing, with_later

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from stagetrace.store.local.delta import File
    from stagetrace.store.local.folder import View

# --- Spans that were delivered twice: found before they reach the table, so that no query has to look for them.
#
# A copy of a span starts when the span does, so only files of the same times can hold the other one. Of two copies the
# one with a verdict stays, else the one with more attributes, else the first.

_RANK: Final = "(breached IS NOT NULL)::INTEGER, coalesce(octet_length(rest), 0)"
_GAP_NS: Final = 60_000_000_000  # spans further apart than this are looked up apart
_MOST_RANGES: Final = 16


class Distinct(NamedTuple):
    """New spans without copies, and the keys of stored spans for which one of them is a better copy."""

    spans: pa.Table
    replaced: pa.Table | None
    dropped: int


def distinct(connection: DuckDBPyConnection, view: View, spans: pa.Table) -> Distinct:
    """Return the spans of which there is no copy yet, among themselves and in the files of `view`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    before = spans.num_rows
    for name, kind in (("breached", pa.bool_()), ("rest", pa.binary())):
        if name not in spans.column_names:
            spans = spans.append_column(name, pa.nulls(before, kind))
    if pc.count_distinct(spans["span_id"]).as_py() < before:
        unique = _ask(
            connection,
            f"SELECT * FROM batch QUALIFY row_number() OVER (PARTITION BY {KEY} ORDER BY "
            f"(breached IS NOT NULL) DESC, coalesce(octet_length(rest), 0) DESC, seq) = 1",
            batch=spans,
        )
        spans = join_tables([unique])
    stored = _find_copies(connection, view, spans)
    replaced = None
    if stored is not None:
        replaced = _ask(
            connection,
            f"SELECT {', '.join(f'batch.{name}' for name in KEY.split(', '))} FROM batch JOIN stored USING ({KEY}) "
            f"WHERE (({_RANK.replace('breached', 'batch.breached').replace('rest', 'batch.rest')})) > (judged, size)",
            batch=spans,
            stored=stored,
        )
        others = _ask(
            connection, f"SELECT * FROM stored ANTI JOIN replaced USING ({KEY})", stored=stored, replaced=replaced
        )
        new = _ask(connection, f"SELECT * FROM batch ANTI JOIN others USING ({KEY})", batch=spans, others=others)
        spans = join_tables([new])
        replaced = replaced if replaced.num_rows else None
    return Distinct(spans, replaced, before - spans.num_rows)


class DistinctTail:
    """The spans behind the table without copies; of what has come since the last question, and no more, anew.

    Safe for several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the three below
        self._version = -1
        self._parts: tuple[pa.Table, ...] = ()  # of the tail, which are in `_distinct`
        self._distinct: Distinct | None = None

    def of(self, connection: DuckDBPyConnection, view: View) -> Distinct | None:
        """Return the result of `distinct` for the tail of `view`, or None if it has no tail."""
        if not view.tail:
            return None
        with self._lock:
            known = self._distinct
            grown = view.snapshot.version == self._version and _is_longer(view.tail, self._parts)
            if known is None or not grown:
                known = distinct(connection, view, join_tables(view.tail))
            elif len(view.tail) > len(self._parts):
                known = _with(connection, view, known, view.tail[len(self._parts) :])
            self._version, self._parts, self._distinct = view.snapshot.version, view.tail, known
            return known


def _is_longer(tail: Sequence[pa.Table], known: Sequence[pa.Table]) -> bool:
    """Return whether a tail begins with all parts of a known one."""
    return len(tail) >= len(known) and all(one is other for one, other in zip(tail, known, strict=False))


def _with(connection: DuckDBPyConnection, view: View, known: Distinct, parts: Sequence[pa.Table]) -> Distinct:
    """Return `known` with the spans of more parts of the same tail."""
    import pyarrow as pa

    more = distinct(connection, view, join_tables(parts))
    pair = {"more": more.spans.select(KEY.split(", ")[:2]), "known": known.spans.select(KEY.split(", ")[:2])}
    again = _ask(connection, "SELECT count(*) FROM more SEMI JOIN known USING (trace_id, span_id)", **pair)
    if again.column(0)[0].as_py():  # which copy stays is decided over all of them
        return distinct(connection, view, join_tables(view.tail))
    replaced = [one for one in (known.replaced, more.replaced) if one is not None]
    spans = pa.concat_tables([known.spans, more.spans], promote_options="default").unify_dictionaries()
    return Distinct(spans, pa.concat_tables(replaced) if replaced else None, known.dropped + more.dropped)


def _find_copies(connection: DuckDBPyConnection, view: View, spans: pa.Table) -> pa.Table | None:
    """Return keys and ranks of stored spans that have the ids of new ones, or None if there are none."""
    import pyarrow as pa

    found = []
    for first, last in _ranges(spans):
        paths = [str(view.table / file.path) for file in view.files(first, last + 1)]
        if paths:
            found.append(
                _ask(
                    connection,
                    f"SELECT {KEY}, (breached IS NOT NULL)::INTEGER AS judged, coalesce(octet_length(rest), 0) AS size "
                    "FROM (SELECT NULL::BOOLEAN AS breached, NULL::BLOB AS rest WHERE false UNION ALL BY NAME "
                    "SELECT * FROM read_parquet($paths, hive_partitioning = false, union_by_name = true)) AS files "
                    "SEMI JOIN batch USING (span_id, trace_id) WHERE files.start_unix_nano BETWEEN $first AND $last",
                    {"paths": paths, "first": first, "last": last},
                    batch=spans.select(["span_id", "trace_id"]),
                )
            )
    found = [one for one in found if one.num_rows]
    return pa.concat_tables(found) if found else None


def _ranges(spans: pa.Table) -> list[tuple[int, int]]:
    """Return the times at which spans start as a few ranges without large gaps."""
    import pyarrow as pa
    import pyarrow.compute as pc

    starts = pc.take(spans["start_unix_nano"], pc.sort_indices(spans["start_unix_nano"])).combine_chunks()
    if isinstance(starts, pa.ChunkedArray):
        starts = starts.chunk(0)
    if len(starts) == 0:
        return []
    gaps = pc.subtract(starts[1:], starts[:-1])  # none is below zero, so nothing overflows
    wide = pc.indices_nonzero(pc.greater(gaps, _GAP_NS))
    if len(wide) >= _MOST_RANGES:
        order = pc.sort_indices(pc.take(gaps, wide), sort_keys=[("", "descending")])
        wide = pc.take(wide, order[: _MOST_RANGES - 1])
    cuts = sorted(wide.to_pylist())
    bounds = zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(starts) - 1], strict=True)
    return [(starts[first].as_py(), starts[last].as_py()) for first, last in bounds]


def _ask(
    connection: DuckDBPyConnection, query: str, values: dict[str, Any] | None = None, **tables: pa.Table
) -> pa.Table:
    """Return the answer to a query over some Arrow tables."""
    for name, table in tables.items():
        connection.register(name, table)
    try:
        return connection.sql(query, params=values or None).to_arrow_table()
    finally:
        for name in tables:
            connection.unregister(name)


# --- A view of the store as a DuckDB relation: `stored`, columns as kept.

MEMORY: Final = "256MB"  # of a database that lives as long as its process
ALL_TIME: Final = (-(2**63), 2**63 - 1)


def stored(view: View, files: Sequence[File], tail: Distinct | None, *, later: bool = False) -> str:
    """Return a query for the stored columns, and `is_entry`, of some files and of the tail that `register` named.

    `later`: with what older files hold of columns that came after them; needs what `add_functions` adds.
    """
    # By name: a file has no column of which all values are NULL, be it that no span has one or that it is an old file.
    parts = [nothing()]
    for entry in (True, False):
        kind = f", {str(entry).lower()} AS is_entry"
        alike = [one for one in files if one.entry is entry]
        for generation in sorted({one.generation for one in alike if later and one.generation < GENERATION}):
            old = _of_files(view, [one for one in alike if one.generation == generation], tail, kind)
            parts += [with_later(f"{nothing()} UNION ALL BY NAME {one}", generation) for one in old]
            alike = [one for one in alike if one.generation != generation]
        parts += _of_files(view, alike, tail, kind)
    if tail is not None:
        parts.append(f"SELECT *, kind = {SERVER_KIND} AS is_entry FROM tail")
    return " UNION ALL BY NAME ".join(parts)


def stored_values(view: View, files: Sequence[File], tail: Distinct | None) -> str:
    """Return a query as `stored` does, without columns that have no value: planned in a fourth of the time."""
    parts = _of_files(view, files, tail)
    if tail is not None and tail.spans.num_rows:
        parts.append("SELECT * FROM tail")
    return " UNION ALL BY NAME ".join(parts or [nothing()])


def _of_files(view: View, files: Sequence[File], tail: Distinct | None, more: str = "") -> list[str]:
    """Return a query for all columns that some files have, or none without files."""
    if not files:
        return []
    better = "" if tail is None or tail.replaced is None else f" ANTI JOIN replaced USING ({KEY})"
    listed = _list(view, files)
    return [f"SELECT *{more} FROM read_parquet([{listed}], hive_partitioning = false, union_by_name = true){better}"]


def register(connection: DuckDBPyConnection, tail: Distinct | None) -> None:
    """Register the tables of a tail, which `stored` reads, with a connection."""
    for name, table in (("tail", tail and tail.spans), ("replaced", tail and tail.replaced)):
        if table is not None:
            connection.register(name, table)


def holding(connection: DuckDBPyConnection, view: View, files: Sequence[File], trace_id: bytes) -> list[File]:
    """Return the files that may hold a trace: by their Bloom filters, which costs a tenth of looking into them."""
    if not files:
        return []
    found = connection.execute(
        f"SELECT DISTINCT file_name FROM parquet_bloom_probe([{_list(view, files)}], 'trace_id', $1) "
        "WHERE NOT bloom_filter_excludes",
        [trace_id],
    ).fetchall()
    names = {name for (name,) in found}
    return [file for file in files if str(view.table / file.path) in names]


def unreadable(view: View, files: Sequence[File]) -> list[str]:
    """Return the paths of the files that are there and cannot be read, after an error; it reads them all."""
    import duckdb

    bad = []
    with connect() as connection:
        for path in paths(view, files):
            try:
                connection.execute("SELECT count(COLUMNS(*)) FROM read_parquet($1, hive_partitioning = false)", [path])
            except duckdb.IOException:  # noqa: PERF203 -- replaced meanwhile
                continue
            except duckdb.Error:
                bad.append(path)
    return bad


def paths(view: View, files: Sequence[File]) -> list[str]:
    """Return the files' full paths."""
    return [str(view.table / file.path) for file in files]


def _list(view: View, files: Sequence[File]) -> str:
    return ", ".join("'" + path.replace("'", "''") + "'" for path in paths(view, files))


def database(folder: Path, memory: str | None = None, threads: int | None = None) -> DuckDBPyConnection:
    """Return a new in-memory database for the store in `folder`; it may use disk beyond `memory`.

    A long-lived one needs that limit: its cache of each file it ever read (50 kB) shrinks only where room is short.
    """
    connection = connect(folder)
    if memory is not None:
        connection.execute(f"SET memory_limit = '{memory}'")
    if threads is not None:
        connection.execute(f"SET threads = {threads}")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET preserve_insertion_order = false")
    return connection


def database_for_loaded(folder: Path) -> DuckDBPyConnection:
    """Return a database as `database` does, with the functions that `loaded` calls. Imports PyArrow and NumPy.

    Raise StoreError where the latter is not installed.
    """
    connection = database(folder)
    add_functions(connection)
    return connection
