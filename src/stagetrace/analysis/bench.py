"""Whether an objective is kept under load, and whether the run is long enough. Early stopping as in MLPerf's LoadGen.

A request is over if its latency is above the limit, or if it failed: a failed request is slower than any other. With n
requests of which t are over, an objective "percentile p at most L" is kept with confidence c if so few would be over
with a probability below 1 - c though a share of 1 - p or more is over in truth: P(Binomial(n, 1 - p) <= t) < 1 - c.
Source: MLPerf Inference, "Early stopping criterion"; `loadgen/early_stopping.cc` of mlcommons/inference. The binomial
takes requests for independent, which those that wait in one queue are not: `judge_clustered` counts these as fewer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, sqrt
from typing import Final, NamedTuple

import numpy as np
from scipy.special import bdtr, bdtrc
from scipy.stats import kendalltau

from stagetrace.analysis.arrays import Floats
from stagetrace.analysis.bench_objective import Objective, name_of

CONFIDENCE: Final = 0.99
QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 0.999)

KEPT: Final = "kept"
BROKEN: Final = "broken"
UNDECIDED: Final = "undecided"  # too few requests for either

_LATE_SHARE: Final = 0.5  # of the latency at the percentile
_LATE_LEAST_MS: Final = 1.0  # lateness below this never makes a run invalid
_LATE_PERCENTILE: Final = 0.99

_PARTS: Final = 8
_GREW: Final = 0.1  # of the limit
_BY_CHANCE: Final = 0.01


def needed_queries(percentile: float, confidence: float = CONFIDENCE, over: int = 0) -> int:
    """Return how many requests show with this confidence that the percentile is kept, if `over` of them are over it.

    `needed_queries(0.99)` is 459: so many requests of which none is over. LoadGen's count, h + t, is the same.

    Raises:
        ValueError: if percentile or confidence is not within (0, 1), or `over` is negative.
    """
    _check(percentile, confidence)
    if over < 0:
        raise ValueError(f"{over} requests cannot be over")

    def is_enough(count: int) -> bool:
        return bool(bdtr(over, count, 1 - percentile) < 1 - confidence)

    most = 2 * (over + 1)
    while not is_enough(most):
        most *= 2
    return bisect_left(range(most), x=True, lo=over + 1, key=is_enough)


def most_over(requests: int, percentile: float, confidence: float = CONFIDENCE) -> int | None:
    """Return how many of so many requests may be over for the percentile to be kept; None if not even 0 are enough."""
    _check(percentile, confidence)

    def is_too_many(over: int) -> bool:
        return not bdtr(over, requests, 1 - percentile) < 1 - confidence

    first = bisect_left(range(requests), x=True, key=is_too_many)
    return first - 1 if first else None


def least_over(requests: int, percentile: float, confidence: float = CONFIDENCE) -> int:
    """Return how many of so many requests must be over for the percentile to be surely broken; requests + 1 if none.

    So many would be over with a probability below 1 - confidence though the percentile is kept.
    """
    _check(percentile, confidence)

    def is_enough(over: int) -> bool:
        return bool(bdtrc(over - 1, requests, 1 - percentile) < 1 - confidence)

    return bisect_left(range(requests + 1), x=True, lo=1, key=is_enough)


def judge(requests: int, over: int, percentile: float, confidence: float = CONFIDENCE) -> str:
    """Return KEPT, BROKEN or UNDECIDED of so many requests, `over` of which are over the objective's limit."""
    most = most_over(requests, percentile, confidence)
    if most is not None and over <= most:
        return KEPT
    return BROKEN if over >= least_over(requests, percentile, confidence) else UNDECIDED


def judge_clustered(latency_ms: Floats, over: int, percentile: float) -> str:
    """Return as `judge` what requests, in the order of their starts, surely show, though slow ones come in clusters.

    Requests that wait in one queue are slow together, so that they count as fewer. The share of clusters among slow
    requests, the extremal index, is estimated by their runs above the percentile, as a share of what independent ones
    have (Smith and Weissman, 1994); the variance of a compound Poisson sum with clusters of geometric size follows.
    """
    if not len(latency_ms):
        return UNDECIDED
    slow = latency_ms > np.sort(latency_ms)[ceil(percentile * len(latency_ms)) - 1]
    count = int(slow.sum())
    share = 1.0
    if count > 1:
        runs = int(slow[0]) + int((slow[1:] & ~slow[:-1]).sum())
        index = min(1.0, runs / count / percentile)
        share = index / (2 - index)
    requests, fewer = len(latency_ms) * share, over * share
    if judge(floor(requests), ceil(fewer), percentile) == KEPT:
        return KEPT
    return BROKEN if judge(max(1, ceil(requests)), floor(fewer), percentile) == BROKEN else UNDECIDED


