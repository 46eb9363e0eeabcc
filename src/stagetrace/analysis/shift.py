"""The excess of slow requests over normal ones of the same kind, part by part.

A mix of kinds that differs is no difference: normal ones are weighed to the mix of the slow ones (direct
standardisation), and ranks are compared within kinds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array

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
