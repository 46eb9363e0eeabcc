"""Conditions on requests, each a value of an attribute or a range of its numbers, and how often each holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.base import RESPONSE, SIZES, rank, rank_of
from stagetrace.analysis.cases import Coded, coded
from stagetrace.analysis.statistics import Cells, Counts, Risk, likelihood_gain, one_sided

_CELLS: Final = 500_000  # of the table of all conditions, over all strata


class Condition(NamedTuple):
    """That an attribute has a value, or one of several; `value` None: that it is absent."""

    key: int
    value: str | None


class Conditions:
    """All conditions on some requests of which `least` or more fulfil each."""

    def __init__(self, attributes: Mapping[str, Sequence[str | None]], counts: Counts, least: int) -> None:
        self.counts = counts
        self.keys: list[str] = []
        self.skipped: list[str] = []  # keys with too many values to be informative
        made: list[Coded] = []
        for key, column in attributes.items():
            one = coded(column, least, is_size=rank(key) in SIZES)
            if one is None:
                self.skipped.append(key)
            elif len(one.values) > 1 or (len(one.values) == 1 and one.has_others):
                self.keys.append(key)
                made.append(one)
        most = max(1, _CELLS // max(1, len(made) * counts.strata))
        made = [one.shortened(most) for one in made]
        widths = [len(one.values) + 1 for one in made]
        offsets = np.cumsum([0, *widths])
        self._width = int(offsets[-1])
        self._codes = np.empty((len(counts.breached), len(made)), np.int32)
        self.of: list[Condition] = []
        self._members: list[Array] = []  # codes in all columns together
        for place, (one, offset) in enumerate(zip(made, offsets.tolist(), strict=False)):
            self._codes[:, place] = one.codes + offset
            for code, value in enumerate(one.values):
                self.of.append(Condition(place, value))
                self._members.append(np.array([offset + code]))
            for name, codes in one.unions:
                self.of.append(Condition(place, name))
                self._members.append(offset + np.array(codes))
        self.key_of = np.array([one.key for one in self.of], int)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.of)

    def table(self, rows: Array) -> Cells:
        """Return how many of these requests fulfil each condition: by stratum and condition."""
        found = self.counts.table_of(self._codes, self._width, rows)
        firsts = [one[0] for one in self._members]
        table = Cells(found.bad[:, firsts], found.good[:, firsts])
        for place, codes in enumerate(self._members):
            if len(codes) > 1:
                table.bad[:, place] = found.bad[:, codes].sum(1)
                table.good[:, place] = found.good[:, codes].sum(1)
        return table

    def holds(self, condition: int, rows: Array) -> Array:
        """Return which of these requests fulfil a condition."""
        codes = self._codes[rows, self.key_of[condition]]
        return np.asarray(np.isin(codes, self._members[condition]))

    def named(self, parts: Sequence[int]) -> dict[str, str | None]:
        """Return the values that some conditions ask for, by key in their order."""
        return {self.keys[self.of[part].key]: self.of[part].value for part in sorted(parts)}


# --- Differences of breaches from good requests of the same route: values of attributes, up to three of them together.
#
# One finding after the other: the set of requests that explains the outcomes best is named by attributes that a person
# knows; then its requests are set aside, and what follows must hold among the others. So what only goes with a cause,
# and a part of it, is none.

ALPHA: Final = 0.05  # chance that anything is found where nothing distinguishes breaches
LEAST: Final = 10  # requests with a value or pair, for it to be tested
# Times the risk of the others, of the first finding and of more: smaller differences are everywhere in enough requests.
LEAST_RISK: Final = (1.5, 2.0)
LEAST_SHARE: Final = 0.03  # of all breaches: what explains less is no cause of them that helps a person
_MOST: Final = 8  # findings
_BEAMS: Final = (40, 16)  # values of which pairs are tested, and pairs of which triples are
_OF_A_KEY: Final = 6  # of these values
_CLEARLY: Final = 0.9  # a longer condition gains at least so much more: gain of the shorter one / its own
_UNCHOSEN: Final = (
    0.6  # what the size of a response, a host or a port explains must be so much more than what others do
)
_ALIKE: Final = 0.9  # share of two sets of requests that is common to both, for them to be about the same
_SAME_GAIN: Final = 0.9
_CHOSEN: Final = 30  # of the best conditions of each length
_ALONG: Final = 5


@dataclass(frozen=True)
class Contrast:
    """Something that breaches have more often than good requests of the same stratum.

    Counts are sums of weights. `relative_risk` is that of requests with the values over those without, within strata
    (Mantel and Haenszel), both without the requests of earlier findings; where no other request is breached, half a
    breach is assumed, so it is finite.
    """

    values: dict[str, str | None]  # one key to three; None: the attribute is absent
    breached: float
    good: float
    relative_risk: float
    interval: tuple[float, float]  # of 95 %
    p_value: float
    q_value: float  # corrected for all conditions that might have been found
    explained: float  # breaches fewer, at least (by the interval), if these requests had the risk of the others
    also: tuple[dict[str, str | None], ...] = ()  # other names of these requests, or of about these
    along: tuple[dict[str, str | None], ...] = ()  # what is more frequent only because it goes with this
    rows: Array = field(default_factory=lambda: np.empty(0, int), repr=False, compare=False)  # the breaches meant
    requests: Array = field(default_factory=lambda: np.empty(0, int), repr=False, compare=False)  # all that have them


class Found(NamedTuple):
    """The findings of `search`, and the number of tests."""

    contrasts: tuple[Contrast, ...]
    tests: int
    skipped: tuple[str, ...]  # keys with too many values to be informative


class _Tried(NamedTuple):
    """Conditions of one length, the best ones first: places in `Conditions`, gains, and how many there may be."""

    parts: list[tuple[int, ...]]
    gains: Array
    tests: float


class _Best(NamedTuple):
    parts: tuple[int, ...]
    mask: Array  # of all requests
    p_value: float
    q_value: float
    risk: Risk


def search(
    attributes: Mapping[str, Sequence[str | None]],
    breached: Sequence[bool],
    weights: Sequence[float] | None = None,
    strata: Sequence[object] | None = None,
) -> Found:
    """Return the differences of breached requests from the others, those that explain most first.

    Args:
        attributes: Key -> its text of each request, None where that lacks it.
        breached: Whether each request is a breach.
        weights: How many requests each stands for; the test then is one of counts scaled to the effective size of the
            sample (Kish 1965), which for even weights is their number.
        strata: Within which requests are compared, such as the route; all are compared without it.

    Raises:
        ValueError: The sequences differ in length, or a weight is not positive and finite.

    """
    labels = np.asarray(breached, dtype=bool)
    lengths = {len(column) for column in attributes.values()}
    lengths |= {len(one) for one in (weights, strata) if one is not None}
    if lengths - {len(labels)}:
        raise ValueError(f"{len(labels)} requests, but columns of {', '.join(map(str, sorted(lengths)))}")
    counts = Counts(labels, weights, strata)
    conditions = Conditions(attributes, counts, LEAST)
    if not len(conditions) or labels.all() or not labels.any():
        return Found((), 0, tuple(conditions.skipped))
    looked = _Search(conditions, counts)
    return Found(tuple(looked.findings()), looked.tests, tuple(conditions.skipped))


class _Search:
    """The requests that no finding has so far, and what distinguishes the breaches among them."""

    def __init__(self, conditions: Conditions, counts: Counts) -> None:
        self.conditions, self.counts = conditions, counts
        self.rows = np.arange(len(counts.breached))
        self.left = np.ones(len(counts.breached), bool)
        self.all_breaches = float(counts.sums(counts.breached))
        self.tests = 0
        self.ranks = np.array([self._rank_of(one) for one in range(len(conditions))])

    def findings(self) -> Iterator[Contrast]:
        """Yield the findings."""
        levels = self._levels()
        for _ in range(_MOST):
            best = self._best(levels)
            if best is None:
                return
            surely = self._surely(levels[0])
            parts, also = self._renamed(best.parts)
            mask = self._mask(parts)
            risk = best.risk if parts == best.parts else self.counts.risk(mask, self.left)
            self.left &= ~(mask | best.mask)
            self.rows = np.flatnonzero(self.left)
            levels = self._levels()
            along = surely - self._surely(levels[0]) - ({*parts} if len(parts) == 1 else set())
            yield self._contrast(best, parts, mask, risk, also, self._ranked(along))

    def _contrast(
        self, best: _Best, parts: tuple[int, ...], mask: Array, risk: Risk, also: Iterable[tuple[int, ...]],
        along: Iterable[int],
    ) -> Contrast:  # fmt: skip
        bad, good = (self.counts.sums(mask & (self.counts.breached == kind)) for kind in (True, False))
        return Contrast(
            self.conditions.named(parts),
            bad,
            good,
            risk.relative,
            risk.interval,
            best.p_value,
            best.q_value,
            _explained(risk),
            tuple(self.conditions.named(one) for one in also),
            tuple(self.conditions.named((one,)) for one in along),
            np.flatnonzero(mask & self.counts.breached),
            np.flatnonzero(mask),
        )

    def _levels(self) -> list[_Tried]:
        """Return single conditions, pairs and triples of them by what they explain among the requests left."""
        total = self.counts.cells(self.rows)
        self.total = total
        singles = self._tried([()], total)
        self.tests += int(singles.tests)
        levels = [singles]
        own = dict(zip((part for (part,) in singles.parts), singles.gains.tolist(), strict=True))
        for most in _BEAMS:
            shorter = levels[-1]
            beam = [
                parts
                for parts, gain in zip(shorter.parts, shorter.gains.tolist(), strict=True)
                if gain > 1 and (len(parts) == 1 or gain > max(own.get(part, 0.0) for part in parts))
            ]
            chosen = self._beam(beam, most)
            if not chosen:
                break
            longer = self._tried(chosen, total)
            self.tests += int(longer.tests)
            # As many of the others as of these have enough requests, at most.
            share = longer.tests / (len(chosen) * max(1.0, singles.tests))
            tests = share * shorter.tests * singles.tests / len(levels) / 2
            levels.append(longer._replace(tests=max(1.0, tests)))
        return levels

    def _beam(self, best: Iterable[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
        """Return the best conditions, few of one key, and one of those that have the same requests."""
        chosen: dict[bytes, tuple[int, ...]] = {}
        of_keys: dict[tuple[int, ...], int] = {}
        for parts in best:
            keys = tuple(sorted(self.conditions.key_of[list(parts)].tolist()))
            if of_keys.get(keys, 0) >= _OF_A_KEY:
                continue
            digest = np.packbits(self._holds(parts)).tobytes()
            known = chosen.get(digest)
            if known is None or self._rank(parts) < self._rank(known):
                chosen[digest] = parts
            if known is None:
                of_keys[keys] = of_keys.get(keys, 0) + 1
            if len(chosen) >= most:
                break
        return list(chosen.values())

    def _tried(self, beam: Sequence[tuple[int, ...]], total: Cells) -> _Tried:
        """Return each of these conditions with each other one added, the best ones first."""
        found: dict[tuple[int, ...], float] = {}
        tests = 0
        for parts in beam:
            rows = self.rows[self._holds(parts)] if parts else self.rows
            table = self.conditions.table(rows)
            many = table.rows
            tested = (many >= LEAST) & (many < float(self.counts.cells(rows).rows) - 0.5)  # not of all
            if parts:
                tested &= ~np.isin(self.conditions.key_of, self.conditions.key_of[list(parts)])
            places = np.flatnonzero(tested)
            tests += len(places)
            gains = likelihood_gain(table.at(places), total.shaped(1))
            for place, gain in zip(places.tolist(), gains.tolist(), strict=True):
                if gain > 0:
                    found[tuple(sorted((*parts, place)))] = gain
        order = sorted(found, key=lambda one: (-found[one], self._rank(one), one))
        return _Tried(order, np.array([found[one] for one in order]), float(max(1, tests)))

    def _best(self, levels: Sequence[_Tried]) -> _Best | None:
        """Return the condition that explains most, a longer one only where that is clearly more than its parts do."""
        scored = [
            (gain * self._worth(parts) - np.log(level.tests), parts, level.tests)
            for level in levels
            for parts, gain in zip(level.parts[:_CHOSEN], level.gains.tolist(), strict=False)
        ]
        for score, parts, tests in sorted(scored, key=lambda one: (-one[0], self._rank(one[1]))):
            if score < 0:
                return None
            holds = self._holds(parts)
            p_value = self._p_value(holds, np.ones(len(holds), bool))
            # Half of the errors are allowed to single conditions, a quarter each to pairs and triples.
            q_value = min(1.0, p_value * tests * (2 if len(parts) == 1 else 4))
            if q_value > ALPHA or not self._is_more_than_its_parts(parts, holds, levels[0].tests):
                continue
            mask = self._mask(parts)
            risk = self.counts.risk(mask, self.left)
            if self._is_cause(mask, risk):
                return _Best(parts, mask, p_value, q_value, risk)
        return None

    def _worth(self, parts: tuple[int, ...]) -> float:
        """Return how much of its gain a condition is worth: the shorter and the better known, the more."""
        return float(_CLEARLY ** (len(parts) - 1)) * (_UNCHOSEN if self._rank(parts)[0] >= RESPONSE else 1.0)

    def _is_cause(self, mask: Array, risk: Risk) -> bool:
        """Return whether a difference is large enough and, beside a cause that is known, of less than half of them."""
        is_first = bool(self.left.all())
        if _explained(risk) < LEAST_SHARE * self.all_breaches or risk.relative < LEAST_RISK[not is_first]:
            return False
        return is_first or self.counts.sums(mask & self.left) <= self.counts.sums(self.left) / 2

    def _is_more_than_its_parts(self, parts: tuple[int, ...], holds: Array, tests: float) -> bool:
        """Return whether each of several conditions raises the risk of the requests that have all others."""
        if len(parts) == 1:
            return True
        return all(
            self._p_value(holds, self._holds(tuple(one for one in parts if one != part))) * tests <= ALPHA
            for part in parts
        )

    def _p_value(self, holds: Array, within: Array) -> float:
        """Return how likely as many breaches are by chance among some of the requests left, of those within."""
        with_it, all_of = (self.counts.cells(self.rows[mask]) for mask in (holds & within, within))
        return float(one_sided(with_it.shaped(1), (all_of - with_it).shaped(1))[0])

    def _surely(self, singles: _Tried) -> set[int]:
        """Return the single conditions that are surely more frequent among the breaches left."""
        least = np.log(singles.tests * 2 / ALPHA)
        return {parts[0] for parts, gain in zip(singles.parts, singles.gains.tolist(), strict=True) if gain > least}

    def _ranked(self, conditions: Iterable[int]) -> list[int]:
        return sorted(conditions, key=lambda one: (self.ranks[one], one))[:_ALONG]

    def _rank_of(self, condition: int) -> float:
        """Return how well a person knows a condition; what is beyond an edge better than what is between two."""
        is_between = ", to " in str(self.conditions.of[condition].value)
        return rank_of(self.conditions.named((condition,)))[0] + is_between / 2

    def _rank(self, parts: tuple[int, ...]) -> tuple[float, float]:
        some = [float(self.ranks[part]) for part in parts]
        return max(some, default=0), sum(some)

    def _holds(self, parts: tuple[int, ...]) -> Array:
        """Return which of the requests left have all values."""
        found = np.ones(len(self.rows), bool)
        for part in parts:
            found &= self.conditions.holds(part, self.rows)
        return found

    def _mask(self, parts: tuple[int, ...]) -> Array:
        everything = np.arange(len(self.left))
        return np.asarray(np.logical_and.reduce([self.conditions.holds(part, everything) for part in parts]))

    def _renamed(self, parts: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """Return the best-known name of about the same requests, and its other names."""
        also: list[tuple[int, ...]] = []
        for part in sorted(parts, key=lambda one: -self.ranks[one]):
            rest = tuple(one for one in parts if one != part)
            others = self._alike(part, rest)
            best = min([part, *others], key=lambda one: (self.ranks[one], one != part, one))
            own = self.conditions.key_of[best]
            also += [tuple(sorted((*rest, one))) for one in (part, *others) if self.conditions.key_of[one] != own]
            parts = tuple(sorted((*rest, best)))
        wanted = self._gain(parts) * _SAME_GAIN
        for part in sorted(parts, key=lambda one: -self.ranks[one]):
            rest = tuple(one for one in parts if one != part)
            if rest and self._gain(rest) >= wanted and _overlap(self._holds(parts), self._holds(rest)) >= _ALIKE:
                parts = rest
        kept = {one for one in also if len(one) == len(parts)}
        return parts, sorted(kept, key=lambda one: (self._rank(one), one))[:_ALONG]

    def _alike(self, part: int, rest: tuple[int, ...]) -> list[int]:
        """Return conditions that, among requests with the rest, hold for about the same ones, breaches and others."""
        among = self._holds(rest)
        rows = self.rows[among]
        holds = self.conditions.holds(part, rows)
        theirs, both = self.conditions.table(rows), self.conditions.table(rows[holds])
        alike = np.ones(len(self.conditions), bool)
        for each, common in ((theirs.bad, both.bad), (theirs.bad + theirs.good, both.bad + both.good)):
            mine = common[:, part].sum()
            united = mine + each.sum(0) - common.sum(0)
            alike &= common.sum(0) >= _ALIKE * united
        alike &= ~np.isin(self.conditions.key_of, self.conditions.key_of[list(rest)])
        return [int(one) for one in np.flatnonzero(alike)]

    def _gain(self, parts: tuple[int, ...]) -> float:
        cells = self.counts.cells(self.rows[self._holds(parts)])
        return float(likelihood_gain(cells.shaped(1), self.total.shaped(1))[0])


def _explained(risk: Risk) -> float:
    """Return how many breaches there would be less at the risk of the others, at least (by the interval)."""
    return risk.breached * max(0.0, 1 - 1 / risk.interval[0]) if risk.interval[0] > 0 else 0.0


def _overlap(one: Array, other: Array) -> float:
    united = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / united) if united else 0.0
