"""Answers as one page of HTML that needs nothing else, and their pictures as SVG and as tables. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import cycle, pairwise
from textwrap import wrap
from typing import Final

from stagetrace.output.answer import Answer
from stagetrace.output.chart import (
    Bars,
    Chart,
    Histogram,
    Points,
    Series,
    Stacked,
    ends,
    filled,
    longest,
    merge_bins,
    number,
)
from stagetrace.output.table import Column, Table, numeric
from stagetrace.output.units import UTC, Zone, shown
from stagetrace.text import printable

# --- Answers as one page of HTML that needs nothing else: no script, no font, no request. Pure.

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --bad: #c62828; --soft: #8882 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem }
.sentence { font-size: 1.05rem; font-weight: 600 } .bad { color: var(--bad) } .note { opacity: .75 }
.incomplete { border-left: 3px solid var(--bad); padding-left: .75rem }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.n { text-align: right }
td[colspan] { font-weight: 600; background: var(--soft) } caption { text-align: left; font-weight: 600 }
svg.chart { display: block; max-width: 45rem; margin: .75rem 0 } nav a { margin-right: 1rem }
"""


def page(title: str, answers: Sequence[Answer], zone: Zone = UTC, notes: Sequence[str] = ()) -> str:
    """Return a page with these answers; `notes` stand below its title."""
    body = "".join(_answer(one, number, zone, alone=len(answers) == 1) for number, one in enumerate(answers, 1))
    links = "".join(f'<a href="#a{number}">{_text(one.title)}</a>' for number, one in enumerate(answers, 1))
    head = f"<h1>{_text(title)}</h1>\n" + "".join(f'<p class="note">{_text(note)}</p>\n' for note in notes)
    if len(answers) > 1:
        head += f"<nav>{links}</nav>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{head}{body}</body>\n</html>\n"
    )


def _answer(answer: Answer, number: int, zone: Zone, *, alone: bool) -> str:
    head = "" if alone else f"<h2>{_text(answer.title)}</h2>\n"
    word = "sentence bad" if answer.is_bad else "sentence"
    made = f'<section id="a{number}">\n{head}<p class="{word}">{_text(answer.sentence)}</p>\n'
    if not answer.complete:
        made += f'<p class="incomplete">Incomplete: {_text(answer.reason or "")}</p>\n'
    return made + "".join(_part(part, zone) for part in answer.parts if part) + "</section>\n"


def _part(part: str | Table | Chart, zone: Zone) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>\n"
    return table(part) if isinstance(part, Table) else svg(part, zone)


def table(table: Table) -> str:
    """Return a table as HTML."""
    return f'<div class="wide" tabindex="0"><table>{"".join(_lines(table))}</table></div>\n'


def _lines(table: Table) -> Iterator[str]:
    if table.title is not None:
        yield f"<caption>{_text(table.title)}</caption>"
    classes = [' class="n"' if column.is_number else "" for column in table.columns]
    heads = "".join(f"<th{how}>{_text(one.name)}</th>" for how, one in zip(classes, table.columns, strict=True))
    yield f"\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
    for row in table.rows:
        if isinstance(row, str):
            yield f'<tr><td colspan="{len(classes)}">{_text(row)}</td></tr>\n'
            continue
        yield f"<tr>{''.join(f'<td{how}>{_text(cell)}</td>' for how, cell in zip(classes, row, strict=True))}</tr>\n"
    yield "</tbody>\n"


# --- Pictures of answers as SVG, for a page: as wide as there is room, text of one size. Pure: a picture in, text out.
#
# Places across are percentages. Lines lie in a plane of their own, which is stretched. Classes let a page with themes
# set colours of its own.


def _text(text: str) -> str:
    return escape(printable(text))


_LABEL: Final = 40  # characters beside a value, on the smallest screen
_TITLE: Final = 48  # characters in a line of a title
_NAME: Final = 24  # characters in half a line
_LINE: Final = 18  # height of a line of text
_BAR: Final = 12
_GAP: Final = 8
_PLOT: Final = 160  # height of a plot
_PLANE: Final = 1000  # width of a plane of lines, in units of its own
_ROWS_OF_MARKS: Final = 3
# Distinct with the common kinds of colour blindness (Okabe and Ito).
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442")
STAGES: Final = {
    "network.receive": "#56b4e9",
    "queue": "#e69f00",
    "preprocess": "#0072b2",
    "handler": "#a6611a",
    "inference": "#009e73",
    "postprocess": "#cc79a7",
    "network.send": "#8c6bb1",
}
_FIRST: Final = f'class="first" fill="{COLOURS[0]}"'
_SPENT: Final = 'class="spent" fill="#c62828"'


