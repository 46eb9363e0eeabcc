"""The values of a picture as a table: for people who do not see it, or want the numbers. Pure."""

from __future__ import annotations

from itertools import pairwise

from stagetrace.output.chart import Bars, Chart, Histogram, Points, Stacked, merged, number
from stagetrace.output.table_layout import Column, Table, numeric
from stagetrace.output.times import UTC, Zone, shown


def chart_table(chart: Chart, zone: Zone = UTC) -> Table:
    """Return what a picture shows, marked values last."""
    if isinstance(chart, Bars):
        return Table([Column("of"), numeric("value")], [(label, text) for label, _, text in chart.rows])
    if isinstance(chart, Stacked):
        parts = list(dict.fromkeys(part for _, shares in chart.rows for part in shares))
        rows = [(label, *(f"{100 * shares.get(part, 0):.1f} %" for part in parts)) for label, shares in chart.rows]
        return Table([Column("of"), *map(numeric, parts)], rows)
    if isinstance(chart, Histogram):
        small = merged(chart)
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
