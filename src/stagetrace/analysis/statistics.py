"""Statistics of breaches: exact tests on counts by stratum, relative risks, the excess of slow requests, by part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array

# --- Counts of breached and good requests by stratum, exact tests on them, relative risks, corrections.

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


def weighted_median(values: Array, weights: Array) -> float:
    """Return the least value up to which half of the weight is."""
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(upto, upto[-1] / 2)]])


def benjamini_hochberg(p_values: Any) -> Array:
    """Return q-values (Benjamini and Hochberg, JRSS B 57, 1995).

    A test without a p-value (NaN) shows nothing, and a sum of floats may be just over 1: SciPy refuses both.
    """
    from scipy.stats import false_discovery_control

    return false_discovery_control(np.clip(np.nan_to_num(np.asarray(p_values, float), nan=1.0), 0.0, 1.0))


def one_sided(with_it: Cells, without: Cells) -> Array:
    """Return p-values of as many breaches with something as there are, or more, given both margins of each stratum.

    The first axis is the stratum, the others are tests. Exact (Fisher; the hypergeometric variables of the strata
    are added up) but for what cannot matter: where the count hardly exceeds its expectation that is a normal variable,
    and over several strata one with more than 2,000 values, or a p-value over 0.002, is a binomial one of the same mean
    and variance.
    """
    from scipy.special import ndtr
    from scipy.stats import hypergeom

    x, draws = with_it.bad, with_it.bad + with_it.good
    total = draws + without.bad + without.good
    marked = x + without.bad
    size = np.maximum(total, 2)
    mean = draws * marked / size
    variance = mean * (total - draws) * (total - marked) / (size * (size - 1))
    varies = variance > 0
    sums = [np.where(varies, part, 0).sum(0) for part in (x, mean, variance)]
    z = np.divide(sums[0] - sums[1], np.sqrt(sums[2]), out=np.zeros_like(sums[1]), where=sums[2] > 0)
    p_values = np.asarray(ndtr(-z))
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
    least, most = np.maximum(0, draws + marked - total), np.minimum(draws, marked)
    if (most - least).sum() > _ADDED_UP:
        return None
    whole = np.ones(1)
    for stratum in range(len(x)):
        t = np.arange(least[stratum], most[stratum] + 1)
        whole = np.convolve(whole, _hypergeometric(t, total[stratum], marked[stratum], draws[stratum]))
    return float(whole[int(x.sum() - least.sum()) :].sum())


def _hypergeometric(t: Array, total: float, marked: float, draws: float) -> Array:
    """Return the probability of each of `t`: SciPy's own takes as long for a few of them as for thousands."""
    from scipy.special import betaln

    def choose(some: Any, of: Any) -> Any:
        return -np.log1p(of) - betaln(some + 1, of - some + 1)

    return np.asarray(np.exp(choose(t, marked) + choose(draws - t, total - marked) - choose(draws, total)))


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


# --- The excess of slow requests over normal ones of the same kind, part by part.
#
# A mix of kinds that differs is no difference: normal ones are weighed to the mix of the slow ones (direct
# standardisation), and ranks are compared within kinds.

RESOLUTION_MS: Final = 1e-6  # times are whole ns
_SCALE: Final = 1.4826  # of the median absolute deviation, to that of a normal distribution
_CUT: Final = 0.99
_LEAST_ALIKE: Final = 2  # normal ones of a kind
_LEAST_PASSING: Final = 5  # slow ones that have a part
_LEAST_NEW: Final = 5  # normal ones of a kind, for a part that none of them has to be new
_MOSTLY: Final = 0.5  # of the slow ones of a kind, which have a new part


class Timed(NamedTuple):
    """One request or trace: its stratum, its duration, and the duration of each part."""

    kind: tuple[str, ...]  # of whose first two parts others are, where there is none of the same kind
    took_ms: float
    parts: Mapping[Any, float]  # ms
    weight: float = 1.0
    failed: frozenset[str] = frozenset()
    passes: frozenset[Any] = frozenset()  # parts that it has, with time or without