def svg(chart: Chart, zone: Zone = UTC) -> str:
    """Return a picture as an `svg` element."""
    if isinstance(chart, Bars):
        return _whole(chart.title, _bars(chart), len(chart.rows) * (_LINE + _BAR + _GAP))
    if isinstance(chart, Stacked):
        names = -(-len(_parts(chart)) // 2)
        return _whole(chart.title, _stacked_bars(chart), len(chart.rows) * (_LINE + _BAR + _GAP) + names * _LINE)
    height = _LINE + _PLOT + _LINE + min(_ROWS_OF_MARKS, len(chart.marks)) * _LINE
    if isinstance(chart, Histogram):
        return _whole(chart.title, _columns(merge_bins(chart)), height)
    return _whole(chart.title, _points(chart) if isinstance(chart, Points) else _series(chart, zone), height)


def _whole(title: str, elements: Iterator[str], height: float) -> str:
    lines = wrap(printable(title), _TITLE) or [""]
    head = "".join(f'<text y="{_LINE * at + 14}" font-weight="600">{_text(one)}</text>' for at, one in enumerate(lines))
    top = _LINE * len(lines) + 6
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" width="100%" height="{height + top + 6:g}" role="img" '
        'overflow="visible" font-size="12" font-family="system-ui, sans-serif" fill="currentColor">'
        f"<title>{_text(title)}</title>\n"
        f'{head}\n<g transform="translate(0 {top})">\n{"".join(elements)}</g></svg>\n'
    )


def _bars(chart: Bars) -> Iterator[str]:
    most = chart.whole or longest(chart.rows)
    for place, (label, value, text) in enumerate(chart.rows):
        y = place * (_LINE + _BAR + _GAP)
        look = _SPENT if value is not None and value < 0 else _FIRST
        yield _label(label, y)
        yield f'<text x="100%" y="{y + 13}" text-anchor="end">{_text(text)}</text>\n'
        yield f'<rect width="100%" y="{y + _LINE}" height="{_BAR}" rx="2" fill="currentColor" opacity=".08"/>'
        wide = 100 * filled(value, most)
        yield f'<rect width="{wide:.2f}%" y="{y + _LINE}" height="{_BAR}" rx="2" {look}/>\n'


def _stacked_bars(chart: Stacked) -> Iterator[str]:
    parts = _parts(chart)
    for place, (label, shares) in enumerate(chart.rows):
        y, x = place * (_LINE + _BAR + _GAP), 0.0
        yield _label(label, y)
        for part, share in shares.items():
            wide = max(0.0, share)
            yield (
                f'<rect x="{100 * x:.2f}%" y="{y + _LINE}" width="{100 * wide:.2f}%" height="{_BAR}" {parts[part]}>'
                f"<title>{_text(part)} {100 * share:.1f} %</title></rect>\n"
            )
            x += wide
    top = len(chart.rows) * (_LINE + _BAR + _GAP)
    for place, (part, colour) in enumerate(parts.items()):
        y, x = top + place // 2 * _LINE, 50 * (place % 2)
        # A nested element begins at a percentage, and goes on in pixels.
        yield f'<svg x="{x}%" y="{y}" width="50%" height="{_LINE}"><rect y="3" width="11" height="11" {colour}/>'
        yield f'<text x="17" y="13">{_text(_short(part, _NAME))}</text></svg>\n'


def _parts(chart: Stacked) -> dict[str, str]:
    """Return the colour of each part, as attributes: a stage has its own."""
    others = cycle(COLOURS)
    names = dict.fromkeys(part for _, shares in chart.rows for part in shares)
    return {
        name: f'class="stage-{name.replace(".", "-")}" fill="{STAGES[name]}"'
        if name in STAGES
        else f'fill="{next(others)}"'
        for name in names
    }


def _columns(chart: Histogram) -> Iterator[str]:
    most = max(chart.counts, default=0) or 1
    wide = 100 / max(1, len(chart.counts))
    for place, count in enumerate(chart.counts):
        high = _PLOT * count / most
        span = f"{number(chart.edges[place])} to {number(chart.edges[place + 1])} {chart.unit}: {number(count)}"
        yield (
            f'<rect x="{place * wide:.2f}%" y="{_LINE + _PLOT - high:.1f}" width="{0.96 * wide:.2f}%" '
            f'height="{high:.1f}" {_FIRST}><title>{_text(span)}</title></rect>\n'
        )
    ends_of_axis = (number(chart.edges[0]), f"{number(chart.edges[-1])} {chart.unit}") if chart.edges else ("", "")
    yield from _axes(number(most), *ends_of_axis)
    marks = []
    for at, name in chart.marks:
        for place, (low, high) in enumerate(pairwise(chart.edges)):
            if low <= at < high or (at == high == chart.edges[-1]):
                marks.append(((place + (0.5 if high <= low else (at - low) / (high - low))) * wide / 100, name))
    yield from _marks(marks)


