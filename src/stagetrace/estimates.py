"""How many requests there were, out of those that a head sampler kept, and how sure that is."""

from __future__ import annotations

from math import sqrt
from typing import Final, NamedTuple

_QUANTILES: Final = (-1.959963984540054, 1.959963984540054)  # of the normal distribution, at 2.5 and 97.5 %


class Sample(NamedTuple):
    """What stands for a group of requests. Without sampling it is the group: nothing is estimated."""

    rows: int  # requests that are stored
    is_estimate: bool  # the process sampled: counts are sums of weights
    is_unknown: bool  # nor is it known how: counts are of the sampled requests alone, and nothing can be estimated
    is_counted: bool = False  # counts are the service's own, where `is_estimate` says otherwise but for some


NOTHING: Final = Sample(0, is_estimate=False, is_unknown=False)


class Counted(NamedTuple):
    """How many requests of a service ended within [since, until), by its own counters."""

    service: str
    since_ns: int
    until_ns: int
    is_exact: bool  # no edge of it lies between two different values, and no process may report more
    counts: dict[tuple[str, str, str], int]  # by route, objective and verdict


class Attainment(NamedTuple):
    """Which part of the judged requests met their objective, and within what that lies by 95 %."""

    value: float
    low: float
    high: float


def attainment(sample: Sample, good: float, spread: float, most: float, breaches: float) -> Attainment | None:
    """Return the attainment; None where nothing was judged, or where the sampling does not let it be told.

    `good` is the sum of the weights w of requests that met their objective, `spread` of w (w - 1), the variance of that
    sum (Horvitz and Thompson), `most` the greatest weight that one can have. Breaches are all there, so all that is
    estimated is `good`. Its interval is Fay and Feuer's of weighted counts (1997), with chi-squared quantiles by
    Wilson and Hilferty (1931).
    """
    if sample.is_unknown or (good + breaches == 0 and most <= 1):
        return None
    if not sample.is_estimate or most <= 1:
        value = good / (good + breaches)
        return Attainment(value, value, value)
    low, high = _interval(good, spread, most)
    value, low, high = (part / (part + breaches) if part + breaches else 1.0 for part in (good, low, high))
    return Attainment(value, min(low, value), max(high, value))


def _interval(total: float, variance: float, most: float) -> tuple[float, float]:
    low = total if variance == 0 else variance / (2 * total) * _chi_squared(0, 2 * total * total / variance)
    above, wider = total + most, variance + most * most
    return low, wider / (2 * above) * _chi_squared(1, 2 * above * above / wider)


def _chi_squared(which: int, degrees: float) -> float:
    part = 2 / (9 * degrees)
    return degrees * max(0.0, 1 - part + _QUANTILES[which] * sqrt(part)) ** 3
