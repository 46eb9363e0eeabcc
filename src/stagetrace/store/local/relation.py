"""A view of the store as DuckDB relations: `stored`, columns as kept, and `loaded`, as `store.load` wants them."""

# ruff: noqa: S608 -- column names are constants, paths are of our own making; every value is bound

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv
from stagetrace.otlp.decoder_back import span_of
from stagetrace.otlp.decoder_columns import ALL, COLUMNS, OTHER_MS, REST
from stagetrace.store.entries import named_stages
from stagetrace.store.load import connect, needs
from stagetrace.store.local.duplicates import KEY
from stagetrace.store.local.parquet import SERVER_KIND
from stagetrace.store.local.search import PATH, ROUTE
from stagetrace.store.relations import STAGE_COLUMNS
from stagetrace.store.rows import as_text, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

    from stagetrace.store.local.delta import File
    from stagetrace.store.local.duplicates import Distinct
    from stagetrace.store.local.view import View

KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUSES: Final = ("UNSET", "OK", "ERROR")
MEMORY: Final = "256MB"  # of a database that answers questions as long as a process lives
ALL_TIME: Final = (-(2**63), 2**63 - 1)
_ATTRIBUTES: Final = "stagetrace_attributes"
_RESOURCE: Final = "stagetrace_resource"
_OTHERS: Final = "stagetrace_other_stages"
# Stored columns that are read as part of another one.
_JOINED: Final = ("rpc_method", "old_method", "old_http_status", "url_path", "http_target")


def stored(view: View, files: Sequence[File], tail: Distinct | None) -> str:
    """Return a query for the stored columns, and `is_entry`, of some files and of the tail that `register` named."""
    # By name: a file has no column of which all values are NULL, be it that no span has one or that it is an old file.
    parts = [_nothing()]
    for entry in (True, False):
        parts += _of_files(
            view, [one for one in files if one.entry is entry], tail, f", {str(entry).lower()} AS is_entry"
        )
    if tail is not None:
        parts.append(f"SELECT *, kind = {SERVER_KIND} AS is_entry FROM tail")
    return " UNION ALL BY NAME ".join(parts)


def stored_values(view: View, files: Sequence[File], tail: Distinct | None) -> str:
    """Return a query as `stored` does, without columns that nothing has a value of: planned in a fourth of the time."""
    parts = _of_files(view, files, tail)
    if tail is not None and tail.spans.num_rows:
        parts.append("SELECT * FROM tail")
    return " UNION ALL BY NAME ".join(parts or [_nothing()])


def _of_files(view: View, files: Sequence[File], tail: Distinct | None, more: str = "") -> list[str]:
    """Return a query for all columns that some files have, or none without files."""
    if not files:
        return []
    paths = ", ".join(f"'{_quoted(str(view.table / file.path))}'" for file in files)
    better = "" if tail is None or tail.replaced is None else f" ANTI JOIN replaced USING ({KEY})"
    return [f"SELECT *{more} FROM read_parquet([{paths}], hive_partitioning = false, union_by_name = true){better}"]


def register(connection: DuckDBPyConnection, tail: Distinct | None) -> None:
    """Make what `stored` needs of a tail known to a connection."""
    for name, table in (("tail", tail and tail.spans), ("replaced", tail and tail.replaced)):
        if table is not None:
            connection.register(name, table)


def holding(connection: DuckDBPyConnection, view: View, files: Sequence[File], trace_id: bytes) -> list[File]:
    """Return the files that may hold a trace: by their Bloom filters, which costs a tenth of looking into them."""
    if not files:
        return []
    paths = ", ".join(f"'{_quoted(str(view.table / file.path))}'" for file in files)
    found = connection.execute(
        f"SELECT DISTINCT file_name FROM parquet_bloom_probe([{paths}], 'trace_id', $1) "
        "WHERE NOT bloom_filter_excludes",
        [trace_id],
    ).fetchall()
    names = {name for (name,) in found}
    return [file for file in files if str(view.table / file.path) in names]


def paths(view: View, files: Sequence[File]) -> list[str]:
    """Return the files' full paths."""
    return [str(view.table / file.path) for file in files]


def loaded(query: str) -> str:
    """Return a query for the columns of `store.load.COLUMNS` over a query for stored ones."""
    own = {
        "route": f"CASE WHEN is_entry THEN {ROUTE} ELSE route END",
        "method": "coalesce(method, old_method)",
        "http_status": "coalesce(http_status, old_http_status)",
        "url_path": PATH,
    }
    same = [column for column in (*COLUMNS, OTHER_MS) if column not in (*own, *_JOINED)]
    typed = ", ".join([*same, *(f"{expression} AS {column}" for column, expression in own.items())])
    struct = ", ".join(f"{column} := {column}" for column in (*COLUMNS, REST))
    return (
        "SELECT lower(hex(trace_id)) AS trace_id, lower(hex(span_id)) AS span_id, "
        "lower(hex(parent_span_id)) AS parent_span_id, service, name, "
        f"{_words('kind', KINDS)} AS kind, {_words('coalesce(status, 0)', STATUSES)} AS status, "
        "start_unix_nano, end_unix_nano, (end_unix_nano - start_unix_nano) / 1e6 AS duration_ms, is_entry, "
        f"{typed}, {_stages()} AS stages, {_ATTRIBUTES}(struct_pack({struct})) AS attributes, "
        f"{_RESOURCE}(resource) AS resource FROM ({query})"
    )


