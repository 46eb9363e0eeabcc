"""How sure quantiles are, without a model of the values: the counts below and up to each value are all that matters.

Values are independent draws of one distribution, which may have ties: of the quantile only this is used, that a share
of at most q lies below it, and one of at least q below or at it. For each value a test gives the evidence against it
being the quantile; the interval is those against which not enough speaks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaln, ndtri

from stagetrace.analysis.arrays import Floats

# Sequential intervals are narrowest at so many values: at least, and with so many beyond the quantile.
TUNED_AT: Final = 2000
TUNED_BEYOND: Final = 50
_JOINT: Final = 0.75  # the share of the level that a test of both samples together has; the rest: of each alone


@dataclass(frozen=True)
class Ranked:
    """Values in ascending order, equal ones together: value i lies in [low[i], high[i]], all four of one length.

    `below` and `upto` are how many of `size` values are less than it, and less than or equal to it. Of weighted values
    they are counts of an unweighted sample that would be as sure (`binned`), and need not be whole. Values that are
    surely not the quantile asked for may be missing.
    """

    low: Floats
    high: Floats
    below: Floats
    upto: Floats
    size: float


def checked(values: ArrayLike, name: str) -> Floats:
    """Return values as a flat array in ascending order. Raise ValueError where one is NaN or infinite."""
    found = np.asarray(values, dtype=np.float64).ravel()
    bad = int(np.count_nonzero(~np.isfinite(found)))
    if bad:
        raise ValueError(f"{bad} of {found.size} values of {name} are NaN or infinite; leave them out, and count them")
    return np.sort(found)


def near(values: Floats, q: float, alpha: float) -> Ranked:
    """Return the values, in ascending order, that may be the q-quantile, and those beside them."""
    size = values.size
    first, last = _window(size, q, alpha)
    distinct = np.unique(values[first:last])
    below, upto = (np.searchsorted(values, distinct, side).astype(float) for side in ("left", "right"))
    return Ranked(distinct, distinct, below, upto, float(size))


def binned(low: ArrayLike, high: ArrayLike, weight: ArrayLike, squares: ArrayLike, q: float) -> Ranked:
    """Return the bins of a histogram, in ascending order: values of each lie in [low, high], its least and greatest.

    `weight` is the sum of their weights, `squares` of the weights' squares. Values of unequal weight count as the
    unweighted sample whose share below the q-quantile has the same variance (Hajek's estimator, linearised).
    """
    lows, highs, weights, powers = (np.asarray(part, dtype=np.float64) for part in (low, high, weight, squares))
    total = float(weights.sum())
    if total <= 0:
        return Ranked(lows[:0], lows[:0], lows[:0], lows[:0], 0.0)
    upto = np.cumsum(weights) / total
    is_below = upto < q
    parts = np.where(is_below, (1 - q) ** 2, q**2)
    place = int(np.argmin(is_below))  # the bin of the quantile: divided
    inside = (q - (upto[place] - weights[place] / total)) * total / weights[place]
    parts[place] = inside * (1 - q) ** 2 + (1 - inside) * q**2
    size = q * (1 - q) * total**2 / float((powers * parts).sum())
    return Ranked(lows, highs, (upto - weights / total) * size, upto * size, size)


def _window(size: int, q: float, alpha: float) -> tuple[int, int]:
    """Return places [first, last) outside of which no interval of this level ends (Bernstein's inequality)."""
    enough = math.log(16 / alpha) + 0.5 * math.log1p(size / prior_size(q)) + 2
    width = enough + math.sqrt(enough**2 + 2 * enough * size * q * (1 - q))
    return max(0, math.floor(size * q - width) - 1), min(size, math.ceil(size * q + width) + 1)


def prior_size(q: float) -> float:
    """Return how many values the prior of the sequential test of the q-quantile counts for: set before any is seen.

    An eighth of the number at which the interval is to be narrowest (Howard and Ramdas 2022, of alpha 0.05).
    """
    return max(TUNED_AT, TUNED_BEYOND / min(q, 1 - q)) / 8


def evidence(below: ArrayLike, upto: ArrayLike, size: ArrayLike, q: float, *, sequential: bool) -> Floats:
    """Return how much speaks against a value being the q-quantile, by the counts below and up to it: a logarithm.

    Sequential: the log of a mixture of likelihood ratios, a supermartingale as values come, of mean at most 1, if the
    value is the quantile: by Ville's inequality it ever exceeds log(1 / alpha) with probability alpha at most. The
    prior is Beta(r q, r (1 - q)), r = `prior_size(q)`; shares below q are tested by the count up to the value, those
    above q by the count below it, so that ties only make it less. (Robbins 1970; Howard and Ramdas, "Sequential
    estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli 28, 2022.)

    Otherwise z^2 / 2, where a normal variable exceeds z with the probability of the binomial tail, half of equality's
    counted: of one sample alone, the interval of order statistics by mid-p.
    """
    least, most, every = (np.asarray(part, dtype=np.float64) for part in (below, upto, size))
    if sequential:
        return np.logaddexp(_ratio(most, every, q, is_less=True), _ratio(least, every, q, is_less=False))
    less, more = _tail(every - least, every, 1 - q), _tail(most, every, q)
    return np.maximum(np.maximum(-less, 0), np.maximum(-more, 0)) ** 2 / 2


def _ratio(count: Floats, size: Floats, q: float, *, is_less: bool) -> Floats:
    a, b = prior_size(q) * q, prior_size(q) * (1 - q)
    rest = size - count
    ratio = betaln(a + count, b + rest) - betaln(a, b) - count * math.log(q) - rest * math.log1p(-q)
    share = betainc(a + count, b + rest, q) if is_less else betainc(b + rest, a + count, 1 - q)
    with np.errstate(divide="ignore"):
        return np.asarray(ratio + np.log(share), dtype=np.float64)


def _tail(count: Floats, size: Floats, q: float) -> Floats:
    """Return the normal quantile of the probability that at most `count` of `size` are below, half of equality's."""
    rest = np.maximum(size - count, 0)
    at_most = np.where(rest > 0, betainc(rest, count + 1, 1 - q), 1.0)
    less = np.where(count > 0, betainc(rest + 1, count, 1 - q), 0.0)
    return np.asarray(ndtri((at_most + less) / 2), dtype=np.float64)


def log_limit(alpha: float, against: ArrayLike, *, sequential: bool) -> Floats:
    """Return the bound on one sample's evidence where the other sample's is `against`, inside the interval.

    Sequential: 3/4 of the product of both mixtures, and 1/8 of each alone, stay below 1 / alpha: a supermartingale in
    whatever order the values of both samples come. Otherwise both z^2 add up to that of alpha: the interval is one of
    profile likelihood, of one degree of freedom.
    """
    other = np.asarray(against, dtype=np.float64)
    if not sequential:
        return np.asarray(float(ndtri(1 - alpha / 2)) ** 2 / 2 - other, dtype=np.float64)
    ratio = np.exp(np.minimum(other, 700))
    alone = (1 - _JOINT) / 2
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.maximum(1 / alpha - alone * ratio, 0)) - np.log(_JOINT * ratio + alone))


