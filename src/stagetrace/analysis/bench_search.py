"""Which rate to try next, to find the highest that keeps an objective. Pure: `next_rate` of what was tried so far.

First short steps double the rate until the objective is surely broken, then full steps halve the interval, by ratio,
between the highest rate at which it held and the lowest at which it did not. The interval that is returned has only
surely judged ends (`bench.judge_clustered`). That a higher rate does no better is taken for granted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final, NamedTuple

from stagetrace.analysis.bench import BROKEN, KEPT

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
