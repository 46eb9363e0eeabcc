"""A view of the store as a DuckDB relation: `stored`, columns as kept."""

# ruff: noqa: S608 -- column names are constants, paths are of our own making; every value is bound

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stagetrace.columns import GENERATION
from stagetrace.store.database import connect
from stagetrace.store.stored import KEY, SERVER_KIND, add_functions, nothing, with_later

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from stagetrace.store.local.duplicates import Distinct
    from stagetrace.store.local.snapshot import File
    from stagetrace.store.local.view import View

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
    listed = _listed(view, files)
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
        f"SELECT DISTINCT file_name FROM parquet_bloom_probe([{_listed(view, files)}], 'trace_id', $1) "
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


def _listed(view: View, files: Sequence[File]) -> str:
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