@dataclass(frozen=True)
class Binned:
    """A histogram in ascending order.

    Of each bin: the least and the greatest value, the sums of weights and of their
    squares, and how many values are stored. They are taken to lie evenly between the least and the greatest one.
    """

    low: Floats
    high: Floats
    weight: Floats
    squares: Floats
    stored: Floats

    def quantile(self, q: float) -> float | None:
        """Return the q-quantile: of unweighted values as `numpy.quantile` has it, else the least with q up to it."""
        total = float(self.weight.sum())
        if not total:
            return None
        upto = np.cumsum(self.weight)
        if np.array_equal(self.weight, self.stored):
            place = (total - 1) * q
            first, last = (self._at(upto, float(rank)) for rank in (math.floor(place), math.ceil(place)))
            return first + (last - first) * (place - math.floor(place))
        found = min(int(np.searchsorted(upto, q * total * (1 - 1e-12))), upto.size - 1)
        inside = 1 - (upto[found] - q * total) / self.weight[found]
        return float(self.low[found] + (self.high[found] - self.low[found]) * min(max(inside, 0.0), 1.0))

    def _at(self, upto: Floats, rank: float) -> float:
        found = min(int(np.searchsorted(upto, rank, "right")), upto.size - 1)
        before, within = upto[found] - self.weight[found], max(self.weight[found] - 1, 1)
        return float(self.low[found] + (self.high[found] - self.low[found]) * min((rank - before) / within, 1.0))

    def ranked(self, q: float, alpha: float) -> Ranked:
        """Return its values for the interval of the q-quantile, those near it: at most 32 of each bin."""
        points = np.clip(self.stored, 1, 32).astype(int)
        place = np.repeat(np.arange(points.size), points)
        number = np.arange(place.size) - np.repeat(np.cumsum(points) - points, points)
        share = number / np.maximum(points[place] - 1, 1)
        values = self.low[place] + (self.high[place] - self.low[place]) * share
        parts = points[place]
        every = binned(values, values, self.weight[place] / parts, self.squares[place] / parts, q)
        first, last = _window(math.ceil(every.size), q, alpha)
        near = (every.upto >= first) & (every.below <= last)
        return Ranked(every.low[near], every.high[near], every.below[near], every.upto[near], every.size)

    def difference(self, other: Binned, q: float, alpha: float, *, sequential: bool) -> QuantileDifference:
        """Return how far the q-quantile of another histogram is from that of this one."""
        mine, theirs = self.ranked(q, alpha), other.ranked(q, alpha)
        return difference_of(mine, theirs, self.quantile(q), other.quantile(q), q, alpha, sequential=sequential)


