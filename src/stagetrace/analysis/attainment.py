"""Which share of the judged requests met an objective, how sure that is, and which share is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from stagetrace.analysis import estimates
from stagetrace.analysis.estimates import Attainment, Sample
from stagetrace.policy import quantities
from stagetrace.policy.objective import DEFAULT_TARGET, DEFAULT_WINDOW_S, Calendar, Objective
from stagetrace.policy.policy import Policy

# Service, route and objective -> what the service itself counted of it from a time on, up to the end.
Exact: TypeAlias = "Callable[[int], Mapping[tuple[str, str, str | None], Counts]]"

REDUCTION: Final = "verdicts"
KEYS: Final = ("service", "path", "objective", "target")
EXCLUDED_BY: Final = (
    "by_rule",
    "by_warmup",
    "by_error",
    "by_disconnect",
    "by_others",
)  # of which each request is in one
COLUMNS: Final = (  # of the reduction, which no attribute can be grouped by under the same name
    *("band", "requests", "good", "breaches", "excluded", "spread", "most", "stored", "sampled", "unknown"),
    *("once", *EXCLUDED_BY),
    *("first_unix_nano", "last_unix_nano", "groups"),
)
_TAIL: Final = 0.025  # of a 95 % interval


class Target(NamedTuple):
    """The share of requests that is to meet an objective, in (0, 1], and over how long, a calendar window at most."""

    share: float
    window_s: float
    is_from_policy: bool = True  # False: what is recorded of it cannot be read, and the defaults of rules are taken
    calendar: Calendar | None = None

    @property
    def budget(self) -> float:
        """Return the share that may be breaches."""
        return 1 - self.share


@lru_cache(maxsize=4096)
def target_of(objective: str | None, target: str | None) -> Target:
    """Return the target of an objective by `target`, which entry spans carry if it is not 99 % over 28 days."""
    try:
        read = quantities.target(target or "")
    except ValueError:
        return Target(DEFAULT_TARGET, DEFAULT_WINDOW_S, is_from_policy=False)
    return Target(read.share, read.window.length_s, objective is not None, read.window.calendar)


class Wanted(NamedTuple):
    """What a policy says of the objective with this name, and whether it has one; without a policy that is None."""

    target: Target
    text: str | None  # as entry spans carry it
    description: str = ""
    is_in_policy: bool | None = None


def named(policy: Policy | None) -> Mapping[str, Objective] | None:
    """Return the objectives of a policy by their names."""
    return None if policy is None else {one.name: one for one in policy.objectives}


def wanted(known: Mapping[str, Objective] | None, objective: str | None, text: str | None) -> Wanted:
    """Return what is wanted of an objective: by the policy whose objectives are `known`, else as it was recorded."""
    own = (known or {}).get(objective or "")
    if own is None:
        return Wanted(target_of(objective, text), text, is_in_policy=None if known is None else False)
    target = Target(own.target, own.window_s, calendar=own.calendar)
    return Wanted(target, None if own.has_default_target else own.target_text, own.description, is_in_policy=True)


def unused(known: Mapping[str, Objective] | None, recorded: Iterable[str | None]) -> tuple[str, ...]:
    """Return the objectives of a policy that no request was recorded under, those that exclude requests aside."""
    names = set(recorded)
    return tuple(name for name, one in (known or {}).items() if not one.excludes and name not in names)


class Counts(NamedTuple):
    """The outcomes of some requests, as sums of weights: how many requests each stored one stands for.

    `spread` is the sum of w (w - 1) over the good ones, `most` the greatest weight that one can have.
    """

    requests: float = 0
    good: float = 0
    breaches: float = 0
    excluded: float = 0
    spread: float = 0
    most: float = 1
    stored: int = 0
    is_sampled: bool = False
    is_unknown: bool = False  # how they were sampled
    is_counted: bool = False  # by the service itself, before it sampled

    @property
    def judged(self) -> float:
        """Return how many were judged."""
        return self.good + self.breaches

    @property
    def sample(self) -> Sample:
        """Return the sample that the counts are made of."""
        return Sample(self.stored, is_estimate=self.is_sampled, is_unknown=self.is_unknown)


def counts(rows: Iterable[Mapping[str, Any]]) -> Counts:
    """Return the sum of rows of the reduction `verdicts`."""
    found = list(rows)

    def total(name: str) -> float:
        return float(sum(row[name] for row in found))

    is_sampled = any(row["sampled"] for row in found)
    most = max((row["most"] for row in found), default=1)
    return Counts(
        total("requests"),
        total("good"),
        total("breaches"),
        total("excluded"),
        total("spread"),
        most,
        int(total("stored")),
        is_sampled,
        is_sampled and (most <= 1 or any(row["unknown"] for row in found)),
    )


def attained(found: Counts) -> Attainment | None:
    """Return the attainment, of exact counts with the interval of Clopper and Pearson (1934).

    None where nothing was judged, or where the sampling leaves it unknown.
    """
    if found.is_unknown or found.judged == 0:
        return None
    if found.is_sampled and found.most > 1:
        return estimates.attainment(found.sample, found.good, found.spread, found.most, found.breaches)
    good, breaches = round(found.good), round(found.breaches)
    return Attainment(good / (good + breaches), *exact_interval(good, good + breaches), is_estimate=False)


def exact_interval(good: int, judged: int) -> tuple[float, float]:
    """Return the 95 % interval of a probability by Clopper and Pearson; `judged` is 1 or more."""
    from scipy.special import betaincinv

    low = 0.0 if good == 0 else float(betaincinv(good, judged - good + 1, _TAIL))
    high = 1.0 if good == judged else float(betaincinv(good + 1, judged - good, 1 - _TAIL))
    return low, high


def is_missed(found: Attainment | None, target: Target) -> bool | None:
    """Return whether fewer met the objective than wanted; None where that is unknown, or the sample leaves it open."""
    if found is None:
        return None
    if not found.is_estimate:
        return found.value < target.share
    return True if found.high < target.share else False if found.low >= target.share else None


def budget_left(value: float, target: Target) -> float | None:
    """Return which part of the error budget is left, negative where more was spent; None where none was allowed."""
    return None if target.budget <= 0 else 1 - (1 - value) / target.budget