def _check(percentile: float, confidence: float) -> None:
    for what, value in (("percentile", percentile), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"the {what} {value} is not between 0 and 1: p99 is 0.99")


def quantile(ordered: Floats, percentile: float) -> float | None:
    """Return the least value that a share of `percentile` does not exceed, of ascending values; None if it failed.

    Failed requests are infinite in `ordered`. None, too, where there are no values.
    """
    if not len(ordered):
        return None
    found = float(ordered[max(0, ceil(round(percentile * len(ordered), 9)) - 1)])
    return found if isfinite(found) else None


def at_most(ordered: Floats, percentile: float, confidence: float = CONFIDENCE) -> float | None:
    """Return the upper bound of the percentile, with this confidence: the early-stopping estimate; None if unknown.

    It is the greatest of ascending values after as many as may be over are discarded.
    """
    over = most_over(len(ordered), percentile, confidence)
    if over is None:
        return None
    found = float(ordered[len(ordered) - 1 - over])
    return found if isfinite(found) else None


@dataclass(frozen=True)
class Step:
    """The result at one rate. Latencies count from the intended start; failed requests count as infinite."""

    rate: float  # requests per second, as planned
    achieved_rate: float | None  # answered requests per second, from the first intended start to the last response
    requests: int
    failures: Mapping[str, int]  # reason -> how many
    quantiles_ms: Mapping[str, float | None]  # observed
    at_most_ms: Mapping[str, float | None]  # upper bounds by early stopping
    mean_ms: float | None  # of the answered ones
    max_ms: float | None
    late_ms: float | None  # p99 of the delay of sends
    over: int | None  # above the objective's limit, or failed; None without an objective
    verdict: str | None  # KEPT, BROKEN or UNDECIDED; None without an objective
    sure: str | None  # the verdict, if slow requests that come in clusters count as fewer (`judge_clustered`)
    needed: int  # how many requests would be enough, with as many over
    valid: bool
    reasons: tuple[str, ...]  # why it is not valid
    is_late: bool = False  # the load generator could not keep up
    is_growing: bool = False  # latency grew all the while: this rate is not sustained, whatever the quantiles are yet

    @property
    def failed(self) -> int:
        """Return how many requests failed."""
        return sum(self.failures.values())


class Sends(NamedTuple):
    """The outcomes of the requests of one rate, in the order of their intended starts; all arrays are of one length."""

    due_s: Floats
    latency_ms: Floats  # from the intended start; infinite if it failed
    late_ms: Floats  # by how much it was sent later than intended
    failures: Mapping[str, int]


def step(sends: Sends, rate: float, objective: Objective | None, percentile: float = 0.99) -> Step:
    """Return the result of the requests of one rate; `percentile` is the one to establish without an objective."""
    count = len(sends.latency_ms)
    ordered = np.sort(sends.latency_ms)
    answered = ordered[np.isfinite(ordered)]
    if objective is not None:
        percentile = objective.percentile
    over = None if objective is None else int((ordered > objective.limit_ms).sum())
    asked = sorted({*QUANTILES, percentile})
    late = quantile(np.sort(sends.late_ms), _LATE_PERCENTILE)
    needed = needed_queries(percentile, over=over or 0)
    verdict = None if over is None else judge(count, over, percentile)
    lateness = _too_late(sends, late, quantile(ordered, percentile), objective, verdict)
    growth = _growing(sends.latency_ms, objective)
    reasons = [*lateness, *(growth if verdict != BROKEN else ()), *_too_few(count, needed, verdict)]
    if count and not len(answered):
        reasons.append("no request was answered as expected")
    return Step(
        rate,
        _achieved(sends),
        count,
        dict(sends.failures),
        {name_of(one): quantile(ordered, one) for one in asked},
        {name_of(one): at_most(ordered, one) for one in asked},
        float(answered.mean()) if len(answered) else None,
        float(answered[-1]) if len(answered) else None,
        late,
        over,
        verdict,
        # Of a backlog that grows, all that is slow is one cluster: it is sure in another way.
        BROKEN if verdict == BROKEN and growth else _sure(sends, over, percentile),
        needed,
        not reasons,
        tuple(reasons),
        bool(lateness),
        bool(growth),
    )


def _sure(sends: Sends, over: int | None, percentile: float) -> str | None:
    return None if over is None else judge_clustered(sends.latency_ms, over, percentile)