# --- Whether one set of requests is slower than another: how far their quantiles differ, and how sure that is.

_NEAR: Final = 5000  # ranks to either side, of which the most likely one is


@dataclass(frozen=True)
class QuantileDifference:
    """How far the q-quantile of b is from that of a. `interval` and `shift` hold the truth but for `alpha`.

    `difference` is (b - a) / a, `interval` of that; `shift` is of b - a, in the values' unit. An end that the data do
    not bound is -inf or inf; `enough_data`: neither end of `shift` is, which takes `needed` values of each
    sample for. `a`, `b` and `difference` are None where there are no values; `difference` is None, and `interval` does
    not bound it, where the quantile of a is not above 0.
    """

    q: float
    a: float | None
    b: float | None
    difference: float | None
    interval: tuple[float, float]
    shift: tuple[float, float]
    enough_data: bool
    needed: int


def quantile_difference(
    a: ArrayLike, b: ArrayLike, q: float, alpha: float = 0.05, sequential: bool = True
) -> QuantileDifference:
    """Compare the q-quantiles of two samples of durations, in any one unit, in any order, with or without ties.

    With `sequential`, the intervals that one sees as either sample grows all hold the truth at once, but with
    probability `alpha` at most: one may look as often as one likes, and stop when one likes. Without, the interval is
    narrower, and right for one look at a number of values that was set before. Both take the values for independent
    draws, each sample of one distribution, whatever that is; `quantiles.evidence` has the methods.

    Raise ValueError for q or alpha outside (0, 1), and for values that are NaN or infinite. Negative values count as
    any other; empty samples have no quantile.
    """
    if not 0 < q < 1 or not 0 < alpha < 1:
        raise ValueError(f"q ({q}) and alpha ({alpha}) must lie between 0 and 1")
    first, second = checked(a, "a"), checked(b, "b")
    values = [float(np.quantile(part, q)) if part.size else None for part in (first, second)]
    ranked = [near(part, q, alpha) for part in (first, second)]
    return difference_of(ranked[0], ranked[1], values[0], values[1], q, alpha, sequential=sequential)


