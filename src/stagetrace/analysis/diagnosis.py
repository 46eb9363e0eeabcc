"""Differences of breaches from good requests, with the evidence: attributes, stages, causes, moments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.cases import Cases, coded
from stagetrace.analysis.causes import ALPHA, Contrast, search
from stagetrace.analysis.onset import Change, Release, Since, changes, since_of
from stagetrace.analysis.statistics import Compared, Excess, Timed, benjamini_hochberg, mix

# --- Attributes of two groups of requests side by side: which share of each group has a value. Described, not tested.

LEAST: Final = 5  # breaches, and good requests
_EXAMPLES: Final = 3


@dataclass(frozen=True)
class Evidence:
    """The breaches that a finding is about."""

    first_unix_nano: int
    last_unix_nano: int
    excess_ms: float  # mean duration beyond that of good requests of the same routes
    trace_ids: tuple[str, ...]  # of the longest ones


@dataclass(frozen=True)
class Finding:
    """A difference of breaches, and its evidence."""

    contrast: Contrast
    evidence: Evidence
    since: Since | None  # None: all the time


@dataclass(frozen=True)
class StageShift:
    """The extra time of breaches in a stage, over good requests of the same mix of routes; ms are means."""

    stage: str
    excess_ms: float
    interval_ms: tuple[float, float]  # of 95 %
    good_ms: float
    share: float | None  # of the excess of the whole request; None where that is none
    q_value: float


@dataclass(frozen=True)
class VerdictCause:
    """How many of the breaches compared have one stage and cause by their own verdict."""

    stage: str | None
    cause: str | None
    breaches: int
    share: float
    code: str | None  # the line of code that most of them name, and how many do
    at_code: int
    evidence: Evidence


@dataclass(frozen=True)
class Diagnosis:
    """All findings; each list is empty where there is none."""

    findings: tuple[Finding, ...]
    stages: tuple[StageShift, ...]
    causes: tuple[VerdictCause, ...]
    changes: tuple[Change, ...]
    tests: int
    skipped: tuple[str, ...]  # attributes with too many values
    excess_ms: float | None  # of a whole breach
    breaches: int  # compared
    good: int


def diagnose(cases: Cases, releases: Sequence[Release] = ()) -> Diagnosis:
    """Return the differences of breaches from good requests; none where there are fewer than five of either.

    `releases` are moments at which they may have begun.
    """
    bad, good = int(cases.breached.sum()), int((~cases.breached).sum())
    if min(bad, good) < LEAST:
        return Diagnosis((), (), _verdicts(cases, np.zeros(len(cases.rows))), (), 0, (), None, bad, good)
    strata = cases.strata
    baseline = _baseline(cases, strata)
    breached, weights = cases.breached.tolist(), cases.weights.tolist()
    found = search(cases.attributes, breached, weights, strata)
    stages, whole = _stages(cases, strata)
    return Diagnosis(
        tuple(
            Finding(one, evidence(cases, one.rows, baseline), since_of(one.requests, cases.rows, breached, releases))
            for one in found.contrasts
        ),
        stages,
        _verdicts(cases, baseline),
        tuple(changes(cases.starts, breached, weights, strata, releases)),
        found.tests,
        found.skipped,
        whole.more,
        bad,
        good,
    )


def _baseline(cases: Cases, strata: Sequence[tuple[str, str]]) -> Array:
    """Return, for each request, how long good ones of its stratum take, ms; of all strata where it has none."""
    codes = {name: place for place, name in enumerate(dict.fromkeys(strata))}
    of = np.array([codes[name] for name in strata])
    took = np.array([row["duration_ms"] for row in cases.rows], float)
    good = ~cases.breached
    sums = np.bincount(of[good], cases.weights[good] * took[good], len(codes))
    counts = np.bincount(of[good], cases.weights[good], len(codes))
    overall = float(sums.sum() / counts.sum())
    means = np.divide(sums, counts, out=np.full(len(codes), overall), where=counts > 0)
    return np.asarray(means[of])


def evidence(cases: Cases, rows: Array, baseline: Array) -> Evidence:
    """Return the evidence of some breaches."""
    some = [cases.rows[place] for place in rows]
    took = np.array([row["duration_ms"] for row in some], float)
    starts = [row["start_unix_nano"] for row in some]
    longest = np.argsort(-took, kind="stable")[:_EXAMPLES]
    ids = dict.fromkeys(str(some[place]["trace_id"]) for place in longest)
    return Evidence(min(starts), max(starts), float((took - baseline[rows]).mean()), tuple(ids))


def _stages(cases: Cases, strata: Sequence[tuple[str, str]]) -> tuple[tuple[StageShift, ...], Excess]:
    from scipy.special import ndtr

    timed: tuple[list[Timed], list[Timed]] = ([], [])
    for row, stratum, weight, is_bad in zip(cases.rows, strata, cases.weights, cases.breached, strict=True):
        parts = dict(zip(row["stage_names"], row["stage_ms"], strict=True))
        timed[not is_bad].append(Timed(stratum, row["duration_ms"], parts, float(weight)))
    slow, normal = timed
    compared = Compared(slow, normal, mix(slow, normal)[0])
    whole = compared.excess({None: [one.took_ms for one in slow]}, {None: [one.took_ms for one in normal]})[None]
    parts = compared.of_parts()
    chances = benjamini_hochberg([min(1.0, 2 * ndtr(-one.z)) for one in parts.values()])
    found = [
        StageShift(
            stage,
            one.more,
            (one.more - 1.96 * one.error, one.more + 1.96 * one.error),
            one.normal,
            one.more / whole.more if whole.more > 0 else None,
            float(q_value),
        )
        for (stage, one), q_value in zip(parts.items(), chances, strict=True)
        if q_value <= ALPHA and one.sure > 0
    ]
    return tuple(sorted(found, key=lambda one: -one.excess_ms)), whole


def _verdicts(cases: Cases, baseline: Array) -> tuple[VerdictCause, ...]:
    """Return the stages and causes that the verdicts name, the most frequent first."""
    places = np.flatnonzero(cases.breached)
    named = [(cases.rows[place]["stage"], cases.rows[place]["cause"]) for place in places.tolist()]
    made = []
    for key, count in Counter(named).most_common():
        rows = places[[one == key for one in named]]
        if key != (None, None):
            codes = Counter(code for place in rows.tolist() if (code := cases.rows[place]["code"]) is not None)
            code, at_code = codes.most_common(1)[0] if codes else (None, 0)
            of = evidence(cases, rows, baseline)
            made.append(VerdictCause(*key, count, count / len(named), code, at_code, of))
    return tuple(made)


LEAST_WITH_VALUE: Final = 2  # requests that have a value


class Share(NamedTuple):
    """A value, or None where the attribute is absent: the share of either group that has it."""

    value: str | None
    inside: float
    outside: float


@dataclass(frozen=True)
class Profile:
    """One attribute: its values by their difference, greatest first, and how far both groups differ in all."""

    key: str
    shares: tuple[Share, ...]
    distance: float  # half the sum of differences, 0 to 1


def profiles(cases: Cases) -> list[Profile]:
    """Return the attributes of which both groups have different values, the most different ones first."""
    weights = [np.where(side, cases.weights, 0.0) for side in (cases.breached, ~cases.breached)]
    if not all(one.sum() for one in weights):
        return []
    found = []
    for key, column in cases.attributes.items():
        made = coded(column, LEAST_WITH_VALUE)
        if made is None or len(made.values) + made.has_others < 2:  # noqa: PLR2004 -- one value distinguishes nothing
            continue
        size = len(made.values) + 1
        inside, outside = (np.bincount(made.codes, one, size) / one.sum() for one in weights)
        shares = [Share(value, float(inside[place]), float(outside[place])) for place, value in enumerate(made.values)]
        shares.sort(key=lambda one: (-abs(one.inside - one.outside), one.value or ""))
        found.append(Profile(key, tuple(shares), float(np.abs(inside - outside).sum() / 2)))
    return sorted(found, key=lambda one: (-one.distance, one.key))
