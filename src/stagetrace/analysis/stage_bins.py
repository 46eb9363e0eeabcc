"""Requests by duration, in bins of 1 %, with the time of each of their stages: shares within a band of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt
from typing import Any, Final, TypeAlias

import numpy as np
from scipy import special

from stagetrace import semconv
from stagetrace.analysis.arrays import Floats, Indices
from stagetrace.analysis.quantiles import Binned

NO_STAGE: Final = None  # the name of the time that is in no stage
LEVEL: Final = 0.95  # of intervals
REPLICATES: Final = 400
WANTED: Final = 30  # requests of a band: where there are fewer it is widened, as far as it stays around its percentile
FEWEST: Final = 10  # ... and where even so there are fewer than these, downwards
# Half of a band's width in ranks, by how far its percentile is from the nearer end; between these by the logarithms.
_HALF_WIDTHS: Final = {0.5: 0.05, 0.05: 0.01, 0.01: 0.005}
_SEED: Final = 18
_COLUMNS: Final = {stage: f"{stage.replace('.', '_')}_ms" for stage in semconv.STAGES}
BACKWARDS: Final = -100_002  # bin of requests that end before they start
_NO_TIME: Final = -100_000  # bin of requests of no duration
_ROUNDING: Final = 1e-6
_PER_BIN: Final = 100  # bin b is of the durations from e^(b / 100) ms on


Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Band:
    """The requests around a percentile: those from rank `low` to rank `high`, within [0, 1]."""

    low: float
    high: float
    low_ms: float  # their durations, rounded outwards to bins
    high_ms: float
    requests: int  # stored ones


@dataclass(frozen=True)
class Bins:
    """Requests of one group, by bin, shortest first. Times are in ms, by weight; a column is a stage."""

    names: tuple[str | None, ...]
    numbers: Indices
    low: Floats  # least and greatest duration of each bin
    high: Floats
    stored: Floats  # rows of each bin
    weights: Floats  # requests that these stand for
    squares: Floats  # sums of the squares of their weights
    times: Floats  # (bins, stages)
    samples: tuple[Floats, ...]  # of each bin: (rows, stages); none where rows have no samples

    @property
    def edges(self) -> Floats:
        """Return the rank at which each bin begins, and 1."""
        return ranks(self.weights)

    @property
    def effective(self) -> float:
        """Return the number of equal requests with as much information (Kish)."""
        return float(self.weights.sum() ** 2 / self.squares.sum()) if self.numbers.size else 0.0

    def quantile(self, rank: float) -> float | None:
        """Return a quantile of the durations, in ms: within 1 % of the exact one."""
        return Binned(self.low, self.high, self.weights, self.squares, self.stored).quantile(rank)


def bins(rows: Sequence[Mapping[str, Any]], own: Iterable[Mapping[str, Any]]) -> Bins:
    """Return the bins of a group from its rows of `stage_bins` (or `stage_sums`) and `own_stage_bins`.

    Time in no stage below a millionth of all is a rounding error of stages in ms, and counts as none.
    """
    rows = sorted(rows, key=lambda row: row["bin"])
    own_by_bin: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in own:
        own_by_bin.setdefault(row["bin"], {})[row["stage"]] = row
    added = sorted({stage for found in own_by_bin.values() for stage in found})
    times = [
        [
            *(row[column] for column in _COLUMNS.values()),
            *(own_by_bin.get(row["bin"], {}).get(stage, {}).get("ms", 0.0) for stage in added),
            row["no_stage_ms"],
        ]
        for row in rows
    ]
    low, high, stored, weights, squares = (
        np.array([row[name] for row in rows], dtype=float)
        for name in ("low_ms", "high_ms", "stored", "requests", "squares")
    )
    made = np.maximum(np.array(times, dtype=float).reshape(len(rows), len(_COLUMNS) + len(added) + 1), 0.0)
    if rows and made[:, -1].sum() < _ROUNDING * made.sum():
        made[:, -1] = 0.0
    return Bins(
        names=(*_COLUMNS, *added, NO_STAGE),
        numbers=np.array([row["bin"] for row in rows], dtype=np.int64),
        low=low,
        high=high,
        stored=stored,
        weights=weights,
        squares=squares,
        times=made,
        samples=tuple(_sample(row, own_by_bin.get(row["bin"], {}), added) for row in rows if "sample" in row),
    )


def _sample(row: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], added: Sequence[str]) -> Floats:
    """Return times by weight of the sampled requests of a bin: (rows, stages)."""
    values = np.nan_to_num(np.array([one["told"] for one in row["sample"]], dtype=float))
    weight, duration, standard = values[:, :1], values[:, 1], values[:, 2 : 2 + len(_COLUMNS)]
    columns = [standard]
    for stage in added:
        found = own.get(stage)
        took = {one["span_id"]: one["ms"] for one in found["sample"]} if found else {}
        columns.append(np.array([[took.get(one["span_id"], 0.0)] for one in row["sample"]], dtype=float))
    staged = np.hstack(columns)
    none = np.maximum(duration - staged.sum(axis=1), 0.0)[:, None]
    return np.asarray(np.maximum(np.hstack([staged, none]), 0.0) * weight)


def ranks(weights: Floats) -> Floats:
    """Return the ranks, from 0 to 1, between which the bins lie: along the last axis, one more than there are bins."""
    upto: Floats = np.cumsum(weights, axis=-1)
    zero = np.zeros((*upto.shape[:-1], 1))
    return np.concatenate([zero, upto / upto[..., -1:]], axis=-1)


def parts(edges: Floats, low: float, high: float) -> Floats:
    """Return which part of each bin lies between two ranks."""
    widths = np.diff(edges, axis=-1)
    within = np.minimum(edges[..., 1:], high) - np.maximum(edges[..., :-1], low)
    found: Floats = np.divide(within, widths, out=np.zeros_like(widths), where=widths > 0)
    return np.asarray(np.clip(found, 0.0, 1.0))


def half_width(rank: float) -> float:
    """Return half of the width in ranks of the band around a percentile: narrower as that is nearer to either end."""
    apart = round(min(rank, 1 - rank), 12)
    least = min(_HALF_WIDTHS)
    if apart <= least:
        return apart * _HALF_WIDTHS[least] / least
    points = sorted(_HALF_WIDTHS)
    return exp(np.interp(log(apart), [log(one) for one in points], [log(_HALF_WIDTHS[one]) for one in points]))


def needed(rank: float) -> int:
    """Return how many requests are enough to answer at a percentile: two of them can be expected beyond it."""
    return max(FEWEST, ceil(round(2 / (1 - rank), 6)))


def band(found: Bins, rank: float) -> Band | None:
    """Return the band around a percentile; None where there are too few requests."""
    count = found.effective
    if count < needed(rank):
        return None
    half = min(max(half_width(rank), WANTED / (2 * count)), rank, 1 - rank)
    low, high = rank - half, rank + half
    if 2 * half * count < FEWEST:
        low, high = max(0.0, 1 - FEWEST / count), 1.0
    low_ms, high_ms = span_ms(found, low, high)
    inside = parts(found.edges, low, high) @ found.stored
    return Band(low, high, low_ms, high_ms, round(float(inside)))


def shares(found: Bins, low: float, high: float) -> Floats | None:
    """Return the share of each stage among the requests between two ranks; None where they take no time."""
    times: Floats = parts(found.edges, low, high) @ found.times
    whole = float(times.sum())
    return times / whole if whole > 0 else None


def span_ms(found: Bins, low: float, high: float) -> tuple[float, float]:
    """Return the durations between which the bins of a band lie."""
    inside = found.numbers[parts(found.edges, low, high) > 0]
    first, last = int(inside[0]), int(inside[-1])
    return (
        0.0 if first == _NO_TIME else exp(first / _PER_BIN),
        0.0 if last == _NO_TIME else exp((last + 1) / _PER_BIN),
    )


def intervals_around(found: Bins, around: Band, rank: float) -> list[Interval] | None:
    """Return the interval of each stage's share around a percentile.

    Of a band that was widened it holds the intervals below and above the percentile too: what its requests have in
    common need not be so at the percentile, but lies between what they have on either side of it.
    """
    sides = [(around.low, around.high)]
    if around.high - around.low > 2 * half_width(rank) + 1e-9:
        sides += [(around.low, rank), (rank, around.high)]
    every = [some for low, high in sides if (some := intervals(found, low, high, _SEED)) is not None]
    if not every:
        return None
    return [
        (min(float(one[place, 0]) for one in every), max(float(one[place, 1]) for one in every))
        for place in range(len(found.names))
    ]


def intervals(found: Bins, low: float, high: float, seed: int) -> Floats | None:
    """Return (stages, 2): 95 % intervals of the shares between two ranks; None where they take no time.

    A bootstrap of the requests: how many fall into each bin, so that the band's edges move, and within a bin which of
    its sample. Quantiles are those of the percentile bootstrap, wider for few requests: Hesterberg, "What Teachers
    Should Know About the Bootstrap", The American Statistician 69 (2015), section 3.4.
    """
    random = np.random.default_rng(seed)
    rows = int(found.stored.sum())
    counts = random.multinomial(rows, found.stored / rows, size=REPLICATES).astype(float)
    within = parts(ranks(counts * (found.weights / found.stored)), low, high) * counts
    drawn = np.floor(within + random.random(within.shape)).astype(np.int64)
    times = np.zeros((REPLICATES, len(found.names)))
    for place in np.flatnonzero(drawn.any(axis=0)):
        sample = found.samples[place]
        times += random.multinomial(drawn[:, place], np.full(len(sample), 1 / len(sample))) @ sample
    whole = times.sum(axis=1)
    known = whole > 0
    exact, middle = shares(found, low, high), _by_sample(found, low, high)
    if exact is None or middle is None or not known.any():
        return None
    drawn_shares = times[known] / whole[known, None] + (exact - middle)
    inside = max(2.0, float((parts(found.edges, low, high) * found.stored).sum()))
    tail = special.ndtr(sqrt(inside / (inside - 1)) * special.stdtrit(inside - 1, (1 - LEVEL) / 2))
    both = np.quantile(drawn_shares, [tail, 1 - tail], axis=0).T
    made: Floats = np.clip(np.column_stack([np.minimum(both[:, 0], exact), np.maximum(both[:, 1], exact)]), 0.0, 1.0)
    return made


def _by_sample(found: Bins, low: float, high: float) -> Floats | None:
    """Return the shares as the samples alone have them."""
    means = np.array([sample.mean(axis=0) for sample in found.samples])
    times: Floats = (parts(found.edges, low, high) * found.stored) @ means
    whole = float(times.sum())
    return times / whole if whole > 0 else None
