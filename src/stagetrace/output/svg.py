"""Pictures of answers as SVG, for a page. Pure: a picture in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import cycle, pairwise
from typing import Final

from stagetrace.output.chart import Bars, Chart, Histogram, Points, Series, Stacked, ends, merged, number
from stagetrace.output.times import UTC, Zone, shown
from stagetrace.printable import printable

_WIDTH: Final = 720
_LEFT: Final = 260  # of bars: where labels end
_LABEL: Final = 38  # characters
_RIGHT: Final = 150  # room for values
_END: Final = _WIDTH - 12  # of plots
_ROW: Final = 22
_PLOT: Final = 160  # height of a series
_AXIS: Final = 70
# Distinct with the common kinds of colour blindness (Okabe and Ito).
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442")


def svg(chart: Chart, zone: Zone = UTC) -> str:
    """Return a picture as an `svg` element."""
    if isinstance(chart, Bars):
        return _whole(chart.title, _bars(chart.rows), len(chart.rows) * _ROW)
    if isinstance(chart, Histogram):
        return _whole(chart.title, _columns(merged(chart)), _PLOT + 2 * _ROW)
    if isinstance(chart, Stacked):
        return _whole(chart.title, _stacked(chart), (len(chart.rows) + len(_legend(chart))) * _ROW)
    if isinstance(chart, Points):
        return _whole(chart.title, _points(chart), _PLOT + 2 * _ROW)
    return _whole(chart.title, _series(chart, zone), _PLOT + 2 * _ROW)


def _whole(title: str, elements: Iterator[str], height: float) -> str:
    head = f'<text x="0" y="16" font-weight="600">{_text(title)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height + 32:g}" width="{_WIDTH}" role="img" '
        f'font-size="12" font-family="system-ui, sans-serif" fill="currentColor"><title>{_text(title)}</title>\n'
        f'{head}\n<g transform="translate(0 28)">\n{"".join(elements)}</g></svg>\n'
    )


def _bars(rows: Sequence[tuple[str, float | None, str]]) -> Iterator[str]:
    most = max((value for _, value, _ in rows if value is not None), default=0)
    for place, (label, value, text) in enumerate(rows):
        y = place * _ROW
        length = 0.0 if value is None or most <= 0 else max(0.0, value) / most * (_WIDTH - _LEFT - _RIGHT)
        yield _label(label, y)
        yield f'<rect x="{_LEFT}" y="{y + 3}" width="{length:.1f}" height="{_ROW - 6}" fill="{COLOURS[0]}"/>\n'
        yield f'<text x="{_LEFT + length + 6:.1f}" y="{y + 15}">{_text(text)}</text>\n'


def _stacked(chart: Stacked) -> Iterator[str]:
    legend = _legend(chart)
    colours = dict(zip((part for row in legend for part, _ in row), cycle(COLOURS), strict=False))
    for place, (label, shares) in enumerate(chart.rows):
        y, x = place * _ROW, float(_LEFT)
        yield _label(label, y)
        for part, share in shares.items():
            wide = max(0.0, share) * (_END - _LEFT)
            yield (
                f'<rect x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="{_ROW - 6}" fill="{colours[part]}">'
                f"<title>{_text(part)} {100 * share:.1f} %</title></rect>\n"
            )
            x += wide
    for place, row in enumerate(legend, len(chart.rows)):
        y = place * _ROW
        for part, x in row:
            yield f'<rect x="{x:.1f}" y="{y + 5}" width="11" height="11" fill="{colours[part]}"/>'
            yield f'<text x="{x + 15:.1f}" y="{y + 15}">{_text(part)}</text>\n'


def _legend(chart: Stacked) -> list[list[tuple[str, float]]]:
    """Return rows of parts, each with where it begins."""
    rows: list[list[tuple[str, float]]] = [[]]
    x = float(_LEFT)
    for part in dict.fromkeys(part for _, shares in chart.rows for part in shares):
        wide = 30 + 6.5 * len(part)
        if rows[-1] and x + wide > _WIDTH:
            rows.append([])
            x = float(_LEFT)
        rows[-1].append((part, x))
        x += wide
    return rows


def _columns(chart: Histogram) -> Iterator[str]:
    most = max(chart.counts, default=0) or 1
    wide = (_END - _AXIS) / max(1, len(chart.counts))
    for place, count in enumerate(chart.counts):
        high = _PLOT * count / most
        span = f"{number(chart.edges[place])} to {number(chart.edges[place + 1])} {chart.unit}: {number(count)}"
        yield (
            f'<rect x="{_AXIS + place * wide:.1f}" y="{_PLOT - high:.1f}" width="{max(1.0, wide - 1):.1f}" '
            f'height="{high:.1f}" fill="{COLOURS[0]}"><title>{_text(span)}</title></rect>\n'
        )
    yield f'<text x="{_AXIS - 6}" y="12" text-anchor="end">{number(most)}</text>\n'
    if chart.edges:
        first, last = chart.edges[0], chart.edges[-1]
        yield f'<text x="{_AXIS}" y="{_PLOT + 16}">{number(first)}</text>'
        yield f'<text x="{_END}" y="{_PLOT + 16}" text-anchor="end">{number(last)} {_text(chart.unit)}</text>\n'
    for at, name in chart.marks:
        for place, (low, high) in enumerate(pairwise(chart.edges)):
            if low <= at < high or (at == high == chart.edges[-1]):
                part = 0.5 if high <= low else (at - low) / (high - low)
                yield from _mark(_AXIS + (place + part) * wide, name)


def _series(chart: Series, zone: Zone) -> Iterator[str]:
    top = max((value for value in chart.values if value is not None), default=0) or 1
    wide = (_END - _AXIS) / max(1, len(chart.values))
    run: list[str] = []
    for place, value in enumerate([*chart.values, None]):
        if value is not None:
            run.append(f"{_AXIS + (place + 0.5) * wide:.1f},{_PLOT - _PLOT * max(0.0, value) / top:.1f}")
        elif run:
            ends = f'stroke="{COLOURS[0]}" stroke-width="1.5" fill="none" stroke-linecap="round"'
            yield f'<polyline points="{" ".join(run if len(run) > 1 else run * 2)}" {ends}/>\n'
            run = []
    yield f'<line x1="{_AXIS}" y1="{_PLOT}" x2="{_END}" y2="{_PLOT}" stroke="currentColor" opacity=".4"/>\n'
    yield f'<text x="{_AXIS - 6}" y="12" text-anchor="end">{number(top)} {_text(chart.unit)}</text>\n'
    length = chart.step_ns * len(chart.values)
    start, end = (f"{shown(at, zone, 0)} {zone.name}" for at in (chart.start_unix_nano, chart.start_unix_nano + length))
    yield f'<text x="{_AXIS}" y="{_PLOT + 16}">{_text(start)}</text>'
    yield f'<text x="{_END}" y="{_PLOT + 16}" text-anchor="end">{_text(end)}</text>\n'
    for at, name in chart.marks:
        yield from _mark(_AXIS + (_END - _AXIS) * (at - chart.start_unix_nano) / max(1, length), name)


def _points(chart: Points) -> Iterator[str]:
    right, top = (one or 1 for one in ends(chart))

    def placed(x: float, y: float) -> tuple[str, str]:
        return f"{_AXIS + (_END - _AXIS) * x / right:.1f}", f"{_PLOT - _PLOT * max(0.0, y) / top:.1f}"

    if chart.curve:
        line = " ".join(",".join(placed(*one)) for one in chart.curve)
        yield f'<polyline points="{line}" stroke="{COLOURS[1]}" stroke-width="1.5" fill="none"/>\n'
    for x, y in chart.points:
        across, down = placed(x, y)
        words = f"{number(x)} {chart.x_unit}: {number(y)} {chart.y_unit}"
        yield f'<circle cx="{across}" cy="{down}" r="3" fill="{COLOURS[0]}"><title>{_text(words)}</title></circle>\n'
    yield f'<line x1="{_AXIS}" y1="{_PLOT}" x2="{_END}" y2="{_PLOT}" stroke="currentColor" opacity=".4"/>\n'
    yield f'<text x="{_AXIS - 6}" y="12" text-anchor="end">{number(top)}</text>'
    yield f'<text x="{_AXIS + 4}" y="12">{_text(chart.y_unit)}</text>\n'
    last = f"{number(right)} {_text(chart.x_unit)}"
    yield f'<text x="{_AXIS}" y="{_PLOT + 16}">0</text>'
    yield f'<text x="{_END}" y="{_PLOT + 16}" text-anchor="end">{last}</text>\n'
    for at, name in chart.marks:
        if 0 <= at <= right:
            yield from _mark(_AXIS + (_END - _AXIS) * at / right, name)


def _mark(x: float, name: str) -> Iterator[str]:
    yield f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{_PLOT}" stroke="{COLOURS[5]}" stroke-dasharray="3 3"/>'
    side = "end" if x > _WIDTH / 2 else "start"
    at = x + (-4 if side == "end" else 4)
    yield f'<text x="{at:.1f}" y="{_PLOT + 32}" text-anchor="{side}">{_text(name)}</text>\n'


def _label(label: str, y: float) -> str:
    short = label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"
    return f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{_text(short)}<title>{_text(label)}</title></text>'


def _text(text: str) -> str:
    return escape(printable(text))
