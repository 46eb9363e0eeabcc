"""Spans into an in-memory DuckDB, and a selection of them as the two relations of `reductions.py`.

Every reader ends here: one that has only spans gives them to a `Loader`, one that has files DuckDB reads has a query
over them (columns: `reductions.LOADED`), and `select` makes the relations of it.
"""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from stagetrace.columns import REQUESTS, SCHEMA
from stagetrace.errors import QueryError
from stagetrace.otlp.decode import arrow_table, columns
from stagetrace.otlp.decode.request import decode
from stagetrace.semconv import as_text, named_stages
from stagetrace.store import entries, judged, stored
from stagetrace.store.base import SERVER, Reader, Relations, Selection, SpanRow, Value
from stagetrace.store.database import close, connect, lock, rows_of, sql
from stagetrace.store.entries import path, route
from stagetrace.store.reductions import LOADED, OLDER, OTHER_STAGES, SPANS, STAGE_COLUMNS, TYPED

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection, Statement

    from stagetrace.otlp.decode.spans import Decoded
    from stagetrace.store.reductions import Engine

_BATCH: Final = 10_000  # spans decoded at a time
_ROWS: Final = 500  # of a user's query that are in Python at a time
_LINES: Final = 3  # of an error of DuckDB's
# What a SELECT can be under another name: EXPLAIN, and PIVOT, which DuckDB runs as several statements.
_READING: Final = ("SELECT", "EXPLAIN")
_JUDGED: Final = judged.Dialect(
    bound=lambda name, _: f"getvariable('judged_{name}')",
    place=lambda found, text: f"coalesce(list_position({found}, {text}), 0)",
    without="EXCLUDE",
    stage="breach_stage",
)
_GREATEST: Final = 2**63 - 1  # OTLP's times go one bit further, to the year 2554
_FITS: Final[Mapping[str, tuple[type, ...]]] = {
    "VARCHAR": (str,),
    "BIGINT": (int,),
    "DOUBLE": (int, float),
    "BOOLEAN": (bool,),
}


def select(
    connection: DuckDBPyConnection,
    loaded: str,
    selection: Selection,
    cuts: Sequence[str] = (),
    files: Sequence[str] = (),
    engine: Engine = stored.ENGINE,
) -> DuckDBRelations:
    """Return the relations of `selection`, out of a query that becomes the view `loaded`; `cuts`: what it lacks.

    It gives `LOADED` and `has_segments`: whether a span has the attributes of the selection.

    From here on the connection reads no file except `files`, loads nothing and cannot be reconfigured.
    """
    define(connection, loaded, selection, engine)
    # Each view is worth several ms: DuckDB looks at the columns of all files anew.
    newest = "CREATE VIEW selected AS FROM matching" if selection.limit is None else sql("newest_requests")
    connection.execute(newest)
    connection.execute("CREATE VIEW requests AS SELECT * EXCLUDE (missed, rest, of_resource) FROM selected")
    connection.execute(sql("whole_of_requests" if selection.is_filtered else "whole_in_window"))
    connection.execute(f"CREATE VIEW spans AS SELECT {', '.join(SPANS)} FROM whole")
    lock(connection, files)
    reasons = list(cuts)
    if selection.limit is not None and _count(connection, "matching") > selection.limit:
        reasons.insert(0, f"limit {selection.limit} reached, there are older requests")
    return DuckDBRelations(connection, engine, "; ".join(reasons) or None)


