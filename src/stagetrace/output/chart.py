"""Pictures of answers, as a terminal shows them. Pure: a picture in, lines out; `svg` draws the same for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Final, NamedTuple, TypeAlias

from stagetrace.output.units import UTC, Zone, shown
from stagetrace.text import printable

Chart: TypeAlias = "Bars | Stacked | Histogram | Series | Points"


class Bars(NamedTuple):
    """A bar for each row: label, value from 0 on (None: not known) and the value in words.

    A negative value is what is overspent: its bar is full, and in the colour of what is bad.
    """

    title: str
    rows: Sequence[tuple[str, float | None, str]]
    whole: float | None = None  # the value of a full bar; None: the greatest of them


class Stacked(NamedTuple):
    """A bar of full width for each row, divided into parts by their shares, which add up to 1 at most."""

    title: str
    rows: Sequence[tuple[str, Mapping[str, float]]]


class Histogram(NamedTuple):
    """How many there are from each edge to the next: one `counts` fewer than `edges`; and values that are marked."""

    title: str
    edges: Sequence[float]
    counts: Sequence[float]
    unit: str
    marks: Sequence[tuple[float, str]] = ()


class Series(NamedTuple):
    """Values at equal steps of time (None: there is none), and moments that are marked."""

    title: str
    values: Sequence[float | None]
    start_unix_nano: int
    step_ns: int
    unit: str
    marks: Sequence[tuple[int, str]] = ()


class Points(NamedTuple):
    """Measured points (x, y), a curve through them, and values of x that are marked; both axes begin at 0."""

    title: str
    points: Sequence[tuple[float, float]]
    curve: Sequence[tuple[float, float]]
    x_unit: str
    y_unit: str
    marks: Sequence[tuple[float, str]] = ()


class Ink(NamedTuple):
    """The characters of pictures."""

    bar: str
    parts: str
    levels: str  # of a column, lowest first
    mark: str
    point: str
    curve: str


BLOCKS: Final = Ink("█", "█▓▒░▚▞▤▥", "▁▂▃▄▅▆▇█", "▲", "●", "·")
ASCII: Final = Ink("#", "#=+-.:~*", "_.-=+*%#", "^", "o", ".")
MOST_ROWS: Final = 20  # of a histogram
_HEIGHT: Final = 4  # lines of a series
_TALL: Final = 12  # lines of points
_WIDE: Final = 64  # columns of points at most
_LABEL: Final = 32  # characters at most
_LEAST_BAR: Final = 10


def lines(chart: Chart, width: int, ink: Ink = BLOCKS, zone: Zone = UTC) -> list[str]:
    """Return a picture as lines of at most `width` characters (60 or more)."""
    if isinstance(chart, Bars):
        made = _bars(chart.rows, width, ink, chart.whole)
    elif isinstance(chart, Stacked):
        made = _stacked_lines(chart, width, ink)
    elif isinstance(chart, Histogram):
        made = _bars(list(_bins(chart)), width, ink)
    elif isinstance(chart, Points):
        made = _points(chart, width, ink)
    else:
        made = _series(chart, width, ink, zone)
    return [printable(chart.title)[:width], *made]


def merge_bins(chart: Histogram) -> Histogram:
    """Return a histogram of at most `MOST_ROWS` bins, neighbours taken together."""
    step = -(-len(chart.counts) // MOST_ROWS) if chart.counts else 1
    starts = range(0, len(chart.counts), step)
    counts = [sum(chart.counts[at : at + step]) for at in starts]
    edges = [*(chart.edges[at] for at in starts), chart.edges[-1]] if chart.edges else []
    return chart._replace(edges=edges, counts=counts)


def number(value: float) -> str:
    """Return a number as a picture shows it: three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 -- three digits


def _bins(chart: Histogram) -> list[tuple[str, float, str]]:
    small = merge_bins(chart)
    last = len(small.counts) - 1
    rows = []
    for place, ((low, high), count) in enumerate(zip(pairwise(small.edges), small.counts, strict=True)):
        names = [name for at, name in chart.marks if low <= at < high or (place == last and at == high)]
        marked = f"  < {', '.join(names)}" if names else ""
        rows.append((f"{number(low)} to {number(high)} {chart.unit}", count, f"{number(count)}{marked}"))
    return rows


def filled(value: float | None, most: float) -> float:
    """Return which share of a bar is filled; one that is overspent is full."""
    if value is None or most <= 0:
        return 0.0
    return 1.0 if value < 0 else min(1.0, value / most)


def longest(rows: Sequence[tuple[str, float | None, str]]) -> float:
    """Return the greatest value."""
    return max((value for _, value, _ in rows if value is not None), default=0)


