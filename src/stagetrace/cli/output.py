"""Answers on stdout: one JSON object, or a table, which `rich` draws on a terminal and plain text is elsewhere."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from stagetrace.cli import terminal
from stagetrace.cli.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_GAP = "  "
_STYLES = {
    "breach": "bold red",
    "critical": "bold red",
    "major": "red",
    "minor": "yellow",
    "good": "green",
    "ERROR": "bold red",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}


class Column(NamedTuple):
    """A column of a table; numbers stand at the right."""

    name: str
    is_number: bool = False


class Table(NamedTuple):
    """A table with its rows as text, and an optional title."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str | None = None


def show_json(answer: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    sys.stdout.write(json.dumps(answer, allow_nan=False, ensure_ascii=not terminal.shows_blocks()) + "\n")


def show(*parts: Table | str) -> None:
    """Print tables and lines, in this order."""
    if sys.stdout.isatty() and terminal.has_rich():
        from rich.console import Console

        console = Console(highlight=False)
        for part in parts:
            console.print(drawn(part), markup=False, soft_wrap=isinstance(part, str))
        return
    for part in parts:
        sys.stdout.write("\n".join([*([printable(part)] if isinstance(part, str) else plain(part)), ""]))


def drawn(part: Table | str) -> Any:
    """Return a part as `rich` draws it."""
    from rich.table import Table as Drawn
    from rich.text import Text

    if isinstance(part, str):
        return Text(printable(part))
    table = Drawn(title=part.title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in part.columns:
        is_id = column.name == "trace"
        table.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            no_wrap=is_id or column.is_number,
            overflow="fold",
        )
    for row in part.rows:
        # A Text and not a str, or a name in square brackets would be read as markup.
        table.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    return table


def plain(table: Table) -> list[str]:
    """Return a table as aligned lines."""
    heads = [column.name for column in table.columns]
    rows = [heads, *([printable(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    title = [] if table.title is None else [table.title]
    return [*title, *(_aligned(row, widths, table.columns) for row in rows)]


def _aligned(row: Iterable[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    cells = (
        cell.rjust(width) if column.is_number else cell.ljust(width)
        for cell, width, column in zip(row, widths, columns, strict=True)
    )
    return _GAP.join(cells).rstrip()


def completeness(complete: bool = True, reason: str | None = None) -> dict[str, Any]:
    """Return the keys with which each JSON answer begins."""
    return {"complete": complete} if complete else {"complete": complete, "reason": reason}


def warn(complete: bool, reason: str | None) -> None:
    """Say on stderr that an answer is not complete."""
    if not complete:
        sys.stderr.write(f"stagetrace: INCOMPLETE: {reason}\n")
