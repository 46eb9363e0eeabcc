"""How long requests took: cells of a heat map by time and duration, and the rank of one request among its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.base import Source, sample_of
from stagetrace.analysis.estimates import NOTHING, Sample

# --- Requests by when they began and how long they took: the cells of a heat map, and the objectives drawn on it.

COLUMNS: Final = 160  # at most
ROWS: Final = 60  # at most
_BINS: Final = 16  # to a doubling of the duration
_LOWEST: Final = -10 * _BINS  # the bin that holds all that is shorter, too
_SPARSE: Final = 0.1  # a window of which the requests fill less is shown only from the first to the last of them
_LINES: Final = 5
_OBJECTIVES: Final = 100  # looked at, the most frequent ones
_S: Final = 10**9
WIDTHS: Final = (
    *(step * 10**digits for digits in range(3, 9) for step in (1, 2, 5)),
    *(step * _S for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)),
    *(hours * 3600 * _S for hours in (1, 2, 3, 6, 12, 24, 48, 168, 336, 720, 2160, 8760)),
)


class Cell(NamedTuple):
    """The requests of one column and one row; counts are sums of weights."""

    column: int
    row: int  # the shortest durations are row 0
    requests: float
    breaches: float


class Line(NamedTuple):
    """A threshold, and the objectives that have it, the most frequent first."""

    threshold_ms: float
    objectives: tuple[str, ...]


@dataclass(frozen=True)
class LatencyMap:
    """The cells that have requests. Column c begins at `origin_ns + c * width_ns`, row r at `edges_ms[r]`."""

    origin_ns: int
    width_ns: int
    columns: int
    edges_ms: tuple[float, ...] = ()  # one more than there are rows; none without a request
    cells: tuple[Cell, ...] = ()
    is_judged: bool = False  # whether any request is
    lines: tuple[Line, ...] = ()
    thresholds: int = 0  # in all, of which `lines` has the most frequent
    is_narrowed: bool = False  # the window has more time, without a request
    sample: Sample = NOTHING

    @property
    def times_ns(self) -> list[int]:
        """Return when each column begins, and when the last one ends."""
        return [self.origin_ns + column * self.width_ns for column in range(self.columns + 1)]

    @property
    def requests(self) -> float:
        """Return how many requests there are."""
        return sum(cell.requests for cell in self.cells)

    @property
    def breaches(self) -> float:
        """Return how many of them are breaches."""
        return sum(cell.breaches for cell in self.cells)

    def quantile(self, q: float) -> float | None:
        """Return the lower edge of the row in which a quantile of all durations lies."""
        return self.edges_ms[quantile_row(self.cells, q)] if self.cells else None


# --- How long one request and its stages took beside others of its kind: which share of them took less.


def ask(source: Source, since_ns: int, until_ns: int) -> LatencyMap:
    """Return the map of a source within a window, of which parts without a request may be left out."""
    (extent,) = source.reduce("extent") or [{}]
    first, last = extent.get("first_unix_nano"), extent.get("last_unix_nano")
    if first is None or last is None:
        return LatencyMap(since_ns, max(1, until_ns - since_ns), 1)
    start, end = since_ns, max(until_ns, last + 1)  # clocks of traced machines may run ahead
    is_narrowed = last + 1 - first < _SPARSE * (end - start)
    if is_narrowed:
        start, end = first, last + 1
    width = width_of(end - start)
    origin = start // width * width
    columns = -(-(end - origin) // width)
    values = {"origin": origin, "width": width, "columns": columns, "bins": _BINS, "rows": ROWS}
    rows = source.reduce("latency_cells", **values)
    objectives = source.reduce("largest_groups", ["objective", "threshold_ms", "breached"], most=_OBJECTIVES)
    lines, thresholds = _lines(objectives)
    return LatencyMap(
        origin,
        width,
        columns,
        _edges(rows),
        tuple(sorted(Cell(row["bucket"], row["place"], row["requests"], row["breaches"]) for row in rows)),
        any(row["judged"] for row in rows),
        lines,
        thresholds,
        is_narrowed,
        sample_of(rows),
    )


def width_of(length_ns: int) -> int:
    """Return the width of a column, in ns: one that people use, so that there are enough columns and not too many."""
    return next((width for width in WIDTHS if -(-length_ns // width) < COLUMNS), -(-length_ns // (COLUMNS - 1)))


def quantile_row(cells: Sequence[Cell], q: float) -> int:
    """Return the row in which a quantile of the durations of these cells lies."""
    by_row: dict[int, float] = {}
    for cell in cells:
        by_row[cell.row] = by_row.get(cell.row, 0.0) + cell.requests
    left = q * sum(by_row.values())
    for row in sorted(by_row):
        left -= by_row[row]
        if left <= 0:
            return row
    return max(by_row)


def _edges(rows: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Return where each row begins, and where the last one ends.

    Durations are whole ns, so that a bound is the same that is rounded up to the next one; it is shorter as a text.
    """
    if not rows:
        return ()
    lowest, step = rows[0]["lowest"], rows[0]["step"]
    count = max(row["place"] for row in rows) + 1
    edges = [ceil(2 ** ((lowest + place * step) / _BINS) * 1e6) / 1e6 for place in range(count + 1)]
    return (0.0 if lowest <= _LOWEST else edges[0], *edges[1:])