class DuckDBRelations(Relations):
    """Relations in a DuckDB of their own."""

    def __init__(self, connection: DuckDBPyConnection, engine: Engine, reason: str | None) -> None:
        """Take a connection with the views that `select` makes."""
        super().__init__(engine, reason)
        self.connection = connection

    def ask(self, sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        """Return the rows of a query of ours."""
        return rows_of(self.connection.execute(sql, values))

    def select(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Return column names and rows of one SELECT of the user's."""
        import duckdb

        try:
            answer = self.connection.execute(self._checked(sql))
        except duckdb.Error as error:
            raise _refused(error) from None
        return [name for name, *_ in answer.description or ()], _rows(answer)

    def table(self, sql: str) -> pa.Table:
        """Return the rows of one SELECT of the user's with their types. Raise QueryError as `select` does."""
        import duckdb

        try:
            return self.connection.sql(self._checked(sql)).to_arrow_table()
        except duckdb.Error as error:
            raise _refused(error) from None

    def _checked(self, sql: str) -> Statement:
        """Return the only statement of SQL, which must be a reading one. Raise QueryError."""
        statements = self.connection.extract_statements(sql)
        if len(statements) != 1:
            raise QueryError(f"query takes one statement, and this is {len(statements) or 'none'}\ngive one SELECT")
        if statements[0].type.name not in _READING:
            raise QueryError(f"query only reads, and this is {statements[0].type.name}\ngive a SELECT")
        return statements[0]

    def narrow(self, selection: Selection) -> Relations:
        """Return itself, which gives this selection from now on."""
        set_variables(self.connection, selection)
        return self

    def close(self) -> None:
        """Close the connection."""
        close(self.connection)


def _rows(answer: DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    import duckdb

    try:
        while some := answer.fetchmany(_ROWS):
            yield from some
    except duckdb.Error as error:
        raise _refused(error) from None


def _refused(error: Exception) -> QueryError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return QueryError("\n".join(lines[:_LINES]))


def define(connection: DuckDBPyConnection, loaded: str, selection: Selection, engine: Engine = stored.ENGINE) -> None:
    """Make the views `loaded` and, of the entry spans that are selected, `matching`, the limit aside."""
    set_variables(connection, selection)
    if selection.judging is not None:
        kind = judged.kind(engine.attribute, selection.judging.keys)
        loaded = judged.overlaid(loaded, _JUDGED, kind, "is_entry", STAGE_COLUMNS)
    connection.execute(f"CREATE VIEW loaded AS {loaded}")
    connection.execute(sql("selected").replace("{columns}", _requests()))


def set_variables(connection: DuckDBPyConnection, selection: Selection) -> None:
    """Have `matching` select this from now on; its segments were set when it was made."""
    for name, value in {
        "since_ns": selection.since_ns,
        "until_ns": selection.until_ns,
        "service": selection.service,
        "route": selection.route,
        "model": selection.model,
        "breached": selection.breached,
        "judged_by": selection.judged_by,
        "its_verdict": None
        if selection.judged_by is None
        else entries.verdict_pattern(selection.judged_by, breached=bool(selection.breached)),
        "causes": list(selection.causes),
        "code": entries.code_pattern(selection.codes) if selection.codes else None,
        "segment_keys": list(selection.segments),
        "segment_values": list(selection.segments.values()),
        "newest": selection.limit,
        **({} if selection.judging is None else judged.values(selection.judging, "judged_")),
    }.items():
        connection.execute(f"SET VARIABLE {name} = $1", [value])


def _requests() -> str:
    """Return the columns of `requests`, out of `loaded`."""
    columns = (one for one in SCHEMA if REQUESTS in one.relations)
    return ", ".join(f"{one.made or one.name} AS {one.in_requests or one.name}" for one in columns)


def _count(connection: DuckDBPyConnection, relation: str) -> int:
    # All rows: a result with some left blocks the connection.
    ((count,),) = connection.execute(f"SELECT count(*) FROM {relation}").fetchall()
    return int(count)


class Loader:
    """Takes spans in as OTLP, decodes them to stored columns, and keeps each once.

    They are in DuckDB's memory, which goes on disk where room is short, so a source is read once however large it is.
    """

    def __init__(self, selection: Selection | None = None) -> None:
        """Make the database; of a selection by time alone, only the spans of that time are kept.

        Raise StoreError where DuckDB or PyArrow is not installed.
        """
        columns.arrow()
        self.connection = connect()
        stored.add_functions(self.connection)
        fields = ", ".join(f"{name} {stored.DUCKDB[kind]}" for name, kind in columns.ALL)
        self.connection.execute(f"CREATE TABLE received ({fields})")
        self._window = None if selection is None or selection.is_filtered else (selection.since_ns, selection.until_ns)
        self._decoded: list[Decoded] = []
        self._size = 0
        self._rejected = 0
        self._reason: str | None = None

    def add(self, request: bytes) -> None:
        """Take in a serialized ExportTraceServiceRequest, or TracesData, which is the same."""
        found = decode(request)
        self._decoded.append(found)
        self._size += found.accepted
        self._rejected += found.rejected
        self._reason = self._reason or found.reason
        if self._size >= _BATCH:
            self._flush()

    @property
    def is_empty(self) -> bool:
        """Return whether no span that is meant was taken in."""
        return not self.connection.execute("SELECT 1 FROM whole LIMIT 1").fetchall()

    def select(self, selection: Selection, cuts: Sequence[str]) -> DuckDBRelations:
        """Return the relations of `selection`, out of the spans taken in."""
        self._flush()
        self.connection.execute(sql("once"))
        if self._rejected:
            cuts = [*cuts, f"{self._rejected} spans cannot be read: {self._reason}"]
        query = f"SELECT *, kind = {stored.SERVER_KIND} AS is_entry FROM received"
        return select(self.connection, stored.loaded_query(query, selection.segments), selection, cuts)

    def _flush(self) -> None:
        if self._size:
            self.take(arrow_table.table(self._decoded))
            self._decoded, self._size = [], 0

    def take(self, spans: pa.Table) -> None:
        """Take in spans that are decoded."""
        self.connection.register("batch", spans)
        within = "" if self._window is None else " WHERE start_unix_nano >= $1 AND start_unix_nano < $2"
        self.connection.execute(f"INSERT INTO received BY NAME FROM batch{within}", self._window or ())
        self.connection.unregister("batch")


def load(reader: Reader, selection: Selection) -> DuckDBRelations:
    """Return what is selected in DuckDB, by loading the spans of a store that has another database."""
    relations = reader.relations(selection)
    if isinstance(relations, DuckDBRelations):
        return relations
    relations.close()
    loader, cuts = Loader(selection), list[str]()
    for message in reader.iter_otlp(selection, cuts):
        loader.add(message.SerializeToString())
    return loader.select(selection, cuts)


def cells(span: SpanRow) -> tuple[Any, ...]:
    """Return the values of `LOADED`, in their order."""
    read = span.attributes
    found = {column: _of_type(read.get(attribute), kind) for column, (attribute, kind) in TYPED.items()}
    for column, attribute in OLDER.items():
        if found[column] is None:
            found[column] = _of_type(read.get(attribute), TYPED[column][1])
    if span.kind == SERVER:
        found["route"] = route(read)
    found |= _totals(read)
    found |= {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "service": span.service,
        "name": span.name,
        "kind": span.kind,
        "status": span.status,
        "start_unix_nano": min(span.start_unix_nano, _GREATEST),
        "end_unix_nano": min(span.end_unix_nano, _GREATEST),
        "duration_ms": span.duration_ns / 1e6,
        "is_entry": span.kind == SERVER,
        "url_path": path(read),
        "attributes": [(key, as_text(value)) for key, value in read.items()],
        "resource": [(key, as_text(value)) for key, value in span.resource.items()],
    }
    return tuple(found.get(column) for column in LOADED)


def _of_type(value: Value, kind: str) -> Value:
    """Return a value that has its column's type, else None."""
    if value is None or not isinstance(value, _FITS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        return None
    return value if not isinstance(value, (int, float)) or isfinite(value) else None


def _totals(attributes: Mapping[str, Value]) -> dict[str, Value]:
    """Return the stage totals, by name and by column; those of stages without a column are summed."""
    stages = named_stages(attributes)
    totals: dict[str, Value] = {STAGE_COLUMNS[one]: total for one, total in stages.items() if one in STAGE_COLUMNS}
    other = [total for one, total in stages.items() if one not in STAGE_COLUMNS]
    return {"stages": list(stages.items()), **totals, **({OTHER_STAGES: sum(other)} if other else {})}