def mix(slow: Sequence[Timed], normal: Sequence[Timed]) -> tuple[Array, int]:
    """Return weights of the normal traces, by which their kinds are as frequent as among the slow ones."""
    there = Counter(one.kind for one in normal)
    by_root: dict[tuple[str, ...], list[int]] = defaultdict(list)
    by_kind: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, one in enumerate(normal):
        by_root[one.kind[:2]].append(place)
        by_kind[one.kind].append(place)
    weights = np.zeros(len(normal))
    own = np.array([one.weight for one in normal])
    unlike = 0
    for kind, count in Counter(one.kind for one in slow).items():
        if there[kind] >= _LEAST_ALIKE:
            places = by_kind[kind]
        else:
            unlike += count
            places = by_root.get(kind[:2]) or list(range(len(normal)))
        weights[places] += count * own[places] / own[places].sum()
    return weights / weights.sum(), unlike


class Excess(NamedTuple):
    """By how much a mean exceeds the normal one."""

    more: float
    error: float  # standard error of it
    normal: float
    spread: float  # of normal traces, robust
    rank_z: float = 0.0  # standard errors by which ranks exceed those of normal traces of the same kind
    typical: float = 0.0  # as `sure`, of values cut at the 99 % quantile of all: outliers hide what most have
    share: float = 1.0  # of the slow ones, which have the part; `spread` is of the normal ones that have it

    @property
    def sure(self) -> float:
        """Return its lower bound, by one standard error."""
        return _sure(max(self.more - self.error, self.typical))

    @property
    def z(self) -> float:
        """Return the excess in standard errors, of means or of ranks: whichever is clearer."""
        if self.more < RESOLUTION_MS:
            return 0.0
        return max(self.more / self.error if self.error > 0 else 0.0, self.rank_z)


def _sure(value: float) -> float:
    return value if value > RESOLUTION_MS else 0.0


NONE: Final = Excess(0.0, 0.0, 0.0, 0.0)


