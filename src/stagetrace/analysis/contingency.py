"""Counts of breached and good requests by stratum, exact tests on them, relative risks, corrections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array

_Z: Final = 1.959963984540054
_NEGLIGIBLE: Final = 1e-17  # of a sum of probabilities
_REFINED: Final = (1e-30, 0.002)  # p-values that are worth adding up exactly
_ADDED_UP: Final = 2000  # values that the sum over strata may have, for that
_SMOOTHING: Final = 0.1  # of both terms of an odds ratio, that it be finite
_CLOSE: Final = 1.0  # standard deviations; what exceeds its expectation by less is no finding, however it is tested


@dataclass(frozen=True)
class Cells:
    """How many breached and good requests there are, in effect; the first axis is the stratum."""

    bad: Array
    good: Array

    def __sub__(self, part: Cells) -> Cells:
        """Return these without some of them."""
        return Cells(self.bad - part.bad, self.good - part.good)

    @property
    def rows(self) -> Array:
        """Return how many there are of both kinds in all strata."""
        return np.asarray((self.bad + self.good).sum(0))

    def summed(self, *axes: int) -> Cells:
        """Return the sums over some axes, which stay with a length of one."""
        return Cells(self.bad.sum(axes, keepdims=True), self.good.sum(axes, keepdims=True))

    def shaped(self, *shape: int) -> Cells:
        """Return these with other axes behind the first."""
        return Cells(self.bad.reshape(-1, *shape), self.good.reshape(-1, *shape))

    def at(self, *places: Any) -> Cells:
        """Return the cells at these places of the axes behind the first."""
        which = (slice(None), *places)
        return Cells(self.bad[which], self.good[which])


class Risk(NamedTuple):
    """How much more often some requests are breached than the others; counts are sums of weights."""

    breached: float
    good: float
    relative: float
    interval: tuple[float, float]


class Counts:
    """Requests that are counted: which are breached, how many each stands for, and their strata."""

    def __init__(
        self, breached: Array, weights: Sequence[float] | None = None, strata: Sequence[object] | None = None
    ) -> None:
        self.breached = breached
        names = {} if strata is None else {name: place for place, name in enumerate(dict.fromkeys(strata))}
        self.strata = max(1, len(names))
        self._stratum = (
            np.zeros(len(breached), np.int64)
            if strata is None
            else np.fromiter(map(names.__getitem__, strata), np.int64, len(breached))
        )
        self._bad, self._good = np.flatnonzero(breached), np.flatnonzero(~breached)
        self._weights = None if weights is None else np.asarray(weights, float)
        if self._weights is not None and not (np.isfinite(self._weights) & (self._weights > 0)).all():
            raise ValueError("weights are positive numbers")
        self._scale = Cells(self._effective(self._bad), self._effective(self._good))

    def _effective(self, rows: Array) -> Array:
        """Return, of each stratum, how many requests one that is weighed once is worth: Kish's effective size."""
        if self._weights is None:
            return np.ones(self.strata)
        total = np.bincount(self._stratum[rows], self._weights[rows], self.strata)
        squares = np.bincount(self._stratum[rows], self._weights[rows] ** 2, self.strata)
        return np.divide(total, squares, out=np.ones(self.strata), where=squares > 0)

    def _sums(self, rows: Array, codes: Array, size: int) -> Array:
        weights = None if self._weights is None else self._weights[rows]
        found = np.bincount(self._stratum[rows] * size + codes, weights, self.strata * size)
        return found.reshape(self.strata, size).astype(float)

    def table(self, codes: Array, size: int) -> Cells:
        """Return how many requests have each code, of each stratum."""
        bad, good = (self._sums(rows, codes[rows], size) for rows in (self._bad, self._good))
        return Cells(bad * self._scale.bad[:, None], good * self._scale.good[:, None])

    def cells(self, rows: Array) -> Cells:
        """Return how many of some requests there are, by stratum."""
        bad, good = rows[self.breached[rows]], rows[~self.breached[rows]]
        none = np.zeros(len(self.breached), np.int64)
        found = (self._sums(some, none[some], 1)[:, 0] for some in (bad, good))
        return Cells(next(found) * self._scale.bad, next(found) * self._scale.good)

    def sums(self, mask: Array) -> float:
        """Return the sum of the weights of some requests."""
        return float(np.count_nonzero(mask) if self._weights is None else self._weights[mask].sum())

    def table_of(self, codes: Array, width: int, rows: Array) -> Cells:
        """Return how many of some requests have each code, of which each has one in each column; by stratum."""
        found = []
        for is_bad, scale in ((True, self._scale.bad), (False, self._scale.good)):
            some = rows[self.breached[rows] == is_bad]
            cells = (codes[some] + (self._stratum[some] * width)[:, None]).ravel()
            weights = None if self._weights is None else np.repeat(self._weights[some], codes.shape[1])
            sums = np.bincount(cells, weights, self.strata * width).reshape(self.strata, width)
            found.append(sums * scale[:, None])
        return Cells(*found)

    def weighted(self, cells: Cells) -> Cells:
        """Return sums of weights in place of effective counts."""
        shape = (-1, *(1,) * (cells.bad.ndim - 1))
        return Cells(cells.bad / self._scale.bad.reshape(shape), cells.good / self._scale.good.reshape(shape))

    def p_value(self, mask: Array, within: Array) -> float:
        """Return how likely as many breaches are among these requests by chance, of those within."""
        table = self.table(np.where(within, mask, 2).astype(np.int64), 3)
        return float(one_sided(table.at(slice(1, 2)), table.at(slice(0, 1)))[0])

    def risk(self, mask: Array, within: Array | None = None) -> Risk:
        """Return the risk of these requests relative to the others of their stratum, of all or of those within.

        Mantel and Haenszel's estimate; its interval by the delta method, of cells that vary as their effective counts.
        """
        codes = mask.astype(np.int64)
        table = self.table(codes if within is None else np.where(within, codes, 2), 3).at(slice(2))
        return relative_risk(table.at(1), table.at(0), self.weighted(table).at(1), self.weighted(table).at(0))


