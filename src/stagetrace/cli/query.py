"""`stagetrace query`: one's own SQL over the two relations, read-only."""

from __future__ import annotations

import argparse
import csv
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

from stagetrace.cli.arguments import count, number_between, selection_options, utf8
from stagetrace.cli.ask import reading
from stagetrace.cli.console import time_limit
from stagetrace.cli.output import show_result, warn
from stagetrace.cli.registry import ANSWERED, Option, UsageError
from stagetrace.output.answer import join_reasons
from stagetrace.output.table import Column, Table
from stagetrace.semconv import json_value
from stagetrace.store.base import Relations
from stagetrace.text import spreadsheet_cell

DESCRIPTION: Final = """Ask in SQL (DuckDB's) over two relations: `requests` (a row an entry span) and `spans`.

The options select what the relations hold. The SQL reads them and nothing else: no file, no network, no change.
`stagetrace query "DESCRIBE requests"` lists the columns."""
EXAMPLE: Final = (
    'stagetrace query "SELECT route, quantile_cont(inference_ms, 0.99) AS p99 FROM requests GROUP BY route" --since 1d'
)
_TIMEOUT_S: Final = 60.0
_LONGEST_S: Final = 86_400
_ROWS: Final = 100_000
_MOST_BYTES: Final = 64 * 1024 * 1024
_NUMBERS: Final = (int, float, Decimal)
OPTIONS: Final = (
    Option("SQL", "one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN) statement", utf8),
    *selection_options(),
    Option("--csv", "print comma-separated values with a header"),
    Option(
        "--timeout SECONDS",
        f"end the query, without an answer, after this time; 0: never; default: {_TIMEOUT_S:g}",
        number_between(0, _LONGEST_S, f"is not a number of seconds from 0 to {_LONGEST_S}"),
        _TIMEOUT_S,
    ),
    Option(
        "--rows N",
        f"print the first N rows of the result, {_MOST_BYTES >> 20} MiB of text at most; default: {_ROWS:,}",
        count,
        _ROWS,
    ),
)


class Result(NamedTuple):
    """The result of a statement; `reason` explains what was cut off, if anything was."""

    names: list[str]
    rows: list[tuple[Any, ...]]
    reason: str | None


def run(args: argparse.Namespace) -> int:
    """Print the result and return the exit code."""
    if args.csv and args.json:
        raise UsageError("--csv and --json are two forms of one answer\ngive one of them")
    with reading(args) as (reader, wanted), reader.relations(wanted) as relations:
        if args.timeout:
            late = f"the query took longer than {args.timeout:g} s, and was ended"
            remedy = "ask for less, or give it more time: --timeout SECONDS, 0 for any"
            with time_limit(args.timeout, f"{late}\n{remedy}"):
                found = ask(relations, args.sql, args.rows)
        else:
            found = ask(relations, args.sql, args.rows)
    reason, names, rows = join_reasons((relations.reason, found.reason)), found.names, found.rows
    if args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(spreadsheet_cell, names))
        writer.writerows([[_cell(value) for value in row] for row in rows])
        warn(reason)
        return ANSWERED
    values = [[_json(value) for value in row] for row in rows] if args.json else []
    parts = [] if args.json else [_table(names, rows)]
    return show_result(args, {"columns": names, "rows": values}, parts, reason)


def ask(relations: Relations, sql: str, most: int) -> Result:
    """Return the first rows of one reading statement. Raise QueryError for any other, and if the engine refuses it.

    There are at most `most`, or many bytes of them.
    """
    names, found = relations.select(sql)
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in found:
        if len(rows) == most:
            return Result(names, rows, f"there are more than {most:,} rows: --rows N prints more")
        if size > _MOST_BYTES:
            cut = f"the first {len(rows):,} rows have {_MOST_BYTES >> 20} MiB, and there are more"
            return Result(names, rows, cut)
        rows.append(row)
        size += sum(len(plain_text(value)) for value in row)
    return Result(names, rows, None)


def _table(names: list[str], rows: list[tuple[Any, ...]]) -> Table:
    numeric = [
        all(isinstance(row[at], (*_NUMBERS, type(None))) and not isinstance(row[at], bool) for row in rows)
        for at in range(len(names))
    ]
    columns = [Column(name, is_number) for name, is_number in zip(names, numeric, strict=True)]
    return Table(columns, [["-" if value is None else plain_text(value) for value in row] for row in rows])


def _cell(value: Any) -> Any:
    """Return a value of DuckDB as a cell of CSV: numbers stay numbers, text is none that a spreadsheet would run."""
    if value is None:
        return ""
    text = plain_text(value)
    return text if isinstance(value, _NUMBERS) else spreadsheet_cell(text)


def plain_text(value: Any) -> str:
    """Return a value of DuckDB as text; lists and maps as JSON."""
    found = _json(value)
    if isinstance(found, (dict, list)):
        import json

        return json.dumps(found, ensure_ascii=False)
    return str(found).lower() if isinstance(found, bool) else str(found)


def _json(value: Any) -> Any:
    """Return a value of DuckDB as JSON has it: exact numbers stay numbers, times become text."""
    if isinstance(value, (list, tuple, set)):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (date, datetime, time, timedelta, UUID)):
        return str(value)
    return json_value(value) if isinstance(value, (str, int, float, bytes, type(None))) else str(value)
