"""Whether one set of requests is slower than another: how far their quantiles differ, and how sure that is."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from stagetrace.analysis.arrays import Floats
from stagetrace.analysis.quantiles import Ranked, checked, evidence, log_limit, near

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
