"""Two sets of requests compared, whole and by stage, as if both had the same mix of requests.

A change of mix is no change of model: where routes or input sizes are asked for more or less often than before, the
requests of b are weighted so that each kind of request (stratum) is as frequent as in a (post-stratification). Kinds
that one side alone has are excluded, and counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from stagetrace.analysis.base import Source
from stagetrace.analysis.comparison_kinds import INPUT_SIZE  # what `sizes` of the reductions divides by
from stagetrace.analysis.quantiles import Binned, QuantileDifference, needed

PATH: Final = "path"  # route or name
_MOST_ROUTES: Final = 50  # compared one by one, the most frequent
_BINS: Final = 64  # to each doubling of time, of whole requests: 1.1 % wide
_STAGE_BINS: Final = 16
_SHOWN_BINS: Final = 60
_LEAST_MS: Final = 1e-3
_MOST_ROWS: Final = 100_000  # with more, kinds of requests are too many to compare

Kind = tuple[Any, ...]  # the values of what divides requests into kinds


class TooManyKindsError(ValueError):
    """Requests are divided into more kinds than can be compared."""


@dataclass(frozen=True)
class Quantile:
    """The q-quantile of both sides, of the mix of a; `raw`: without that. Values in ms."""

    adjusted: QuantileDifference
    raw: QuantileDifference
    enough_data: bool  # the interval is as narrow as was asked for, or there is surely a difference
    needed: int | None  # of each side, about, where it is not

    @property
    def is_sure(self) -> bool:
        """Return whether there is a difference, of the mix of a."""
        return not self.adjusted.shift[0] <= 0 <= self.adjusted.shift[1]

    @property
    def is_of_mix(self) -> bool:
        """Return whether the mix alone makes one side look slower, or hides that it is (Simpson's paradox)."""
        raw = self.raw.shift
        is_raw_sure = not raw[0] <= 0 <= raw[1]
        if is_raw_sure != self.is_sure:
            return not raw[0] <= (self.adjusted.b or 0) - (self.adjusted.a or 0) <= raw[1]
        return self.is_sure and (raw[0] > 0) != (self.adjusted.shift[0] > 0)


@dataclass(frozen=True)
class Part:
    """Whole requests (`stage` None), or one stage of those that have it."""

    stage: str | None
    stored: tuple[int, int]
    quantiles: tuple[Quantile, ...]


@dataclass(frozen=True)
class Stratum:
    """One kind of requests: how many of each side there are, by weight, and their medians in ms."""

    kind: Mapping[str, Any]
    requests: tuple[float, float]
    medians: tuple[float | None, float | None]

    @property
    def is_compared(self) -> bool:
        """Return whether both sides have it."""
        return min(self.requests) > 0

    @property
    def lost_ms(self) -> float:
        """Return by how much longer the requests of b took in all, by the medians; less than 0 where shorter."""
        a, b = self.medians
        return 0.0 if a is None or b is None else self.requests[1] * (b - a)


@dataclass(frozen=True)
class Route:
    """One route of several: how its requests differ, whole and by stage."""

    path: str
    requests: tuple[float, float]  # by weight
    whole: Part
    stages: tuple[Part, ...]


@dataclass(frozen=True)
class Shape:
    """How long requests of both sides took, in the same bins of equal ratio: weights, one fewer than `edges_ms`."""

    edges_ms: tuple[float, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """How two sides differ. `stored`: requests of a and of b; `bins`: their histograms, of the mix of a."""

    whole: Part
    stages: tuple[Part, ...]
    strata: tuple[Stratum, ...]  # the most frequent first
    stored: tuple[int, int]
    left_out: tuple[float, float]  # share of each side's requests of which the other side has none alike
    is_sampled: bool
    is_unknown: bool  # it is not known how they were sampled
    routes: tuple[Route, ...]  # that both sides have, the most frequent first; none if there is one, or pooled
    histograms: tuple[Binned, Binned]

    @property
    def is_adjusted(self) -> bool:
        """Return whether there is more than one kind of requests."""
        return len(self.strata) > 1

    @property
    def shape(self) -> Shape:
        """Return both histograms in at most `_SHOWN_BINS` bins; what took no time is in the first."""
        mids = [(one.low + one.high) / 2 for one in self.histograms]
        places = [np.floor(np.log2(np.maximum(one, _LEAST_MS)) * _BINS).astype(int) for one in mids]
        every = np.concatenate(places)
        if not every.size:
            return Shape((), (), ())
        step = -(-(int(every.max()) - int(every.min()) + 2) // _SHOWN_BINS)
        first, last = int(every.min()) // step, int(every.max()) // step + 1
        counts = [
            np.bincount(at // step - first, one.weight, last - first).tolist()
            for at, one in zip(places, self.histograms, strict=True)
        ]
        edges = [2 ** (place * step / _BINS) for place in range(first, last + 1)]
        return Shape(tuple(edges), tuple(counts[0]), tuple(counts[1]))


def compare(
    sides: tuple[Source, Source],
    quantiles: Sequence[float],
    *,
    stratify: Sequence[str] = (PATH,),
    sizes: bool = True,
    resolution: float = 0.1,
    alpha: float = 0.05,
    sequential: bool = True,
) -> Comparison:
    """Compare two sources of requests, a and b.

    `stratify`: columns or attributes that divide requests into kinds, and with `sizes` the size of their input. `alpha`
    holds for all quantiles of whole requests together, and again for all stages together (Bonferroni). `resolution`:
    how far an interval may reach to either side.

    Raise TooManyKindsError if there are too many kinds to compare.
    """
    keys = (*stratify, *([INPUT_SIZE] if sizes else []))
    rows, of_stages = (
        [_rows(side, name, stratify, sizes=sizes, bins=bins) for side in sides]
        for name, bins in (("histograms", _BINS), ("stage_histograms", _STAGE_BINS))
    )
    strata = _strata(rows, keys)
    factors = _factors(strata)
    asked = _Asked(tuple(quantiles), alpha / max(1, len(quantiles)), resolution, sequential)
    whole = _part(None, rows, keys, factors, asked)
    stages = _stages(of_stages, keys, factors, asked)
    every = [row for side in rows for row in side]
    compared = [sum(one.requests[side] for one in strata if one.is_compared) for side in (0, 1)]
    totals = [sum(one.requests[side] for one in strata) for side in (0, 1)]
    return Comparison(
        whole=whole,
        stages=stages,
        strata=strata,
        stored=(_stored(rows[0]), _stored(rows[1])),
        left_out=(_rest(compared[0], totals[0]), _rest(compared[1], totals[1])),
        is_sampled=any(row["sampled"] for row in every),
        is_unknown=any(row["unknown"] for row in every),
        routes=_routes(rows, of_stages, keys, strata, asked),
        histograms=(_merged(rows[0], keys, dict.fromkeys(factors, 1.0)), _merged(rows[1], keys, factors)),
    )


@dataclass(frozen=True)
class _Asked:
    """The quantiles to compare of each part, and the confidence level."""

    quantiles: tuple[float, ...]
    alpha: float
    resolution: float
    sequential: bool

    def divided(self, parts: int) -> _Asked:
        """Return the same for so many parts, of which none is to be wrong."""
        return _Asked(self.quantiles, self.alpha / parts, self.resolution, self.sequential)


def _stages(
    rows: Sequence[Sequence[Mapping[str, Any]]], keys: Sequence[str], factors: Mapping[Kind, float], asked: _Asked
) -> tuple[Part, ...]:
    names = {row["stage"] for row in rows[0]} & {row["stage"] for row in rows[1]}
    apart = asked.divided(max(1, len(names)))
    parts = {name: [[row for row in side if row["stage"] == name] for side in rows] for name in sorted(names)}
    return tuple(_part(name, part, keys, factors, apart) for name, part in parts.items())


def _routes(
    rows: Sequence[Sequence[Mapping[str, Any]]],
    of_stages: Sequence[Sequence[Mapping[str, Any]]],
    keys: Sequence[str],
    strata: Sequence[Stratum],
    asked: _Asked,
) -> tuple[Route, ...]:
    """Return each route by itself, where there are several: percentiles over routes are of no request."""
    if PATH not in keys:
        return ()
    paths = dict.fromkeys(one.kind[PATH] for one in strata)
    both = dict.fromkeys(one.kind[PATH] for one in strata if one.is_compared)
    if len(paths) == 1:
        return ()
    apart = asked.divided(max(1, len(both)))
    found = []
    for path in list(both)[:_MOST_ROUTES]:
        own = [one for one in strata if one.kind[PATH] == path]
        factors = _factors(own)
        parts, timed = ([[row for row in side if row[PATH] == path] for side in each] for each in (rows, of_stages))
        requests = (sum(one.requests[0] for one in own), sum(one.requests[1] for one in own))
        whole, stages = _part(None, parts, keys, factors, apart), _stages(timed, keys, factors, apart)
        found.append(Route(path, requests, whole, stages))
    return tuple(sorted(found, key=lambda one: -sum(one.requests)))


def _rows(side: Source, name: str, stratify: Sequence[str], *, sizes: bool, bins: int) -> list[dict[str, Any]]:
    rows = side.reduce(name, stratify, bins=bins, sizes=sizes, most=_MOST_ROWS + 1)
    if len(rows) > _MOST_ROWS:
        raise TooManyKindsError(" and ".join((*stratify, *([INPUT_SIZE] if sizes else []))))
    return rows


def _rest(part: float, whole: float) -> float:
    return 1 - part / whole if whole else 0.0


def _stored(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["stored"] for row in rows)


def _kind(row: Mapping[str, Any], keys: Sequence[str]) -> Kind:
    return tuple(row[key] for key in keys)


def _strata(rows: Sequence[Sequence[Mapping[str, Any]]], keys: Sequence[str]) -> tuple[Stratum, ...]:
    found: dict[Kind, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for side, of_side in enumerate(rows):
        for row in of_side:
            found[_kind(row, keys)][side].append(row)
    made = []
    for kind, sides in found.items():
        bins = [_merged(side, (), {(): 1.0}) for side in sides]
        counts = (float(bins[0].weight.sum()), float(bins[1].weight.sum()))
        made.append(Stratum(dict(zip(keys, kind, strict=True)), counts, (bins[0].quantile(0.5), bins[1].quantile(0.5))))
    return tuple(sorted(made, key=lambda one: (-sum(one.requests), repr(one.kind))))


def _factors(strata: Sequence[Stratum]) -> dict[Kind, float]:
    """Return by which each kind of b's requests is multiplied to be as frequent as in a: of those that both have."""
    both = [one for one in strata if one.is_compared]
    totals = [sum(one.requests[side] for one in both) for side in (0, 1)]
    return {
        tuple(one.kind.values()): one.requests[0] / totals[0] / (one.requests[1] / totals[1]) if len(both) > 1 else 1.0
        for one in both
    }


def _merged(rows: Iterable[Mapping[str, Any]], keys: Sequence[str], factors: Mapping[Kind, float]) -> Binned:
    """Return the histogram of all rows of a kind that has a factor."""
    bins: dict[float, list[float]] = {}
    for row in rows:
        factor = factors.get(_kind(row, keys))
        if factor is None:
            continue
        place = -math.inf if row["bin"] is None else row["bin"]
        one = bins.setdefault(place, [math.inf, -math.inf, 0.0, 0.0, 0.0])
        one[0], one[1] = min(one[0], row["low"]), max(one[1], row["high"])
        one[2] += factor * row["weight"]
        one[3] += factor**2 * row["squares"]
        one[4] += row["stored"]
    parts = np.array([bins[place] for place in sorted(bins)], dtype=np.float64).reshape(-1, 5)
    return Binned(*(parts[:, column] for column in range(5)))


def _part(
    stage: str | None,
    rows: Sequence[Sequence[Mapping[str, Any]]],
    keys: Sequence[str],
    factors: Mapping[Kind, float],
    asked: _Asked,
) -> Part:
    even = dict.fromkeys(factors, 1.0)
    every = {_kind(row, keys): 1.0 for side in rows for row in side}
    raw = [_merged(side, keys, every) for side in rows]
    adjusted = [_merged(rows[0], keys, even), _merged(rows[1], keys, factors)]
    sizes = (_stored(rows[0]), _stored(rows[1]))
    found = [_quantile(adjusted, raw, q, sizes, asked) for q in asked.quantiles]
    return Part(stage, sizes, tuple(found))


def _quantile(
    adjusted: Sequence[Binned], raw: Sequence[Binned], q: float, sizes: tuple[int, int], asked: _Asked
) -> Quantile:
    of_mix, plain = (a.difference(b, q, asked.alpha, sequential=asked.sequential) for a, b in (adjusted, raw))
    low, high = of_mix.interval
    reach = (high - low) / 2
    is_sure = not of_mix.shift[0] <= 0 <= of_mix.shift[1]
    if is_sure or reach <= asked.resolution:
        return Quantile(of_mix, plain, enough_data=True, needed=None)
    least = needed(q, asked.alpha, sequential=asked.sequential)
    if math.isinf(reach):
        return Quantile(of_mix, plain, enough_data=False, needed=max(least, min(sizes) + 1))
    wanted = math.ceil(min(sizes) * (reach / asked.resolution) ** 2)
    return Quantile(of_mix, plain, enough_data=False, needed=max(least, wanted))