def _achieved(sends: Sends) -> float | None:
    answered = np.isfinite(sends.latency_ms)
    if not answered.any():
        return None
    ends = sends.due_s[answered] + sends.latency_ms[answered] / 1e3
    gaps = np.diff(sends.due_s)
    # The last request stands for the time until the next would have been due, too.
    last = max(float(ends.max()), float(sends.due_s[-1] + (gaps.mean() if len(gaps) else 0)))
    seconds = last - float(sends.due_s[0])
    return float(answered.sum() / seconds) if seconds > 0 else None


def _too_late(
    sends: Sends, late_ms: float | None, latency_ms: float | None, objective: Objective | None, verdict: str | None
) -> list[str]:
    """Return why the load generator may have made the result; nothing where it did not.

    That is where a verdict changes as each request's own lateness is taken off its latency, or where a hundredth of the
    requests was later than the limit. Without an objective: where lateness is half of the latency or more.
    """
    if late_ms is None or late_ms <= _LATE_LEAST_MS:
        return []
    if objective is None:
        is_late = latency_ms is not None and late_ms >= _LATE_SHARE * latency_ms
    else:
        over = int((sends.latency_ms - sends.late_ms > objective.limit_ms).sum())
        is_late = late_ms > objective.limit_ms or verdict != judge(len(sends.late_ms), over, objective.percentile)
    text = f"the load generator was late: 1 % of the requests were sent {late_ms:.1f} ms or more after they were due"
    return [text] if is_late else []


def _growing(latency_ms: Floats, objective: Objective | None) -> list[str]:
    """Return by how much latency grew, if it did all the while: the backlog of a service that cannot keep up.

    Kendall's rank correlation of the medians of eighths with time, at 1 %. Near saturation queues also grow by chance
    for a while, so this finds too many rates not sustained there, and never too few.
    """
    if len(latency_ms) < 4 * _PARTS:
        return []
    medians = np.array([np.median(part) for part in np.array_split(latency_ms, _PARTS)])
    first, last = float(medians[0]), float(medians[-1])
    material = first if objective is None else _GREW * objective.limit_ms
    if not last - first > material or kendalltau(range(_PARTS), medians, alternative="greater").pvalue >= _BY_CHANCE:
        return []
    until = f"{last:.1f} ms" if isfinite(last) else "failures"
    return [f"latency grew all the while, from {first:.1f} ms to {until}: the service does not sustain this rate"]


def _too_few(count: int, needed: int, verdict: str | None) -> list[str]:
    if verdict == UNDECIDED or (verdict is None and count < needed):
        return [f"{count} requests are too few: {needed} would be enough, if no more of them are over"]
    return []


# --- Which rate to try next, to find the highest that keeps an objective. Pure: `next_rate` of what was tried so far.
#
# First short steps double the rate until the objective is surely broken, then full steps halve the interval, by ratio,
# between the highest rate at which it held and the lowest at which it did not. The interval that is returned has only
# surely judged ends (`bench.judge_clustered`). That a higher rate does no better is taken for granted.

_DOWN: Final = 4  # how often a rate is halved before the search ends without a rate
_LEAST_RATIO: Final = 1.02
_BESIDE: Final = 3  # rates below the highest that held, or above the lowest that did not, until one is sure
_APART: Final = 1.25


class Tried(NamedTuple):
    """A rate that was tried: how many requests it had, how many were over, and the verdict."""

    rate: float
    requests: int
    over: int
    verdict: str
    sure: str  # the same, where slow requests that come in clusters count as fewer
    full: bool  # as many requests as are needed, not a short step
    grew: bool = False  # the backlog grew: it is not kept for long, though it was


class Next(NamedTuple):
    """A rate to try, in a full step or a short one."""

    rate: float
    full: bool


@dataclass(frozen=True)
class Found:
    """The highest rate that held, and between which it lies surely; None: not known (no rate held, or none broke)."""

    rate: float | None
    low: float | None  # the highest rate at which the objective was surely kept
    high: float | None  # the lowest at which it was surely broken


