"""Differences of breaches from good requests of the same route: values of attributes, and pairs of them.

Every value (and pair) is tested against the requests of the same stratum that lack it, and only for a higher risk: what
lowers the risk is what the others lack. The test is Fisher's, one-sided, conditional on both margins; over several
strata the sum of their hypergeometric variables. Benjamini and Hochberg (1995) correct over all that was tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import sqrt
from typing import Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.contingency import Cells, Counts, benjamini_hochberg, more_than_sum, one_sided
from stagetrace.analysis.values import Coded, coded

ALPHA: Final = 0.05  # share of false ones among the findings
LEAST: Final = 10  # requests with a value or pair, for it to be tested
_CELLS: Final = 40_000  # of the table of two keys, over all strata
_PAIRED: Final = 30  # values of a key, the most frequent, of which pairs are tested
_INTERACTION: Final = 1.96  # standard errors by which a pair's risk must exceed the sum of both values' own
_ALONG: Final = 5
_FOLLOWED: Final = 400  # findings looked at for what they share, the strongest first


@dataclass(frozen=True)
class Contrast:
    """Something that breaches have more often than good requests of the same stratum.

    Counts are sums of weights. `relative_risk` is that of requests with the values over those without, within strata
    (Mantel and Haenszel); where no other request is breached, half a breach is assumed, so it is finite.
    """

    values: dict[str, str | None]  # one key or two; None: the attribute is absent
    breached: float
    good: float
    relative_risk: float
    interval: tuple[float, float]  # of 95 %
    p_value: float
    q_value: float
    also: tuple[dict[str, str | None], ...] = ()  # other names of exactly these requests
    along: tuple[dict[str, str | None], ...] = ()  # what is more frequent only because it goes with this
    rows: Array = field(default_factory=lambda: np.empty(0, int), repr=False, compare=False)  # the breaches meant

    @property
    def explained(self) -> float:
        """Return how many breaches there would be less at the risk of the others, at least (by the interval)."""
        return self.breached * max(0.0, 1 - 1 / self.interval[0]) if self.interval[0] > 0 else 0.0


class Found(NamedTuple):
    """The findings of `search`, and the number of tests."""

    contrasts: tuple[Contrast, ...]
    tests: int
    skipped: tuple[str, ...]  # keys with too many values to be informative


class _Candidate(NamedTuple):
    parts: tuple[tuple[int, int], ...]  # (place of the key, code of the value), one or two
    p_value: float


def contrast(
    attributes: Mapping[str, Sequence[str | None]],
    breached: Sequence[bool],
    weights: Sequence[float] | None = None,
    strata: Sequence[object] | None = None,
) -> list[Contrast]:
    """Return the differences of breached requests from the others, those that explain most breaches first.

    Args:
        attributes: Key -> its text of each request, None where that lacks it.
        breached: Whether each request is a breach.
        weights: How many requests each stands for; the test then is one of counts scaled to the effective size of the
            sample (Kish 1965), which for even weights is their number.
        strata: Within which requests are compared, such as the route; all are compared without it.

    Raises:
        ValueError: The sequences differ in length, or a weight is not positive and finite.

    """
    return list(search(attributes, breached, weights, strata).contrasts)


def search(
    attributes: Mapping[str, Sequence[str | None]],
    breached: Sequence[bool],
    weights: Sequence[float] | None = None,
    strata: Sequence[object] | None = None,
) -> Found:
    """Return the findings of `contrast`, and the number of tests."""
    labels = np.asarray(breached, dtype=bool)
    lengths = {len(column) for column in attributes.values()}
    lengths |= {len(one) for one in (weights, strata) if one is not None}
    if lengths - {len(labels)}:
        raise ValueError(f"{len(labels)} requests, but columns of {', '.join(map(str, sorted(lengths)))}")
    keys, skipped = _keys(attributes)
    if not keys or labels.all() or not labels.any():
        return Found((), 0, skipped)
    counts = Counts(labels, weights, strata)
    tested = [*_singles(counts, keys), *_pairs(counts, keys)]
    parts = [part for many, _ in tested for part in many]
    p_values = np.concatenate([some for _, some in tested] or [np.empty(0)])
    q_values = benjamini_hochberg(p_values)
    chosen = np.flatnonzero(q_values <= ALPHA)
    chosen = chosen[np.argsort(p_values[chosen], kind="stable")][:_FOLLOWED]
    if not len(chosen):
        return Found((), len(p_values), skipped)
    cut = float(p_values[q_values <= ALPHA].max())
    found = [
        _contrast(counts, keys, _Candidate(parts[place], float(p_values[place])), float(q_values[place]))
        for place in chosen
    ]
    return Found(tuple(_distinct(counts, found, cut)), len(p_values), skipped)


def _keys(attributes: Mapping[str, Sequence[str | None]]) -> tuple[list[tuple[str, Coded]], tuple[str, ...]]:
    """Return the keys that have at least two values of enough requests, and the names of those with too many."""
    keys, skipped = [], []
    for key, column in attributes.items():
        made = coded(column, LEAST)
        if made is None:
            skipped.append(key)
        elif len(made.values) > 1 or (len(made.values) == 1 and made.has_others):
            keys.append((key, made))
    return keys, tuple(skipped)


_Tested = tuple[list[tuple[tuple[int, int], ...]], "Array"]


def _singles(counts: Counts, keys: list[tuple[str, Coded]]) -> Iterator[_Tested]:
    for place, (_, key) in enumerate(keys):
        size = len(key.values)
        table = counts.table(key.codes, size + 1)
        with_it = table.at(slice(size))
        yield [((place, code),) for code in range(size)], one_sided(with_it, table.summed(1) - with_it)


def _pairs(counts: Counts, keys: list[tuple[str, Coded]]) -> Iterator[_Tested]:
    """Test pairs of values of two keys: whether each raises the risk of the requests that have the other."""
    most = min(_PAIRED, int(sqrt(_CELLS / counts.strata)) - 1)
    if most < 1:
        return
    short = [key.shortened(most) for _, key in keys]
    for (first, one), (second, other) in combinations(enumerate(short), 2):
        rows, columns = len(one.values) + 1, len(other.values) + 1
        # The last row and column stand for all values that are not tested.
        table = counts.table(one.codes * columns + other.codes, rows * columns).shaped(rows, columns)
        places = _tested(table)
        if not len(places):
            continue
        i, j = places.T
        row, column = table.summed(2).at(i, 0), table.summed(1).at(0, j)
        both, all_of = table.at(i, j), table.summed(1, 2).at(0)
        p_values = np.maximum(one_sided(both, row - both), one_sided(both, column - both))
        more = more_than_sum(counts, both, row - both, column - both, all_of - row - (column - both))
        p_values[more <= _INTERACTION] = 1.0
        yield [((first, int(a)), (second, int(b))) for a, b in places], p_values


def _tested(table: Cells) -> Array:
    """Return the places of pairs that enough requests have, and that are not all requests with one of the values."""
    size = table.rows
    many = size >= LEAST
    many &= (size.sum(1, keepdims=True) > size) & (size.sum(0, keepdims=True) > size)
    return np.argwhere(many[:-1, :-1])


def _mask(keys: list[tuple[str, Coded]], parts: tuple[tuple[int, int], ...]) -> Array:
    return np.asarray(np.logical_and.reduce([keys[place][1].codes == code for place, code in parts]))


class _Finding(NamedTuple):
    contrast: Contrast
    mask: Array
    parts: tuple[bytes, ...]  # which requests each of its values has, in a digest; of a single value, its own


def _contrast(counts: Counts, keys: list[tuple[str, Coded]], one: _Candidate, q_value: float) -> _Finding:
    mask = _mask(keys, one.parts)
    risk = counts.risk(mask)
    values = {keys[place][0]: keys[place][1].values[code] for place, code in one.parts}
    rows = np.flatnonzero(mask & counts.breached)
    made = Contrast(values, risk.breached, risk.good, risk.relative, risk.interval, one.p_value, q_value, rows=rows)
    return _Finding(made, mask, tuple(_digest(_mask(keys, (part,))) for part in one.parts))


def _digest(mask: Array) -> bytes:
    return np.packbits(mask).tobytes()


def _distinct(counts: Counts, found: list[_Finding], cut: float) -> Iterator[Contrast]:
    """Yield the independent findings: each under one name, none that only accompanies another."""
    merged = _merged(found)
    pairs = [one for one in merged if len(one.contrast.values) > 1]
    own = {id(pair): {*pair.parts} for pair in pairs}
    order = sorted(merged, key=lambda one: (-one.contrast.explained, one.contrast.p_value, str(one.contrast.values)))
    replaced: dict[int, _Finding] = {}
    for one in order:
        if len(one.contrast.values) == 1:
            for pair in pairs:
                if one.parts[0] in own[id(pair)] and counts.p_value(one.mask, ~pair.mask) > cut:
                    replaced[id(one)] = pair
                    break
    kept: list[_Finding] = []
    along: dict[int, list[dict[str, str | None]]] = {}
    for one in order:
        blocker = replaced.get(id(one)) or _covered_by(counts, one, kept, cut)
        if blocker is None:
            kept.append(one)
            along.setdefault(id(one), [])
        else:
            along.setdefault(id(blocker), []).append(one.contrast.values)
    for one in kept:
        yield replace(one.contrast, along=tuple(along[id(one)][:_ALONG]))


def _covered_by(counts: Counts, one: _Finding, kept: list[_Finding], cut: float) -> _Finding | None:
    """Return the finding without whose requests this one is none, or None: a pair is more than its own values."""
    others = [other for other in kept if not (len(one.parts) > 1 and other.parts[0] in one.parts)]
    if not others:
        return None
    outside = ~np.logical_or.reduce([other.mask for other in others])
    if counts.p_value(one.mask, outside) <= cut:
        return None
    shared = [np.count_nonzero(other.mask[one.contrast.rows]) for other in others]
    return others[int(np.argmax(shared))]


def _merged(found: list[_Finding]) -> list[_Finding]:
    """Return findings of the same requests as one: the name with fewest keys first, the others in `also`."""
    groups: dict[bytes, list[_Finding]] = {}
    for one in found:
        groups.setdefault(_digest(one.mask), []).append(one)
    merged = []
    for group in groups.values():
        first, *others = sorted(group, key=lambda one: len(one.contrast.values))
        singles = [one for one in others if len(one.contrast.values) == len(first.contrast.values)]
        also = tuple(one.contrast.values for one in singles)
        merged.append(first._replace(contrast=replace(first.contrast, also=also)))
    return merged
