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
_LONGEST_WORD = 32  # as a trace id; a longer one, of a path say, may be broken
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
            console.print(drawn(part, console.width), markup=False, soft_wrap=isinstance(part, str))
        return
    for part in parts:
        sys.stdout.write("\n".join([*([printable(part)] if isinstance(part, str) else plain(part)), ""]))


def drawn(part: Table | str, width: int) -> Any:
    """Return a part as `rich` draws it in so many columns: a table whose words and numbers do not fit, in bands."""
    from rich.table import Table as Drawn
    from rich.text import Text

    if isinstance(part, str):
        return Text(printable(part))
    widths = _widths(part, width)
    if widths is None:
        return Text("\n".join(_banded(part, width)), overflow="fold")
    table = Drawn(title=part.title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column, given in zip(part.columns, widths, strict=True):
        table.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            width=given,
            no_wrap=_is_whole(column),
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


def _cells(table: Table) -> list[list[str]]:
    """Return the cells of each column, its head first."""
    rows = [[printable(cell) for cell in row] for row in table.rows]
    return [list(column) for column in zip([column.name for column in table.columns], *rows, strict=True)]


def _is_whole(column: Column) -> bool:
    return column.is_number or column.name == "trace"


def _widths(table: Table, room: int) -> list[int] | None:
    """Return how wide each column is to be, those first served that lack least; None where they do not all fit."""
    columns = _cells(table)
    widths = [_least(column, cells) for column, cells in zip(table.columns, columns, strict=True)]
    lacking = [max(map(len, cells)) - width for cells, width in zip(columns, widths, strict=True)]
    spare = room - sum(widths) - len(_GAP) * len(widths)
    if spare < 0:
        return None
    for place in sorted(range(len(widths)), key=lacking.__getitem__):
        more = min(lacking[place], spare)
        widths[place] += more
        spare -= more
    return widths


def _least(column: Column, cells: Sequence[str]) -> int:
    """Return how wide a column must be for no number or id in it to be broken, nor any word but a very long one."""
    if _is_whole(column):
        return max(map(len, cells))
    return min(_LONGEST_WORD, max((len(word) for cell in cells for word in cell.split()), default=0))


def _banded(table: Table, width: int) -> list[str]:
    """Return a table in several lines a row, each with the columns that still fit, so that nothing is cut or broken."""
    columns = _cells(table)
    widths = [min(max(map(len, column)), width - len(_GAP)) for column in columns]
    bands: list[list[int]] = []
    used = width
    for place, needed in enumerate(widths):
        if used + len(_GAP) + needed > width:
            bands.append([])
            used = 0 if len(bands) == 1 else len(_GAP)
        used += needed + (len(_GAP) if bands[-1] else 0)
        bands[-1].append(place)
    lines = [] if table.title is None else [table.title]
    for row in zip(*columns, strict=True):
        for number, band in enumerate(bands):
            at = [table.columns[place] for place in band]
            line = _aligned([row[place] for place in band], [widths[place] for place in band], at)
            if line:
                lines.append(f"{_GAP if number else ''}{line}")
    return lines


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
