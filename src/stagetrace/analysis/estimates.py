"""How many requests there were, out of those that a head sampler kept, and how sure that is."""

from __future__ import annotations

from math import sqrt
from typing import Final, NamedTuple

_QUANTILES: Final = (-1.959963984540054, 1.959963984540054)  # of the normal distribution, at 2.5 and 97.5 %
_OF_TWO: Final = (-2.241402727604947, 2.241402727604947)  # at 1.25 and 98.75 %


class Sample(NamedTuple):
    """What stands for a group of requests. Without sampling it is the group: nothing is estimated."""

    rows: int  # requests that are stored
    is_estimate: bool  # the process sampled: counts are sums of weights
    is_unknown: bool  # nor is it known how: counts are of the sampled requests alone, and nothing can be estimated
    is_counted: bool = False  # counts are the service's own, where `is_estimate` says otherwise but for some


NOTHING: Final = Sample(0, is_estimate=False, is_unknown=False)


OVERFLOW: Final = "otel.metric.overflow"  # stands for the routes of requests beyond the limit of a service's counters


class Counted(NamedTuple):
    """How many requests of a service ended within [since, until), by its own counters.

    Where an objective has counts of OVERFLOW, those of its routes may be too few; their sum is right.
    """

    service: str
    since_ns: int
    until_ns: int
    is_exact: bool  # no edge of it lies between two different values, and no process may report more
    counts: dict[tuple[str, str, str], int]  # by route, objective and verdict


class Attainment(NamedTuple):
    """Which part of the judged requests met their objective, and within what that lies by 95 %.

    Of exact counts the share is the truth about these requests, and the interval one for the chance with which the
    service meets the objective, where it is asked for. Of a sample, both are about these requests.
    """

    value: float
    low: float
    high: float
    is_estimate: bool


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
        return Attainment(value, value, value, is_estimate=False)
    low, high = _interval(good, spread, most)
    value, low, high = (part / (part + breaches) if part + breaches else 1.0 for part in (good, low, high))
    return Attainment(value, min(low, value), max(high, value), is_estimate=True)


class Weighed(NamedTuple):
    """Requests as a sum of weights w, and `spread`, the sum of w (w - 1)."""

    total: float = 0
    spread: float = 0


def attainment_of_both(good: Weighed, breaches: Weighed, kept: float, most: float) -> Attainment | None:
    """Return the attainment where breaches, too, were kept by chance, besides `kept` ones that were all kept.

    The interval holds wherever two do, each with 97.5 %: of the good ones, and of those breaches (Bonferroni). None
    where nothing was judged.
    """
    bad = kept + breaches.total
    if good.total + bad == 0:
        return None
    low, high = _interval(*good, most, _OF_TWO)
    few, many = _interval(*breaches, most, _OF_TWO)
    value = good.total / (good.total + bad)
    least, greatest = (
        one / (one + kept + other) if one + kept + other else value for one, other in ((low, many), (high, few))
    )
    return Attainment(value, min(least, value), max(greatest, value), is_estimate=True)


def _interval(
    total: float, variance: float, most: float, quantiles: tuple[float, float] = _QUANTILES
) -> tuple[float, float]:
    low = total if variance == 0 else variance / (2 * total) * _chi_squared(quantiles[0], 2 * total * total / variance)
    above, wider = total + most, variance + most * most
    return low, wider / (2 * above) * _chi_squared(quantiles[1], 2 * above * above / wider)


def _chi_squared(quantile: float, degrees: float) -> float:
    part = 2 / (9 * degrees)
    return degrees * max(0.0, 1 - part + quantile * sqrt(part)) ** 3
