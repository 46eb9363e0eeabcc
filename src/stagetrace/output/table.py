"""A table as lines of text of a given width. Pure: a table in, lines out, which `output` prints.

Values that all rows share stand once above them, and ids are shortened as far as they stay distinct. Where a line has
no room for a row, the least important columns are dropped, which is noted; then words wrap; then a row takes several
lines. No number, id or word is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Final, NamedTuple, TypeVar

from stagetrace.text import printable

# Kinds of columns.
PLAIN: Final = ""
COMMON: Final = "common"  # shown once, above, where all rows have the same
TIME: Final = "time"  # `2026-03-01 12:00:00.123`: the day likewise
TRACE: Final = "trace"  # a trace id: as many digits as make it distinct

GAP: Final = "  "
NOTHING: Final = "-"  # a cell without a value
_SHORTEST_ID: Final = 8
_LONGEST_WORD: Final = 32  # as a trace id; a longer one, such as a path, may be broken


Row = TypeVar("Row")


class Column(NamedTuple):
    """A column of a table; numbers stand at the right. Those with `leaves` leave a narrow line, the least one first."""

    name: str
    is_number: bool = False
    kind: str = PLAIN
    leaves: int = 0


class Table(NamedTuple):
    """A table, its rows as cells of text or as headings of the rows beneath, and an optional title."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str] | str]
    title: str | None = None


def numeric(name: str, leaves: int = 0) -> Column:
    """Return a column of numbers."""
    return Column(name, is_number=True, leaves=leaves)


def numbers(*names: str) -> list[Column]:
    """Return columns of numbers."""
    return [numeric(name) for name in names]


def table_of(
    rows: Iterable[Row], columns: Sequence[tuple[Column, Callable[[Row], str]]], title: str | None = None
) -> Table:
    """Return a table of rows, by its columns, each with the function that gives its cell of a row."""
    return Table([column for column, _ in columns], [[cell(row) for _, cell in columns] for row in rows], title)


class Cell(NamedTuple):
    """A part of a line; `word` is its whole cell, which sets the colour, or HEAD."""

    text: str
    word: str = ""


HEAD: Final = "\0head"
Line = list[Cell]


def blocks(table: Table, width: int | None = None) -> list[list[Line]]:
    """Return the lines above the rows, then those of each row; no line is wider than `width` if it is given."""
    columns, rows, notes = _take_common(table)
    if width is not None:
        columns, rows, left = _fitting(columns, rows, width)
        notes += [f"columns left out: {', '.join(left)}"] if left else []
    titles = [printable(table.title)] if table.title is not None else []
    titles += ["; ".join(notes)] if notes else []
    top = [line for title in titles for line in _text(title, width)]
    names = [column.name for column in columns]
    cells = [row for row in rows if not isinstance(row, str)]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    layout = _layout(columns, [names, *cells], widths, width)
    head = layout(names)
    shown = [[*top, *([[Cell(cell.text, HEAD) for cell in line] for line in head] if any(names) else [])]]
    return [*shown, *(_text(row, width) if isinstance(row, str) else layout(row) for row in rows)]


def text_of(line: Line) -> str:
    """Return a line without its colours."""
    return "".join(cell.text for cell in line)


def _text(text: str, width: int | None) -> list[Line]:
    lines = [text] if width is None else wrap(text, width, break_on_hyphens=False) or [""]
    return [[Cell(line, HEAD)] for line in lines]


def _take_common(table: Table) -> tuple[list[Column], list[list[str] | str], list[str]]:
    """Return columns and rows without the values that all rows share, and these values."""
    rows: list[list[str] | str] = [
        printable(row) if isinstance(row, str) else [printable(cell) for cell in row] for row in table.rows
    ]
    cells = [row for row in rows if not isinstance(row, str)]
    times = [place for place, column in enumerate(table.columns) if column.kind == TIME]
    days = {row[place].partition(" ")[0] for row in cells for place in times}
    notes: list[str] = [*days] if len(days) == 1 else []
    keep: list[int] = []
    for place, column in enumerate(table.columns):
        found = {row[place] for row in cells}
        if column.kind == COMMON and len(found) == 1:
            (one,) = found
            notes += [] if one == NOTHING else [f"{column.name} {one}"]
            continue
        keep.append(place)
        if column.kind == TIME and len(days) == 1:
            for row in cells:
                row[place] = row[place].partition(" ")[2]
        if column.kind == TRACE and found:
            longest = max(map(len, found))
            enough = (n for n in range(_SHORTEST_ID, longest) if len({cell[:n] for cell in found}) == len(found))
            digits = next(enough, longest)
            for row in cells:
                row[place] = row[place][:digits]
    kept = [row if isinstance(row, str) else [row[place] for place in keep] for row in rows]
    return [table.columns[place] for place in keep], kept, notes