class Compared:
    """Slow traces and normal ones of the same mix, as numbers."""

    def __init__(self, slow: Sequence[Timed], normal: Sequence[Timed], weights: Array) -> None:
        self.slow, self.normal, self.weights = slow, normal, weights
        kinds = {kind: place for place, kind in enumerate(dict.fromkeys(one.kind for one in (*slow, *normal)))}
        ours, theirs = (np.array([kinds[one.kind] for one in traces]) for traces in (slow, normal))
        self._alike = [(np.flatnonzero(ours == kind), np.flatnonzero(theirs == kind)) for kind in kinds.values()]

    def of_parts(self, key_of: Callable[[Any], Hashable | None] = lambda part: part) -> dict[Any, Excess]:
        """Return the excess of parts, grouped by `key_of`; a part with key None is excluded."""
        columns: list[dict[Any, Array]] = []
        for traces in (self.slow, self.normal):
            found: dict[Any, Array] = {}
            for place, one in enumerate(traces):
                for part, took in one.parts.items():
                    key = key_of(part)
                    if key is not None and key not in found:
                        found[key] = np.zeros(len(traces))
                    if key is not None:
                        found[key][place] += took
            columns.append(found)
        return self.excess(*columns)

    def excess(self, slow: Mapping[Any, Any], normal: Mapping[Any, Any]) -> dict[Any, Excess]:
        """Return the differences of the means of columns, one value for each trace."""
        found = {}
        for key in {**slow, **normal}:
            ours = np.asarray(slow.get(key, np.zeros(len(self.slow))))
            theirs = np.asarray(normal.get(key, np.zeros(len(self.normal))))
            more, error = self._difference(ours, theirs)
            most = np.quantile(np.concatenate([ours, theirs]), _CUT)
            typical, its_error = self._difference(np.minimum(ours, most), np.minimum(theirs, most))
            there = theirs[self.weights > 0]
            spread = _SCALE * float(np.median(np.abs(there - np.median(there))))
            baseline = float(self.weights @ theirs)
            found[key] = Excess(more, error, baseline, spread, self._ranked(ours, theirs), typical - its_error)
        return found

    def among_passing(self, key_of: Callable[[Any], Hashable | None] = lambda part: part) -> dict[Any, Excess]:
        """Return the excess of parts, each compared among those that have it, as a share of all; see `of_parts`.

        What passes a part more often loses no time in it. A part that no normal one of these kinds has counts in full
        where most slow ones of a kind have it.
        """
        found: dict[Any, list[Array]] = {}
        for part in {part for one in (*self.slow, *self.normal) for part in one.passes | {*one.parts}}:
            key = key_of(part)
            if key is None:
                continue
            more = self._beyond(part)
            sums = found.setdefault(key, [np.zeros_like(one) for one in more])
            for place, each in enumerate(more[:-1]):
                sums[place] += each
            np.maximum(sums[-1], more[-1], out=sums[-1])
        return {key: self._of_passing(*columns) for key, columns in found.items()}

    def _beyond(self, part: Any) -> tuple[Array, Array, Array, Array, Array, Array]:
        """Return the time of a part beyond that of normal ones of the kind that have it, and which ones do, of each.

        The third pair is what is normal for slow ones, and the variance of that, in units of the part's own variance.
        """
        ours, theirs = (np.array([one.parts.get(part, 0.0) for one in some]) for some in (self.slow, self.normal))
        mine, others = (
            np.array([part in one.passes or part in one.parts for one in some], float)
            for some in (self.slow, self.normal)
        )
        expected, unsure = np.zeros(len(ours)), np.zeros(len(ours))
        more, rest = np.zeros(len(ours)), np.zeros(len(theirs))
        everywhere = np.flatnonzero(others)
        for here, there in self._alike:
            has, had = here[mine[here] > 0], there[others[there] > 0]
            if len(had):
                rest[had] = theirs[had] - theirs[had].mean()
            alike = had if len(had) >= _LEAST_ALIKE else everywhere
            if len(alike) >= _LEAST_ALIKE:
                expected[has], unsure[has] = theirs[alike].mean(), len(has) / len(alike)
            elif len(had) or len(there) < _LEAST_NEW or len(has) < _MOSTLY * len(here):
                mine[has] = 0  # nothing to compare with
            more[has] = np.where(mine[has] > 0, ours[has] - expected[has], 0)
        return more, rest, mine, others, expected, unsure

    def _of_passing(
        self, more: Array, rest: Array, mine: Array, others: Array, expected: Array, unsure: Array
    ) -> Excess:
        has, had = np.flatnonzero(mine), np.flatnonzero(others)
        if len(has) < _LEAST_PASSING:
            return NONE
        share = len(has) / len(self.slow)
        variance = float(rest[had].var(ddof=1)) if len(had) > 1 else 0.0

        def mean(values: Array, of_normal: float) -> tuple[float, float]:
            error = (float(values.var(ddof=1)) / len(has) + of_normal * float(unsure[has].mean()) / len(has)) ** 0.5
            return share * float(values.mean()), share * error

        found, error = mean(more[has], variance)
        most = np.quantile(np.concatenate([more[has], rest[had]]), _CUT)
        cut = np.minimum(rest[had], most)
        typical, its_error = mean(np.minimum(more[has], most), float(cut.var(ddof=1)) if len(had) > 1 else 0.0)
        typical -= share * float(cut.mean()) if len(had) else 0.0
        spread = _SCALE * float(np.median(np.abs(rest[had] - np.median(rest[had])))) if len(had) else 0.0
        groups = [(here[mine[here] > 0], there[others[there] > 0]) for here, there in self._alike]
        z = self._ranked(more, rest, groups)
        return Excess(found, error, share * float(expected[has].mean()), spread, z, typical - its_error, share)

    def _difference(self, ours: Array, theirs: Array) -> tuple[float, float]:
        """Return the difference of the means, and its standard error."""
        normal = float(self.weights @ theirs)
        variance = float(ours.var() / len(ours) + (self.weights**2) @ (theirs - normal) ** 2)
        return float(ours.mean()) - normal, variance**0.5

    def _ranked(self, ours: Array, theirs: Array, alike: Sequence[tuple[Array, Array]] | None = None) -> float:
        """Return the statistic of van Elteren's test (1960): Wilcoxon's rank sums, within kinds."""
        from scipy.stats import rankdata

        total, variance = 0.0, 0.0
        for here, there in self._alike if alike is None else alike:
            n, m = len(here), len(there)
            if not n or not m:
                continue
            ranks = rankdata(np.concatenate([ours[here], theirs[there]]))
            weight = 1 / (n + m + 1)
            total += weight * (float(ranks[:n].sum()) - n * (n + m + 1) / 2)
            variance += weight**2 * n * m / (n + m) * float(ranks.var(ddof=1))
        return total / variance**0.5 if variance > 0 else 0.0
