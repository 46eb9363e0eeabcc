"""Series of the counter `sla.requests`, as any store has them, to counts of requests within a time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from stagetrace.analysis.estimates import OVERFLOW, Counted

LIVE_NS: Final = 150_000_000_000  # a process that has sent nothing for so long while others have has ended


class Series(NamedTuple):
    """What one process counts under one set of attributes, from a start on.

    `key`: service, instance, start (0: of increments), route, objective, verdict, other attributes. `values`: value,
    first and last time at which it was so, in this order.
    """

    key: tuple[str, str, int, str, str, str, str]
    values: list[tuple[int, int, int]]


def counted(every: Sequence[Series], since_ns: int, until_ns: int) -> list[Counted]:
    """Return the counts of each service in a window, out of series by service, as far as their points reach."""
    return [_counts_of(name, list(of), since_ns, until_ns) for name, of in groupby(every, key=lambda one: one.key[0])]


def _counts_of(service: str, every: list[Series], since: int, until: int) -> Counted:
    lasts: dict[tuple[str, int], int] = {}  # by process
    for series in every:
        process = series.key[1], series.key[2]
        lasts[process] = max(series.values[-1][2], lasts.get(process, 0))
    newest = max(lasts.values())
    until = min(until, newest)
    # It may have ended, or may send more: that is not known yet.
    is_exact = not any(last < until and last > newest - LIVE_NS for last in lasts.values())
    since = max(since, min(series.key[2] or series.values[0][1] for series in every))
    counts: dict[tuple[str, str, str], int] = {}
    for series in every:
        points = [(series.key[2], 0)] if series.key[2] else []
        for value, first, last in series.values:
            points += (first, value), (last, value)
        (low, low_is_exact), (high, high_is_exact) = _at(points, since), _at(points, until)
        is_exact = is_exact and low_is_exact and high_is_exact
        route, objective, verdict, rest = series.key[3:]
        of = (OVERFLOW if OVERFLOW in rest else route, objective, verdict)
        counts[of] = counts.get(of, 0) + max(0, round(high - low))
    return Counted(service, since, until, is_exact, counts)


def _at(points: Iterable[tuple[int, int]], time: int) -> tuple[float, bool]:
    """Return the value at a time, in proportion between two points, and whether that is exact."""
    before = None
    for at, value in points:
        if at > time:
            if before is None or before[0] == time or before[1] == value:
                return (0 if before is None else before[1]), True
            part = (time - before[0]) / (at - before[0])
            return before[1] + part * (value - before[1]), False
        before = (at, value)
    return (0, True) if before is None else (before[1], True)