def _lines(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[Line, ...], int]:
    """Return the thresholds that most requests have, and how many there are.

    That of a good request is of its duration; that of a breach may be of another bound, such as `first_chunk`.
    """
    with_good = {row["objective"] for row in rows if row["breached"] is False}
    found: dict[float, dict[str, None]] = {}  # names in order, each once
    for row in rows:
        if row["threshold_ms"] is not None and not (row["breached"] and row["objective"] in with_good):
            found.setdefault(row["threshold_ms"], {})[row["objective"] or "an objective"] = None
    return tuple(Line(ms, tuple(names)) for ms, names in list(found.items())[:_LINES]), len(found)


LEAST: Final = 20  # requests, below which a rank is nothing to show
REQUEST: Final = "request"  # in place of a stage
_OTHER: Final = "other"
_UNUSUAL: Final = 0.1
_EVER_NS: Final = 1 << 62  # one bucket of time


class Rank(NamedTuple):
    """One part of a request among those of its kind that have it. Shares and the median are by weight."""

    part: str  # a stage, or `REQUEST`
    took_ms: float
    below: float | None  # the share of them that took less; None where they are fewer than `LEAST`
    median_ms: float | None
    stored: int  # how many there are

    @property
    def percent(self) -> float | None:
        """Return the share in %, rounded down to a tenth, 99.9 at most; None where it is hidden."""
        return None if self.below is None else min(floor(self.below * 1000 + 1e-6) / 10, 99.9)

    @property
    def label(self) -> str | None:
        """Return the rank as a percentile, rounded down, with a tenth from p99 on; None where it is hidden."""
        if self.percent is None:
            return None
        return f"p{floor(self.percent)}" if self.percent < 99 else f"p{self.percent:g}"  # noqa: PLR2004

    @property
    def excess_ms(self) -> float:
        """Return how much more than the median it took; 0 where that is not known."""
        return 0.0 if self.median_ms is None else max(self.took_ms - self.median_ms, 0.0)


class Ranks(NamedTuple):
    """The ranks of one request and its stages."""

    ranks: tuple[Rank, ...]
    sample: Sample

    @property
    def unusual(self) -> list[Rank]:
        """Return the stages that took more than usual, by how much: those with a tenth of the greatest and more."""
        stages = sorted((one for one in self.ranks if one.part != REQUEST), key=lambda one: -one.excess_ms)
        least = _UNUSUAL * stages[0].excess_ms if stages else 0.0
        return [one for one in stages if one.excess_ms > 0 and one.excess_ms >= least]


def ask_ranks(source: Source, took_ms: float, stages: Mapping[str, float]) -> Ranks:
    """Return how a request ranks among all of a source, which includes it; `stages`: its own, in ms."""
    known = {stage: took for stage, took in stages.items() if stage in semconv.STAGES}
    values: dict[str, float] = {_column(stage): known.get(stage, 0.0) for stage in (*semconv.STAGES, _OTHER)}
    rows = source.reduce("ranks", (), duration_ms=took_ms, **values)
    medians = source.reduce("quantiles_over_time", origin=0, width=_EVER_NS, least=LEAST)
    if not rows:
        return Ranks((), sample_of(()))
    row, typical = rows[0], {one["part"]: one["p50_ms"] for one in medians}
    found = [_rank(REQUEST, took_ms, row["duration_below"], row["requests"], row["stored"], typical)]
    for stage, took in known.items():
        name = stage.replace(".", "_")
        of_all = (row[f"{name}_below"], row[f"{name}_requests"], row[f"{name}_stored"])
        found.append(_rank(stage, took, *of_all, typical))
    return Ranks(tuple(found), sample_of(rows))


def _column(stage: str) -> str:
    return f"{stage.replace('.', '_')}_ms"


def _rank(part: str, took_ms: float, below: float, requests: float, stored: int, medians: Mapping[str, float]) -> Rank:
    if stored < LEAST or requests <= 0:
        return Rank(part, took_ms, None, None, stored)
    return Rank(part, took_ms, below / requests, medians.get(part), stored)
