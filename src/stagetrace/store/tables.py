"""What is selected as Arrow tables, for notebooks: the rows of a relation, or of SQL that somebody wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from stagetrace.columns import ATTRIBUTE, NUMBER, TEXT, TRUTH, WHOLE
from stagetrace.errors import QueryError
from stagetrace.otlp.decode import columns
from stagetrace.store import answers
from stagetrace.store.load import DuckDBRelations, load
from stagetrace.store.reductions import REQUESTS, SPANS, START_TIME

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.store.base import Reader, Relations, Selection

_ORDER: Final = "ORDER BY start_unix_nano DESC, trace_id, span_id"
# Maps of every attribute, which a store decodes row by row: single ones are given by their names.
_MAPS: Final = ("attributes", "resource")
_ROWS: Final = 50_000  # of another database that are in Python at a time


def requests(reader: Reader, selection: Selection, attributes: Sequence[str]) -> tuple[pa.Table, str | None]:
    """Return the requests selected, the newest first, with the text of these attributes; and what is missing.

    Another database than DuckDB is asked for them, and not for whole spans.
    """
    with reader.relations(selection) as relations:
        if isinstance(relations, DuckDBRelations):
            return _of(relations, "selected", REQUESTS, attributes), relations.reason
        rows = answers.requests(relations, attributes=[f"{ATTRIBUTE}{one}" for one in attributes])
        names = [one for one in REQUESTS if one not in _MAPS]
        found = (
            {**row, START_TIME: row["start_unix_nano"] // 1000, "stages": list(row["stages"].items())} for row in rows
        )
        schema = _schema({**{one: REQUESTS[one] for one in names}, **{f"{ATTRIBUTE}{one}": TEXT for one in attributes}})
        return _table(schema, found).rename_columns([*names, *attributes]), relations.reason


def spans(reader: Reader, selection: Selection, attributes: Sequence[str]) -> tuple[pa.Table, str | None]:
    """Return the spans of the selection likewise."""
    with load(reader, selection) as relations:
        return _of(relations, "whole", SPANS, attributes), relations.reason


def statement(relations: Relations, sql: str) -> pa.Table:
    """Return the rows of one SELECT of the user's. Raise QueryError for any other, or a wrong one."""
    if isinstance(relations, DuckDBRelations):
        return relations.table(sql)
    pa = columns.arrow()
    names, rows = relations.select(sql)
    try:
        return pa.table(
            dict(zip(names, map(list, zip(*rows, strict=True)), strict=False)) or {one: [] for one in names}
        )
    except pa.ArrowException as error:
        raise QueryError(f"{str(error).splitlines()[0]}\ncast the column to text in the SELECT") from None


def _of(relations: DuckDBRelations, view: str, named: Iterable[str], attributes: Sequence[str]) -> pa.Table:
    names = [f'"{one}"' for one in named if one not in _MAPS]
    names += [f"{relations.engine.attribute(one)} AS {_quote(one)}" for one in attributes]
    query = f"SELECT {', '.join(names)} FROM {view} {_ORDER}"  # noqa: S608 -- names are quoted
    return relations.connection.sql(query).to_arrow_table()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _schema(kinds: dict[str, str]) -> Any:
    """Return the Arrow types of columns, as DuckDB gives them."""
    pa = columns.arrow()
    types = {
        TEXT: pa.string(),
        WHOLE: pa.int64(),
        NUMBER: pa.float64(),
        TRUTH: pa.bool_(),
        "TIMESTAMP": pa.timestamp("us"),
        "MAP(VARCHAR, DOUBLE)": pa.map_(pa.string(), pa.float64()),
    }
    return pa.schema([(name, types[kind]) for name, kind in kinds.items()])


def _table(schema: Any, rows: Iterable[dict[str, Any]]) -> pa.Table:
    pa = columns.arrow()
    left, parts = iter(rows), []
    while some := list(islice(left, _ROWS)):
        parts.append(pa.Table.from_pylist(some, schema=schema))
    return pa.concat_tables(parts) if parts else pa.Table.from_pylist([], schema=schema)