def _series(chart: Series, zone: Zone) -> Iterator[str]:
    top = max((value for value in chart.values if value is not None), default=0) or 1
    wide = _PLANE / max(1, len(chart.values))
    runs: list[list[str]] = [[]]
    for place, value in enumerate(chart.values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{(place + 0.5) * wide:.1f},{_PLOT - _PLOT * max(0.0, value) / top:.1f}")
    yield from _plane([run if len(run) > 1 else run * 2 for run in runs if run], f'class="first" stroke="{COLOURS[0]}"')
    length = chart.step_ns * len(chart.values)
    start, end = (f"{shown(at, zone, 0)} {zone.name}" for at in (chart.start_unix_nano, chart.start_unix_nano + length))
    yield from _axes(f"{number(top)} {chart.unit}", start, end)
    yield from _marks([((at - chart.start_unix_nano) / max(1, length), name) for at, name in chart.marks])


def _points(chart: Points) -> Iterator[str]:
    right, top = (one or 1 for one in ends(chart))

    def down(y: float) -> float:
        return _PLOT - _PLOT * max(0.0, y) / top

    if chart.curve:
        line = [f"{_PLANE * x / right:.1f},{down(y):.1f}" for x, y in chart.curve]
        yield from _plane([line], f'stroke="{COLOURS[1]}"')
    for x, y in chart.points:
        words = f"{number(x)} {chart.x_unit}: {number(y)} {chart.y_unit}"
        at = f'cx="{100 * x / right:.2f}%" cy="{_LINE + down(y):.1f}"'
        yield f'<circle {at} r="3.5" {_FIRST}><title>{_text(words)}</title></circle>\n'
    yield from _axes(f"{number(top)} {chart.y_unit}", "0", f"{number(right)} {chart.x_unit}")
    yield from _marks([(at / right, name) for at, name in chart.marks if 0 <= at <= right])


def _plane(runs: Sequence[Sequence[str]], look: str) -> Iterator[str]:
    """Yield lines through points of the plane."""
    yield f'<svg y="{_LINE}" width="100%" height="{_PLOT}" viewBox="0 0 {_PLANE} {_PLOT}" preserveAspectRatio="none">'
    for run in runs:
        yield f'<polyline points="{" ".join(run)}" {look} stroke-width="1.5" fill="none" stroke-linecap="round" '
        yield 'vector-effect="non-scaling-stroke"/>'
    yield "</svg>\n"


def _axes(top: str, left: str, right: str) -> Iterator[str]:
    """Yield the line below a plot, its greatest value above it, and its ends."""
    bottom = _LINE + _PLOT
    yield f'<line x1="0" y1="{bottom}" x2="100%" y2="{bottom}" stroke="currentColor" opacity=".4"/>\n'
    yield f'<text x="0" y="12">{_text(top)}</text><text x="0" y="{bottom + 14}">{_text(left)}</text>'
    yield f'<text x="100%" y="{bottom + 14}" text-anchor="end">{_text(right)}</text>\n'


def _marks(marks: Sequence[tuple[float, str]]) -> Iterator[str]:
    """Yield lines across a plot, each at a share of its width, with names that do not lie on each other."""
    for place, (share, name) in enumerate(marks):
        y = _LINE + _PLOT + _LINE * (1 + place % _ROWS_OF_MARKS) + 14
        x = f"{100 * min(1.0, max(0.0, share)):.2f}%"
        ends_at = f'y1="{_LINE}" x2="{x}" y2="{y - 12}"'
        yield f'<line x1="{x}" {ends_at} stroke="{COLOURS[5]}" stroke-dasharray="3 3"/>'
        yield f'<text x="{x}" y="{y}" text-anchor="{"end" if share > 0.5 else "start"}">{_text(name)}</text>\n'  # noqa: PLR2004


def _label(label: str, y: float) -> str:
    return f'<text x="0" y="{y + 13}">{_text(_short(label, _LABEL))}<title>{_text(label)}</title></text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def chart_table(chart: Chart, zone: Zone = UTC) -> Table:
    """Return what a picture shows, marked values last."""
    if isinstance(chart, Bars):
        return Table([Column("of"), numeric("value")], [(label, text) for label, _, text in chart.rows])
    if isinstance(chart, Stacked):
        parts = list(dict.fromkeys(part for _, shares in chart.rows for part in shares))
        rows = [(label, *(f"{100 * shares.get(part, 0):.1f} %" for part in parts)) for label, shares in chart.rows]
        return Table([Column("of"), *map(numeric, parts)], rows)
    if isinstance(chart, Histogram):
        small = merge_bins(chart)
        bins = [f"{number(low)} to {number(high)}" for low, high in pairwise(small.edges)]
        counts = list(zip(bins, map(number, small.counts), strict=True))
        return Table(
            [Column(chart.unit), numeric("count")], [*counts, *((number(at), name) for at, name in chart.marks)]
        )
    if isinstance(chart, Points):
        points = [(number(x), number(y)) for x, y in chart.points]
        marks = [(number(at), name) for at, name in chart.marks]
        return Table([numeric(chart.x_unit), numeric(chart.y_unit)], [*points, *marks])
    times = (chart.start_unix_nano + place * chart.step_ns for place in range(len(chart.values)))
    rows = [
        (shown(at, zone, 0), "-" if value is None else number(value))
        for at, value in zip(times, chart.values, strict=True)
    ]
    marks = [(shown(at, zone, 0), name) for at, name in chart.marks]
    return Table([Column(f"time ({zone.name})"), numeric(chart.unit)], [*rows, *marks])