def relative_risk(with_it: Cells, without: Cells, weighted: Cells, others: Cells) -> Risk:
    """Return the relative risk, from effective counts and sums of weights of each stratum."""
    assumed = 0.0
    if others.bad.sum() == 0 or (others.bad * (weighted.bad + weighted.good)).sum() == 0:
        assumed = 0.5  # breaches among the others, that the risk be finite
    sizes = others.bad + others.good
    spread = np.divide(assumed * sizes, sizes.sum(), out=np.zeros_like(sizes), where=sizes > 0)
    a, b, c, d = weighted.bad, weighted.good, others.bad + spread, others.good - spread
    n1, n0 = a + b, c + d
    n = np.where(n1 + n0 > 0, n1 + n0, 1)
    up, down = (a * n0 / n).sum(), (c * n1 / n).sum()
    total_bad, total_good = float(a.sum()), float(b.sum())
    if up == 0 or down == 0:  # no stratum has both
        return Risk(total_bad, total_good, 1.0, (0.0, float("inf")))
    slopes = (
        (n0 * (n - a) / up / n**2 - c * n0 / down / n**2),
        (-a * n0 / up / n**2 - c * n0 / down / n**2),
        (a * n1 / up / n**2 - n1 * (n - c) / down / n**2),
        (a * n1 / up / n**2 + c * n1 / down / n**2),
    )
    counts = (with_it.bad, with_it.good, without.bad + spread, without.good)
    variance = sum(
        float((slope**2 * np.divide(sums**2, count, out=np.zeros_like(sums), where=count > 0)).sum())
        for slope, sums, count in zip(slopes, (a, b, c, d), counts, strict=True)
    )
    middle, width = log(up / down), _Z * sqrt(variance)
    return Risk(total_bad, total_good, float(up / down), (exp(middle - width), exp(middle + width)))