def difference_of(
    a: Ranked, b: Ranked, value_a: float | None, value_b: float | None, q: float, alpha: float, *, sequential: bool
) -> QuantileDifference:
    """Compare two samples that are ranked already, of which the quantiles are known: see `quantile_difference`."""
    shift = interval = -math.inf, math.inf
    relative = None
    if value_a is not None and value_b is not None:
        pairs = _pairs(a, b, q, alpha, sequential=sequential)
        shift = (float(np.min(pairs.low_b - pairs.high_a)), float(np.max(pairs.high_b - pairs.low_a)))
        interval = _relative(pairs)
        relative = (value_b - value_a) / value_a if value_a > 0 else 0.0 if value_a == value_b == 0 else None
    return QuantileDifference(
        q,
        value_a,
        value_b,
        relative,
        interval,
        shift,
        all(map(math.isfinite, shift)),
        needed(q, alpha, sequential=sequential),
    )


@dataclass(frozen=True)
class _Pairs:
    """Of each value that the quantile of a may have: its bounds, and those of the quantile of b in that case."""

    low_a: Floats
    high_a: Floats
    low_b: Floats
    high_b: Floats


def _pairs(a: Ranked, b: Ranked, q: float, alpha: float, *, sequential: bool) -> _Pairs:
    """Return all pairs against which not enough speaks: never none, for what is most likely is among them.

    Only values that were seen need to be tried, and what lies below or above all of them: less speaks against a value
    that was seen than against those beside it.
    """
    low_a, high_a, cost_a = _costs(a, q, sequential=sequential)
    low_b, high_b, cost_b = _costs(b, q, sequential=sequential)
    best = int(np.argmin(cost_b))
    limits = log_limit(alpha, cost_a, sequential=sequential)
    may_be = limits > cost_b[best]
    limits = limits[may_be]
    # From the most likely value on what speaks against others only grows, either way.
    up = best + np.searchsorted(np.maximum.accumulate(cost_b[best:]), limits) - 1
    down = best - (np.searchsorted(np.maximum.accumulate(cost_b[best::-1]), limits) - 1)
    return _Pairs(low_a[may_be], high_a[may_be], low_b[down], high_b[up])


def _costs(of: Ranked, q: float, *, sequential: bool) -> tuple[Floats, Floats, Floats]:
    """Return least and greatest value and evidence of each place, with one place below and one above all values."""
    below = np.concatenate(([0.0], of.below, [of.size]))
    upto = np.concatenate(([0.0], of.upto, [of.size]))
    cost = evidence(below, upto, of.size, q, sequential=sequential)
    low = np.concatenate(([-np.inf], of.low, of.high[-1:]))
    high = np.concatenate((of.low[:1], of.high, [np.inf]))
    return low, high, cost


def _relative(pairs: _Pairs) -> tuple[float, float]:
    """Return the interval of (b - a) / a, of durations: none where a may be negative; equal zeros do not differ."""
    low_a = np.where((pairs.low_a == -np.inf) & (pairs.high_a > 0), 0.0, pairs.low_a)
    if float(np.min(low_a)) < 0:
        return -math.inf, math.inf
    low, high = float(np.min(_over(pairs.low_b, pairs.high_a))), float(np.max(_over(pairs.high_b, low_a)))
    return (low, high) if low < math.inf else (-math.inf, math.inf)


def _over(b: Floats, a: Floats) -> Floats:
    """Return (b - a) / a for a from 0 on: -inf where b is not bounded below, or a not above."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(b == a, 0.0, (b - a) / a)
    return np.where((b == -np.inf) | (a == np.inf), -np.inf, found)


@lru_cache(maxsize=64)
def needed(q: float, alpha: float, *, sequential: bool) -> int:
    """Return how many values each of two samples must have for their q-quantiles' difference to be bounded at all."""

    def is_enough(size: int) -> bool:
        around = math.floor(size * q)
        every = np.arange(max(0, around - _NEAR), min(size, around + _NEAR) + 1, dtype=np.float64)
        least = evidence(every[:-1], every[1:], size, q, sequential=sequential).min()
        ends = evidence([0, size], [0, size], size, q, sequential=sequential)
        return bool(ends.min() >= log_limit(alpha, least, sequential=sequential))

    most = 1
    while not is_enough(most):
        most *= 2
    return bisect_left(range(most), x=True, lo=most // 2 + 1, key=is_enough)