@dataclass(frozen=True)
class Search:
    """Searches for the highest rate, from `start` on, until the interval's ends differ by less than `ratio`."""

    percentile: float
    start: float
    ratio: float = 1.1
    most: float | None = None  # no rate above this is tried

    def next_rate(self, tried: Sequence[Tried]) -> Next | None:
        """Return the next rate to try; None if the result is known well enough."""
        low, high = self._bracket(tried)
        if high is None:
            return self._up(tried, low)
        if low is None:
            lowest = min(one.rate for one in tried)
            return Next(lowest / 2, full=True) if lowest > self.start / 2**_DOWN else None
        if high / low > max(self.ratio, _LEAST_RATIO):
            return Next(sqrt(low * high), full=True)
        if not any(one.full for one in tried if one.rate == low):
            return Next(low, full=True)
        return self._beside(tried, low, high)

    def _beside(self, tried: Sequence[Tried], low: float, high: float) -> Next | None:
        """Return a rate somewhat below or above, where that of the interval's ends is not sure."""
        below = [one.rate for one in tried if one.full and one.rate <= low]
        if not any(_is_kept(one) for one in tried if one.rate <= low) and len(below) <= _BESIDE:
            return Next(min(below) / _APART, full=True)
        above = [one.rate for one in tried if one.full and one.rate >= high]
        if not any(one.sure == BROKEN for one in tried) and len(above) < _BESIDE:
            return Next(max(above) * _APART if above else high, full=True)
        return None

    def result(self, tried: Sequence[Tried]) -> Found:
        """Return the result so far."""
        low, _ = self._bracket(tried)
        broken = [one.rate for one in tried if one.sure == BROKEN]
        surely_high = min(broken, default=None)
        kept = [one.rate for one in tried if _is_kept(one) and (surely_high is None or one.rate < surely_high)]
        full = [one.rate for one in tried if one.full and low is not None and one.rate <= low and self._held(one)]
        return Found(max(full, default=None), max(kept, default=None), surely_high)

    def _up(self, tried: Sequence[Tried], low: float | None) -> Next | None:
        if low is None:
            return Next(self.start, full=False)
        if self.most is not None and low >= self.most:
            done = any(one.full for one in tried if one.rate == low)
            return None if done else Next(low, full=True)
        return Next(low * 2 if self.most is None else min(low * 2, self.most), full=False)

    def _bracket(self, tried: Sequence[Tried]) -> tuple[float | None, float | None]:
        """Return the highest rate that held below the lowest one that did not, and that; short steps that held too."""
        high = min((one.rate for one in tried if not self._held(one)), default=None)
        return max((one.rate for one in tried if high is None or one.rate < high), default=None), high

    def _held(self, one: Tried) -> bool:
        """Return whether a step held: a short one unless it is surely broken, a full one by its observed share."""
        if one.verdict == BROKEN or one.grew:
            return False
        return not one.full or one.over <= (1 - self.percentile) * one.requests


def _is_kept(one: Tried) -> bool:
    return one.sure == KEPT and not one.grew


# --- Where the time lies of requests that were over the limit: in which stage of the server, or outside it.
#
# The excess of a request is its latency above the limit. It is shared among the parts of the latency in proportion to
# how much longer each took than it typically takes: than its median in the requests within the limit or, where these
# are fewer than 20, than the least tenth of all.

GENERATOR: Final = "generator"  # from when a request was due until it was sent
OUTSIDE: Final = "outside"  # sent, and not in the server's entry span: network, connecting, waiting to be accepted
_TYPICAL: Final = 20


@dataclass(frozen=True)
class Excess:
    """How the excess divides among parts: stages, OUTSIDE and GENERATOR; greatest share first, shares add up to 1."""

    over: int  # requests above the limit whose server spans are known
    total_ms: float
    shares: Mapping[str, float]


def parts_of(
    latency_ms: Floats, late_ms: Floats, server_ms: Floats, stages_ms: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Return each part of the latencies, in ms. Stages that a request lacks are 0, as are negative parts."""
    outside = np.maximum(0.0, latency_ms - late_ms - server_ms)
    parts = {GENERATOR: np.maximum(0.0, late_ms), OUTSIDE: outside}
    return {**{stage: np.nan_to_num(values, nan=0.0) for stage, values in stages_ms.items()}, **parts}


def excess(latency_ms: Floats, parts: Mapping[str, Floats], limit_ms: float) -> Excess | None:
    """Return where the excess of answered requests lies; None where none is above the limit or no part is longer."""
    over = latency_ms > limit_ms
    if not over.any():
        return None
    more = {}
    for part, values in parts.items():
        within = values[~over]
        typical = np.median(within) if len(within) >= _TYPICAL else np.quantile(values, 0.1)
        more[part] = np.maximum(0.0, values[over] - typical)
    longer = np.sum(list(more.values()), axis=0)
    beyond = latency_ms[over] - limit_ms
    known = longer > 0
    total = float(beyond[known].sum())
    if total <= 0:
        return None
    shares = {
        part: float((beyond[known] * values[known] / longer[known]).sum() / total) for part, values in more.items()
    }
    ranked = sorted(((part, share) for part, share in shares.items() if share > 0), key=lambda one: (-one[1], one[0]))
    return Excess(int(over.sum()), total, dict(ranked))