def one_sided(with_it: Cells, without: Cells) -> Array:
    """Return p-values of as many breaches with something as there are, or more, given both margins of each stratum.

    The first axis is the stratum, the others are tests. Exact (Fisher; the hypergeometric variables of the strata
    are added up) but for what cannot matter: where the count hardly exceeds its expectation that is a normal variable,
    and over several strata one with more than 2,000 values, or a p-value over 0.002, is a binomial one of the same mean
    and variance.
    """
    from scipy.stats import hypergeom, norm

    x, draws = with_it.bad, with_it.bad + with_it.good
    total = draws + without.bad + without.good
    marked = x + without.bad
    size = np.maximum(total, 2)
    mean = draws * marked / size
    variance = mean * (total - draws) * (total - marked) / (size * (size - 1))
    varies = variance > 0
    sums = [np.where(varies, part, 0).sum(0) for part in (x, mean, variance)]
    z = np.divide(sums[0] - sums[1], np.sqrt(sums[2]), out=np.zeros_like(sums[1]), where=sums[2] > 0)
    p_values = np.asarray(norm.sf(z))
    p_values[sums[2] <= 0] = 1.0
    far = z > _CLOSE
    alone = far & (varies.sum(0) == 1)
    if alone.any():
        which = varies[:, alone].argmax(0)
        parts = (np.take_along_axis(part[:, alone], which[None], 0)[0] for part in (x, total, marked, draws))
        least, *of = (np.rint(part) for part in parts)
        # Rounded, the least number may be above what there can be.
        p_values[alone] = hypergeom.sf(np.minimum(least, np.minimum(*of[1:])) - 1, *of)
    several = far & ~alone
    if several.any():
        p_values[several] = _matched_tail(*(part[several] for part in sums))
        for place in np.flatnonzero(several & (p_values < _REFINED[1]) & (p_values > _REFINED[0])):
            rounded = (np.rint(part[varies[:, place], place]) for part in (x, marked, draws, total))
            p_values[place] = _convolved_tail(*rounded) or p_values[place]
    return np.asarray(np.minimum(p_values, 1.0))


def _convolved_tail(x: Array, marked: Array, draws: Array, total: Array) -> float | None:
    """Return the probability of x or more in all strata together; None where there are too many to add up."""
    from scipy.stats import hypergeom

    least, most = np.maximum(0, draws + marked - total), np.minimum(draws, marked)
    if (most - least).sum() > _ADDED_UP:
        return None
    whole = np.ones(1)
    for stratum in range(len(x)):
        t = np.arange(least[stratum], most[stratum] + 1)
        whole = np.convolve(whole, hypergeom.pmf(t, total[stratum], marked[stratum], draws[stratum]))
    return float(whole[int(x.sum() - least.sum()) :].sum())


def _matched_tail(x: Array, mean: Array, variance: Array) -> Array:
    from scipy.special import betainc

    trials = mean**2 / np.maximum(mean - variance, 1e-9 * mean)
    return np.asarray(betainc(x, np.maximum(trials - x + 1, 1e-3), np.clip(1 - variance / mean, 1e-12, 1)))


def likelihood_gain(with_it: Cells, total: Cells) -> Array:
    """Return by how much the log-likelihood of all outcomes gains by two risks in place of one, for a higher one.

    The first axis is the stratum, the others are tests; the odds ratio (Mantel and Haenszel's) is one for all strata.
    Of all sets of requests that which a cause has gains most: a part of it leaves breaches, a larger one dilutes them.
    """
    x, n = with_it.bad, with_it.bad + with_it.good
    marked, size = total.bad, np.maximum(total.bad + total.good, 1e-9)
    up, down = (x * (size - n - marked + x) / size).sum(0), ((n - x) * (marked - x) / size).sum(0)
    odds = (up + _SMOOTHING) / (down + _SMOOTHING)
    slope = odds - 1
    linear = (n + marked) * slope + size
    root = np.sqrt(np.maximum(linear**2 - 4 * slope * odds * n * marked, 0))
    fitted = 2 * odds * n * marked / (linear + root)
    inside, outside = _ratio(fitted, n), _ratio(marked - fitted, size - n)
    plain = np.broadcast_to(marked / size, inside.shape)
    gain = (
        x * _log_ratio(inside, plain)
        + (n - x) * _log_ratio(1 - inside, 1 - plain)
        + (marked - x) * _log_ratio(outside, plain)
        + (size - n - marked + x) * _log_ratio(1 - outside, 1 - plain)
    ).sum(0)
    return np.asarray(np.where(odds > 1, np.maximum(gain, 0), 0.0))


def _ratio(part: Array, whole: Array) -> Array:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > _NEGLIGIBLE))


def _log_ratio(one: Array, other: Array) -> Array:
    """Return the logarithm of a ratio of probabilities; 0 where nothing can have either."""
    least = 1e-12
    return np.asarray(np.where(other > least, np.log(np.maximum(one, least) / np.maximum(other, least)), 0.0))