def _bars(rows: Sequence[tuple[str, float | None, str]], width: int, ink: Ink, whole: float | None = None) -> list[str]:
    labels = [_short(label) for label, _, _ in rows]
    texts = [printable(text) for _, _, text in rows]
    wide = max(map(len, labels), default=0)
    room = max(_LEAST_BAR, width - wide - max(map(len, texts), default=0) - 5)
    most = whole or longest(rows)
    made = []
    for label, text, (_, value, _) in zip(labels, texts, rows, strict=True):
        bar = ink.bar * (round(room * filled(value, most)) or int(bool(value)))
        made.append(f"  {label:{wide}}  {bar}{' ' if bar else ''}{text}"[:width])
    return made


def _stacked_lines(chart: Stacked, width: int, ink: Ink) -> list[str]:
    parts = list(dict.fromkeys(part for _, shares in chart.rows for part in shares))
    inks = dict(zip(parts, cycle(ink.parts), strict=False))
    labels = [_short(label) for label, _ in chart.rows]
    wide = max(map(len, labels), default=0)
    room = width - wide - 4
    made = []
    for label, (_, shares) in zip(labels, chart.rows, strict=True):
        bar, upto = "", 0.0
        for part, share in shares.items():
            upto += max(0.0, share)
            bar += inks[part] * (round(room * min(upto, 1.0)) - len(bar))
        made.append(f"  {label:{wide}}  {bar}".rstrip())
    line = " " * (wide + 2)
    for part in parts:
        name = f"  {inks[part]} {_short(part)}"
        if len(line) + len(name) > width:
            made.append(line)
            line = " " * (wide + 2)
        line += name
    return [*made, line]


def _series(chart: Series, width: int, ink: Ink, zone: Zone) -> list[str]:
    room = min(width - 14, max(_LEAST_BAR, len(chart.values)))
    if not chart.values:
        return []
    columns = _columns(chart.values, room)
    known = [value for value in columns if value is not None]
    if not known:
        return ["  no value"]
    top = max(known)
    levels = len(ink.levels)
    heights = [None if one is None else (round(one / top * _HEIGHT * levels) if top > 0 else 0) for one in columns]
    made = []
    for row in reversed(range(_HEIGHT)):
        label = f"{number(top)} {printable(chart.unit)}" if row == _HEIGHT - 1 else "0" if row == 0 else ""
        cells = "".join(_cell(one, row, levels, ink) for one in heights)
        made.append(f"{label:>12}  {cells}".rstrip())
    length = chart.step_ns * len(chart.values)
    for at, name in chart.marks:
        place = min(room - 1, max(0, (at - chart.start_unix_nano) * room // max(1, length)))
        made.append(_pointer_line(place, name, width, ink))
    both = (shown(at, zone, 0) for at in (chart.start_unix_nano, chart.start_unix_nano + length))
    made.append(f"{'':14}{' to '.join(both)} {zone.name}"[:width])
    return made


def _points(chart: Points, width: int, ink: Ink) -> list[str]:
    room = min(width - 14, _WIDE)
    right, top = ends(chart)
    if right <= 0 or top <= 0:
        return []
    cells = [[" "] * room for _ in range(_TALL)]
    for some, character in ((chart.curve, ink.curve), (chart.points, ink.point)):
        for x, y in some:
            if 0 <= x <= right and 0 <= y <= top:
                cells[round((1 - y / top) * (_TALL - 1))][round(x / right * (room - 1))] = character
    labels = {0: f"{number(top)} {printable(chart.y_unit)}", _TALL - 1: "0"}
    made = [f"{labels.get(row, ''):>12}  {''.join(line)}".rstrip() for row, line in enumerate(cells)]
    for at, name in chart.marks:
        if 0 <= at <= right:
            made.append(_pointer_line(round(at / right * (room - 1)), name, width, ink))
    last = f"{number(right)} {printable(chart.x_unit)}"
    made.append(f"{'':14}0{last:>{max(1, room - 1)}}"[:width])
    return made


def ends(chart: Points) -> tuple[float, float]:
    """Return the greatest x and y of the chart."""
    every = [*chart.points, *chart.curve]
    return max((x for x, _ in every), default=0), max((y for _, y in every), default=0)


def _pointer_line(place: int, name: str, width: int, ink: Ink) -> str:
    """Return the line that points at a column of a picture, its name on the side that has room."""
    text = printable(name)
    pointed = f"{'':14}{' ' * place}{ink.mark} {text}"
    return pointed if len(pointed) <= width else f"{'':14}{f'{text} {ink.mark}':>{place + 1}}"[:width]


def _columns(values: Sequence[float | None], room: int) -> list[float | None]:
    """Return as many values as there is room for: the greatest of those that share a column."""
    made: list[float | None] = []
    for place in range(room):
        first = place * len(values) // room
        some = [one for one in values[first : max(first + 1, (place + 1) * len(values) // room)] if one is not None]
        made.append(max(some, default=None))
    return made


def _cell(height: int | None, row: int, levels: int, ink: Ink) -> str:
    if height is None:
        return " "
    filled = min(levels, height - row * levels)
    if filled <= 0:
        return ink.levels[0] if row == 0 else " "
    return ink.levels[filled - 1]


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 3]}..."