def _fitting(
    columns: list[Column], rows: list[list[str] | str], width: int
) -> tuple[list[Column], list[list[str] | str], list[str]]:
    """Return columns and rows that fit, and the names of the columns that were dropped."""
    keep = list(range(len(columns)))
    cells = [row for row in rows if not isinstance(row, str)]
    widths = [max(map(len, [columns[place].name, *(row[place] for row in cells)])) for place in keep]
    left: list[int] = []
    for place in sorted((place for place in keep if columns[place].leaves), key=lambda place: columns[place].leaves):
        if sum(widths[one] for one in keep) + len(GAP) * (len(keep) - 1) <= width:
            break
        keep.remove(place)
        left.append(place)
    kept = [row if isinstance(row, str) else [row[place] for place in keep] for row in rows]
    return [columns[place] for place in keep], kept, [columns[place].name for place in sorted(left)]


class _layout:  # noqa: N801 -- called like a function
    """Lays rows out, all alike: one line each, or wrapped ones, or several with a few of the columns each."""

    def __init__(
        self, columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: list[int], room: int | None
    ) -> None:
        self._columns = columns
        self._widths = widths
        self._bands = [list(range(len(columns)))]
        if room is not None and sum(widths) + len(GAP) * (len(widths) - 1) > room:
            wrapped = _wrapped_widths(columns, rows, room)
            if wrapped is not None:
                self._widths = wrapped
            else:
                self._widths = [min(width, room - len(GAP)) for width in widths]
                self._bands = list(_bands(self._widths, room))

    def __call__(self, row: Sequence[str]) -> list[Line]:
        lines: list[Line] = []
        for number, band in enumerate(self._bands):
            cells = [(row[place], self._widths[place]) for place in band]
            parts = [
                [cell] if len(cell) <= width else wrap(cell, width, break_on_hyphens=False) for cell, width in cells
            ]
            for parts_of_row in zip_longest(*parts, fillvalue=""):
                line = list(self._line(band, row, parts_of_row))
                if text_of(line).strip() or len(self._bands) == 1:
                    lines.append([*([Cell(GAP)] if number else []), *_strip(line)])
        return lines

    def _line(self, band: Sequence[int], row: Sequence[str], parts_of_row: Sequence[str]) -> Iterator[Cell]:
        for at, (place, part) in enumerate(zip(band, parts_of_row, strict=True)):
            width = self._widths[place]
            if at:
                yield Cell(GAP)
            yield Cell(part.rjust(width) if self._columns[place].is_number else part.ljust(width), row[place])


def _strip(line: Line) -> Line:
    """Return a line without spaces at its end."""
    line = list(line)
    while line:
        last = line.pop()
        if text := last.text.rstrip():
            return [*line, last._replace(text=text)]
    return []


def _wrapped_widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return the width of each column, None if they do not fit. Those that need the least get their width first."""
    cells = list(zip(*rows, strict=True))
    widths = [_least(column, found) for column, found in zip(columns, cells, strict=True)]
    lacking = [max(map(len, found)) - width for found, width in zip(cells, widths, strict=True)]
    spare = room - sum(widths) - len(GAP) * (len(widths) - 1)
    if spare < 0:
        return None
    for place in sorted(range(len(widths)), key=lacking.__getitem__):
        more = min(lacking[place], spare)
        widths[place] += more
        spare -= more
    return widths


def _least(column: Column, cells: Sequence[str]) -> int:
    """Return how wide a column must be for no number or id in it to be broken, nor any word but a very long one."""
    if column.is_number or column.kind == TRACE:
        return max(map(len, cells))
    return min(_LONGEST_WORD, max((len(word) for cell in cells for word in cell.split()), default=0))


def _bands(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield the places of the columns that share a line."""
    band: list[int] = []
    used = 0
    for place, width in enumerate(widths):
        if band and used + len(GAP) + width > room:
            yield band
            band, used = [], len(GAP)  # the next lines are indented
        used += width + (len(GAP) if band else 0)
        band.append(place)
    yield band
