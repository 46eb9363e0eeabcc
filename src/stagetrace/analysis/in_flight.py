"""Requests in flight by bucket of time, and the levels of load that a service was at.

Per bucket, requests in flight are the time that all requests spent in it, divided by its width: exactly the time
average, whatever the arrivals (Little, Operations Research 9, 1961). Throughput is what was completed in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from stagetrace.analysis import usl
from stagetrace.analysis.arrays import Floats, Indices

if TYPE_CHECKING:
    from stagetrace.analysis.source import Source

SECOND: Final = 10**9
# Widths of buckets, s.
_WIDTHS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
_FEWEST_BUCKETS: Final = 60
_MOST_BUCKETS: Final = 2000  # with requests in them
_PER_BUCKET: Final = 200  # requests, so that chance is some percent of a rate
_MOST_ROWS: Final = 50_000
_LONGEST: Final = 2_000_000  # buckets in all, empty ones too
_DURATIONS: Final = 10  # a bucket is so many of the quickest requests wide: few of them lie in two
_PER_LEVEL: Final = 3  # buckets
_MANY: Final = 30  # buckets from which on levels need several
_CHANCE: Final = 2.5  # levels differ by so many times what half of their buckets are off, in logarithms
_NEIGHBOURS: Final = 2  # buckets on either side that predict the load of one


class Level(NamedTuple):
    """Results of one instance while so many requests were in flight; shares are None where nothing was judged."""

    in_flight: float
    per_s: float
    waiting: float  # of these, in stage `queue`, as those were that were completed
    seconds: float  # how long that was, over all instances
    requests: float  # completed meanwhile
    buckets: int
    spread_per_s: float  # standard deviation of the throughput between buckets, less what chance is to it
    noise: float  # by how much half of the buckets are off the load of their neighbours, in logarithms
    within: float | None  # share of them that took no longer than the bound asked about
    good: float | None  # share of those judged that met the objective


@dataclass(frozen=True)
class Buckets:
    """The results in consecutive buckets of time."""

    in_flight: Floats
    done: Floats
    whole_ms: Floats  # duration of the requests completed
    queue_ms: Floats  # of these, in that stage
    inference_ms: Floats
    within: Floats
    judged: Floats
    breaches: Floats
    cpu_ms: Floats  # of the processes


def buckets(rows: Iterable[dict[str, Any]], first: int, count: int, width_ns: int) -> Buckets:
    """Return rows of `in_flight` by bucket, `count` of them from number `first` on."""
    area, passing = np.zeros(count), np.zeros(count + 1)
    columns = ("requests", "whole_ms", "queue_ms", "inference_ms", "within", "judged", "breaches", "cpu_ms")
    sums = np.zeros((len(columns), count))
    for row in rows:
        begin, end = row["first"] - first, row["last"] - first
        if begin == end:
            area[begin] += row["end_ns"] - row["start_ns"]
        else:
            area[begin] += row["requests"] * width_ns - row["start_ns"]
            area[end] += row["end_ns"]
            passing[begin + 1] += row["requests"] * width_ns
            passing[end] -= row["requests"] * width_ns
        sums[:, end] += [row[column] for column in columns]
    # A difference of sums of fractions may miss nothing by a rounding.
    area = np.maximum(area + np.cumsum(passing)[:-1], 0)
    return Buckets(np.where(area < 1e-9 * width_ns, 0, area) / width_ns, *sums)


def rows_of(
    source: Source, service: str, work: list[dict[str, Any]], within_ms: float
) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of `in_flight`, and their width, s: so wide that there are neither too many buckets nor too few.

    Buckets without requests are no rows, so where most are, narrower ones are asked for.
    """
    since, until = min(row["first_ns"] for row in work), max(row["last_ns"] for row in work)
    seconds = (until - since) / SECOND
    lifetimes = sum(row["last_ns"] - row["first_ns"] for row in work) / SECOND
    quick = min((row["quantiles_ms"][0] for row in work if row["requests"]), default=0) / 1e3
    least = max(_WIDTHS[0], _DURATIONS * quick, lifetimes / _MOST_ROWS, seconds / _LONGEST)
    wanted = min(_MOST_BUCKETS, max(_FEWEST_BUCKETS, sum(row["requests"] for row in work) / _PER_BUCKET))
    width, before, rows = _width(max(least, seconds / wanted)), 0.0, []
    while width != before:
        width_ns = round(width * SECOND)
        rows = source.reduce("in_flight", service=service, width=width_ns, within_ms=float(within_ms))
        busy = len({row["last"] for row in rows}) * width
        before, width = width, min(width, _width(max(least, busy / wanted)))
    return rows, width