def _stages() -> str:
    """Return the map of all stage totals; only a span with a stage that has no column is decoded for it."""
    pairs = ", ".join(f"struct_pack(k := '{stage}', v := {column})" for stage, column in STAGE_COLUMNS.items())
    others = f"CASE WHEN {OTHER_MS} IS NOT NULL THEN {_OTHERS}({REST}) END"
    return f"map_concat(map_from_entries(list_filter([{pairs}], lambda one: one.v IS NOT NULL)), {others})"


def _words(column: str, words: Sequence[str]) -> str:
    cases = " ".join(f"WHEN {number} THEN '{word}'" for number, word in enumerate(words))
    return f"CASE {column} {cases} ELSE {column}::VARCHAR END"


def _quoted(text: str) -> str:
    return text.replace("'", "''")


_DUCKDB: Final = {
    "binary": "BLOB",
    "string": "VARCHAR",
    "bool_": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float64": "DOUBLE",
}


def _nothing() -> str:
    columns = ", ".join(f"NULL::{_DUCKDB[kind]} AS {name}" for name, kind in ALL)
    return f"SELECT {columns}, NULL::BOOLEAN AS is_entry WHERE false"


def database(memory: str | None = None, threads: int | None = None) -> DuckDBPyConnection:
    """Return a new in-memory database; it may use disk beyond `memory`.

    One that lives long needs that limit: what it keeps of each file it ever read (50 kB) goes only where room is short.
    """
    connection = connect()
    if memory is not None:
        connection.execute(f"SET memory_limit = '{memory}'")
        connection.execute("SET temp_directory = $1", [tempfile.gettempdir()])
    if threads is not None:
        connection.execute(f"SET threads = {threads}")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET preserve_insertion_order = false")
    return connection


def database_for_loaded() -> DuckDBPyConnection:
    """Return a database as `database` does, with the functions that `loaded` calls. Imports PyArrow and NumPy.

    Raise StoreError where the latter is not installed.
    """
    connection = database()
    if find_spec("numpy") is None:
        raise needs("this", "numpy")
    kinds = dict(ALL)
    fields = ", ".join(f"{column} {_DUCKDB[kinds[column]]}" for column in (*COLUMNS, REST))
    texts, numbers = "MAP(VARCHAR, VARCHAR)", "MAP(VARCHAR, DOUBLE)"
    functions: tuple[tuple[str, Any, str, str], ...] = (
        (_ATTRIBUTES, _attributes, f"STRUCT({fields})", texts),
        (_RESOURCE, _resource, "BLOB", texts),
        (_OTHERS, _others, "BLOB", numbers),
    )
    how: Any = {"type": "arrow", "null_handling": "special"}  # the stubs know only enumerations
    for name, function, taken, given in functions:
        connection.create_function(name, function, [taken], given, **how)
    return connection


def _attributes(rows: Any) -> Any:
    """Return all attributes of spans in text form."""
    import pyarrow as pa

    empty = {"trace_id": b"", "span_id": b"", "parent_span_id": None, "name": "", "kind": 0, "status": None}
    empty |= {"start_unix_nano": 0, "end_unix_nano": 0, "flags": 0}
    found = [
        [(key, as_text(value)) for key, value in values(span_of({**empty, **row}).attributes).items()]
        for row in rows.to_pylist()
    ]
    return pa.array(found, pa.map_(pa.string(), pa.string()))


def _others(blobs: Any) -> Any:
    """Return the totals of the stages that have no column, out of what is kept of spans beside the columns."""
    import pyarrow as pa
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    found = []
    for blob in blobs.to_pylist():
        totals = (one for one in Span.FromString(blob or b"").attributes if semconv.stage_of_total(one.key))
        stages = named_stages(values(totals))
        found.append([one for one in stages.items() if one[0] not in STAGE_COLUMNS])
    return pa.array(found, pa.map_(pa.string(), pa.float64()))


def _resource(blobs: Any) -> Any:
    """Return the attributes of resources in text form."""
    import pyarrow as pa
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

    known: dict[bytes, list[tuple[str, str]]] = {}
    found = []
    for blob in blobs.to_pylist():
        if blob not in known:
            read = values(ResourceSpans.FromString(blob).resource.attributes)
            known[blob] = [(key, as_text(value)) for key, value in read.items()]
        found.append(known[blob])
    return pa.array(found, pa.map_(pa.string(), pa.string()))