def _width(seconds: float) -> float:
    return next((width for width in _WIDTHS if width >= seconds), float(_WIDTHS[-1] * ceil(seconds / _WIDTHS[-1])))


def levels_of(total: Buckets, active: Floats, width: float, work: list[dict[str, Any]]) -> tuple[Level, ...]:
    """Return the levels of load of one instance.

    The ends of the time are left out: requests are missing there that began before, or were not over.
    """
    long = max(row["quantiles_ms"][2] for row in work if row["requests"]) / 1e3
    count = len(active)
    ends = min(1 + ceil(long / width), max(1, count // 10)) if count > 2 else 0  # noqa: PLR2004 -- something must be left
    inner = slice(ends, count - ends)
    each = np.where(active > 0, total.in_flight / np.maximum(active, 1), 0)
    some = np.flatnonzero((each > 0)[inner]) + ends
    return levels(total, active, some, around(each), width)


def around(load: Floats) -> Floats:
    """Return the mean load of the buckets before and after each, itself left out.

    Buckets that are chosen by their own load are chosen by what chance adds to it, and to their throughput it adds
    nothing: any service would seem to have a limit. What chance adds to their neighbours is another thing (the method
    of instrumental variables; Wald, Annals of Mathematical Statistics 11, 1940).
    """
    kernel = np.ones(2 * _NEIGHBOURS + 1)
    kernel[_NEIGHBOURS] = 0
    if len(load) < len(kernel):
        return load
    padded = np.pad(load, _NEIGHBOURS, mode="reflect")
    return np.asarray(np.convolve(padded, kernel, "valid") / kernel.sum())


def levels(total: Buckets, active: Floats, some: Indices, by: Floats, width_s: float) -> tuple[Level, ...]:
    """Return `some` of the buckets as levels of load of one of the `active` instances, by the load that `by` gives."""
    if not len(some):
        return ()
    order = some[np.argsort(by[some], kind="stable")]
    load = np.log(np.maximum(by[order], 1e-9))
    apart = np.abs(np.log(np.maximum(total.in_flight[order] / active[order], 1e-9)) - load)
    starts = _starts(load, apart)
    made = []
    for begin, end in pairwise([*starts, len(load)]):
        at = order[begin:end]
        sums = {key: float(getattr(total, key)[at].sum()) for key in Buckets.__annotations__}
        running = float(active[at].sum())
        made.append(
            Level(
                in_flight=sums["in_flight"] / running,
                per_s=sums["done"] / (running * width_s),
                waiting=sums["queue_ms"] / 1e3 / (running * width_s),
                seconds=running * width_s,
                requests=sums["done"],
                buckets=len(at),
                spread_per_s=_spread(total.done[at] / active[at] / width_s, sums["done"] / running / width_s, width_s),
                noise=float(np.median(apart[begin:end])),
                within=sums["within"] / sums["done"] if sums["done"] else None,
                good=1 - sums["breaches"] / sums["judged"] if sums["judged"] else None,
            )
        )
    return tuple(sorted(made, key=lambda one: one.in_flight))


def _starts(load: Floats, apart: Floats) -> list[int]:
    """Return where levels begin in sorted logarithms of load: so far from each other as is more than chance.

    `apart`: by how much each bucket is off the load of its neighbours. The remaining buckets join the last level.
    """
    least = (load[-1] - load[0]) / usl.MOST_LEVELS
    fewest = _PER_LEVEL if len(load) >= _MANY else 1
    starts = [0]
    for place in range(1, len(load)):
        chance = _CHANCE * float(np.median(apart[starts[-1] : place + 1]))
        if place - starts[-1] >= fewest and load[place] - load[starts[-1]] > max(least, chance):
            starts.append(place)
    if len(starts) > 1 and len(load) - starts[-1] < fewest:
        starts.pop()
    return starts


def _spread(rates: Floats, mean: float, width_s: float) -> float:
    """Return the standard deviation of rates, less that of random arrivals."""
    return float(max(0.0, ((rates - mean) ** 2).mean() - mean / width_s) ** 0.5)
