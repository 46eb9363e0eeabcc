"""How throughput depends on concurrency: requests in flight, levels of load, and two laws fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stagetrace.analysis.arrays import Floats, Indices

if TYPE_CHECKING:
    from stagetrace.analysis.base import Source

# --- How throughput depends on concurrency: two laws fitted to measured points, with intervals or the reason for none.
#
# The Universal Scalability Law (Gunther, Guerrilla Capacity Planning, 2007) has a peak beyond which throughput falls:
# X(N) = lambda N / (1 + sigma (N - 1) + kappa N (N - 1)). The law of a limit levels off, as a pool of threads does:
# X(N) = limit r / (1 + r^p)^(1/p) with r = N / knee; p = 1 is the M/M/1 queue, p without end the asymptotic bounds of
# Denning and Buzen (1978), min(N / R, limit). Both are fitted by least squares, as R's `usl` and usl4j do it. In both,
# one parameter is linear, so the other two span a plane on which the sum of squares is looked at as a whole: no start
# value decides, and the region within F(1, n - 3) of the least one (profile likelihood; Bates and Watts, Nonlinear
# Regression Analysis, 1988) gives the interval of knee and peak, without end where the data show none.

Points = Sequence[float] | Floats

FEWEST_LOADS: Final = 6
MOST_LEVELS: Final = 40  # more points are averaged to so many levels of load
_ALIKE: Final = 0.02  # loads that differ by less are one
_NARROWEST: Final = 2.0  # greatest over least load, below which all is one load
_NEAR: Final = 0.75  # share of the peak that must have been seen for it to be known, and of the knee's concurrency
_GROWING: Final = 0.2  # nor is it known where 1 % more in flight gave more than so many % more throughput to the end
_BEYOND: Final = 1.6  # nor is a peak known that may lie so many times above what was seen
_NOISE: Final = 1e-3  # of the greatest throughput: no measurement is better
_FAR: Final = 1e3  # of the greatest load: a knee there is none
_PLANE: Final = (160, 60)
_PAST: Final = 1.5  # times the knee of a limit up to which there must be load for the limit to be known
USL: Final = "usl"
LIMIT: Final = "limit"


class Interval(NamedTuple):
    """Where a value lies by 95 %; None: no end."""

    low: float
    high: float | None


@dataclass(frozen=True)
class Fit:
    """A law of throughput over concurrency. A value that the data do not show is None, with a `reason`.

    `knee` is in requests in flight: of the USL where the peak is, of a limit where its asymptotes cross. Parameters of
    the other law are None. `points` are the levels of load that were fitted, `ignored` the measurements that are none.
    """

    law: str | None = None
    knee: float | None = None
    peak_per_s: float | None = None
    knee_interval: Interval | None = None
    interval: Interval | None = None  # of the peak
    identifiable: bool = False
    reason: str | None = None
    lambda_per_s: float | None = None
    sigma: float | None = None
    kappa: float | None = None
    sharpness: float | None = None  # p of the law of a limit
    limit_per_s: float | None = None
    saturation: float | None = None  # requests in flight at which the peak would be reached, did none wait for another
    points: tuple[tuple[float, float], ...] = ()
    ignored: int = 0

    def throughput(self, concurrency: Points) -> list[float]:
        """Return the throughput by the law at these numbers of requests in flight; nothing where none was fitted."""
        load = np.asarray(concurrency, float)
        if self.law == USL and self.lambda_per_s is not None:
            shape = load / (1 + (self.sigma or 0) * (load - 1) + (self.kappa or 0) * load * (load - 1))
            return [float(one) for one in self.lambda_per_s * shape]
        if self.law == LIMIT and self.limit_per_s is not None:
            return [float(one) for one in self.limit_per_s * _limit(load, self.saturation, self.sharpness)]
        return []


def fit(
    concurrency: Points,
    throughput: Points,
    weights: Sequence[float] | None = None,
    error: float = _NOISE,
    laws: Sequence[str] = (USL, LIMIT),
) -> Fit:
    """Return the USL, or the law of a limit where that explains the points so much better that chance does not.

    Points in any order; negative, infinite and NaN ones are ignored. Parameters are those of least squares wherever six
    loads are there, `knee` and `peak_per_s` only where the data show them. `error`: of a point at least, as a share of
    the greatest throughput. Both laws have three parameters. Where the points allow for both, the interval of the peak
    is that of either.
    """
    load, rate = np.asarray(concurrency, float).ravel(), np.asarray(throughput, float).ravel()
    if len(load) != len(rate):
        raise ValueError(f"{len(load)} concurrencies and {len(rate)} throughputs: each point has one of both")
    good = np.isfinite(load) & np.isfinite(rate) & (load > 0) & (rate >= 0)
    ignored = int(len(load) - good.sum())
    counts = np.ones(len(load)) if weights is None else np.asarray(weights, float)
    load, rate, counts = averaged_levels(load[good], rate[good], counts[good])
    points = tuple((float(one), float(two)) for one, two in zip(load, rate, strict=True))
    if reason := _too_little(load, rate):
        return Fit(reason=reason, points=points, ignored=ignored)
    planes = [_Plane(law, load, rate, counts, max(error, _NOISE)) for law in laws]
    best = next((plane for plane in planes[1:] if plane.least * plane.wider < planes[0].least), planes[0])
    return best.result(points, ignored, [plane for plane in planes if plane is best or best.allows(plane)])


def averaged_levels(load: Floats, rate: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return points by load, averaged to levels a fixed ratio apart where there are many: each level counts once."""
    order = np.argsort(load, kind="stable")
    load, rate, weights = load[order], rate[order], weights[order]
    if len(load) <= MOST_LEVELS or load[0] == load[-1]:
        return load, rate, weights
    where = level_of(load)
    sums = np.bincount(where, weights)
    some = sums > 0
    mean = [(np.bincount(where, weights * values)[some] / sums[some]) for values in (load, rate)]
    return mean[0], mean[1], np.ones(len(mean[0]))


def level_of(load: Floats) -> Indices:
    """Return the level of each load, counted from the least one on."""
    ratio = np.log(load / load.min()) / np.log(load.max() / load.min())
    return np.asarray(np.minimum((ratio * MOST_LEVELS).astype(np.int64), MOST_LEVELS - 1))


def _too_little(load: Floats, rate: Floats) -> str | None:
    distinct = 0 if not len(load) else 1 + int((np.diff(load) > _ALIKE * load[:-1]).sum())
    if distinct < FEWEST_LOADS:
        loads = "1 load" if distinct == 1 else f"{distinct} different loads"
        return f"not enough data: {loads}, at least {FEWEST_LOADS} are needed"
    if load[-1] < _NARROWEST * load[0]:
        return (
            f"all at one load: {load[0]:.3g} to {load[-1]:.3g} in flight; "
            f"needed is a load that varies {_NARROWEST:.0f}-fold at least"
        )
    return None if rate.any() else "nothing was completed at any load"


def _usl(load: Floats, knee: Any, sigma: Any) -> Floats:
    shape: Floats = load / (1 + sigma * (load - 1) + (1 - sigma) / knee**2 * load * (load - 1))
    return shape


def _limit(load: Floats, knee: Any, sharpness: Any) -> Floats:
    # 1 / (r^-p + 1)^(1/p): nothing overflows but to infinity, whose inverse is right.
    with np.errstate(over="ignore"):
        shape: Floats = ((load / knee) ** -sharpness + 1) ** (-1 / sharpness)
    return shape


_SHAPES: Final[dict[str, Callable[[Floats, Any, Any], Floats]]] = {USL: _usl, LIMIT: _limit}


class _Plane:
    """The sum of squares of one law over its two parameters that are not linear: the knee, and sigma or sharpness."""

    def __init__(self, law: str, load: Floats, rate: Floats, weights: Floats, error: float) -> None:
        from scipy.special import fdtri

        self._law, self._load, self._rate = law, load, rate
        self._roots = np.sqrt(weights / weights.mean())
        freedom = len(load) - 3
        self._floor = len(load) * (error * rate.max()) ** 2
        self.wider = 1 + fdtri(1, freedom, 0.95) / freedom
        least = max(1.0, load[0]) if law == USL else load[0]
        knees = np.append(np.geomspace(least, _FAR * load[-1], _PLANE[0]), np.inf if law == USL else [])
        others = np.append(0, np.geomspace(1e-4, 1, _PLANE[1])) if law == USL else np.geomspace(1, 64, _PLANE[1])
        self._look(knees, others)
        for _ in range(2):
            knees, others = self._inside.any(axis=1), self._inside.any(axis=0)
            self._look(self._closer(self._knees, knees), self._closer(self._others, others))

    def allows(self, other: _Plane) -> bool:
        """Return whether the other law explains the points as well, but for chance."""
        return bool(other.least <= self._bound)

    def _look(self, knees: Floats, others: Floats) -> None:
        self._knees, self._others = knees, others
        shape = self._roots * _SHAPES[self._law](self._load, knees[:, None, None], others[None, :, None])
        rate = self._roots * self._rate
        along = shape @ rate
        size = np.einsum("ijk,ijk->ij", shape, shape)
        self._scale = along / size
        self._squares = np.maximum(rate @ rate - along * self._scale, len(rate) * (_NOISE * self._rate.max()) ** 2)
        self.least = float(self._squares.min())
        self._bound = max(self.least, self._floor) * self.wider
        self._inside = self._squares <= self._bound

    @staticmethod
    def _closer(values: Floats, inside: NDArray[np.bool_]) -> Floats:
        """Return as many values between the neighbours of those that are inside."""
        where = np.flatnonzero(inside)
        low, high = max(where[0] - 1, 0), min(where[-1] + 1, len(values) - 1)
        finite = values[low : high + 1][np.isfinite(values[low : high + 1])]
        first, last = finite[0], finite[-1]
        made = np.geomspace(first, last, _PLANE[1]) if first > 0 else np.linspace(first, last, _PLANE[1])
        return np.append(made, np.inf) if np.isinf(values[high]) else made

    def result(self, points: tuple[tuple[float, float], ...], ignored: int, allowed: Sequence[_Plane]) -> Fit:
        """Return the law, with intervals of knee and peak under all laws that the data allow."""
        scale, knee, other = self._polished(self._best())
        known: dict[str, Any] = {"law": self._law, "points": points, "ignored": ignored}
        if self._law == USL:
            kappa = 0.0 if np.isinf(knee) else (1 - other) / knee**2
            known |= {"lambda_per_s": scale, "sigma": other, "kappa": kappa}
        else:
            known |= {"limit_per_s": scale, "saturation": knee, "sharpness": other}
        peak = float(self._peaks(np.asarray(scale), np.asarray(knee), np.asarray(other)))
        ends = [plane.ends() for plane in allowed]
        low, high = min(peak, *(one for one, _ in ends)), max(peak, *(one for _, one in ends))
        top, most = float(self._rate.max()), float(self._load[-1])
        if _NEAR * peak > top or high > _BEYOND * top or any(plane.grows() for plane in allowed):
            unseen = f"at most {most:.3g} in flight, and throughput still grew with it"
            return Fit(**known, reason=f"the load never came near a limit: {unseen}")
        known |= {"identifiable": True, "peak_per_s": peak, "interval": Interval(low, high)}
        known |= {"saturation": knee if self._law == LIMIT else peak * self._quickest()}
        if self._law == USL and _NEAR * knee > most:
            return Fit(**known, reason="no knee: throughput levels off and falls at no load seen")
        inside = self._knees[self._inside.any(axis=1)]
        last = None if self._law == USL and _NEAR * inside[-1] > most else max(float(inside[-1]), knee)
        return Fit(**known, knee=knee, knee_interval=Interval(min(float(inside[0]), knee), last))

    def _best(self) -> tuple[float, float, float]:
        row, column = np.unravel_index(int(self._squares.argmin()), self._squares.shape)
        return float(self._scale[row, column]), float(self._knees[row]), float(self._others[column])

    def grows(self) -> bool:
        """Return whether throughput still grows at the greatest load, or may have stopped there by chance."""
        _, knee, other = self._best()
        if self._law == LIMIT and self._load[-1] < _PAST * knee:
            return True
        before, after = _SHAPES[self._law](self._load[-1] * np.array([1, 1.01]), knee, other)
        return bool(after / before - 1 > _GROWING * 0.01)

    def _polished(self, start: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the parameters of the least sum of squares near these, which are its nearest on the plane."""
        from scipy.optimize import least_squares

        scale, knee, other = start
        if knee > _FAR / 10 * self._load[-1]:
            return start
        shape = _SHAPES[self._law]
        ends = ((0, 0, 0), (float("inf"), float("inf"), 1)) if self._law == USL else ((0, 0, 1), (float("inf"),) * 3)

        def missing(x: Floats) -> Floats:
            gaps: Floats = self._roots * (x[0] * shape(self._load, x[1], x[2]) - self._rate)
            return gaps

        x_scale = (scale, knee, max(other, 1e-3))
        found = least_squares(missing, start, bounds=ends, x_scale=x_scale, xtol=1e-12, ftol=1e-12)
        scale, knee, other = (float(one) for one in found.x)
        return scale, knee, other

    def _peaks(self, scale: Floats, knee: Floats, other: Floats) -> Floats:
        """Return the greatest throughput of each law, without end where there is none."""
        if self._law == LIMIT:
            return scale
        with np.errstate(divide="ignore", invalid="ignore"):
            # At the knee, kappa N (N - 1) is (1 - sigma) (1 - 1 / N); without one the limit is lambda / sigma.
            bent = scale * knee / (1 + other * (knee - 1) + (1 - other) * (1 - 1 / knee))
            return np.where(np.isinf(knee), scale / other, bent)

    def ends(self) -> tuple[float, float]:
        """Return the least and the greatest peak that the points allow for."""
        peaks = self._peaks(self._scale, self._knees[:, None], self._others[None, :])[self._inside]
        return float(np.min(peaks)), float(np.max(peaks))

    def _quickest(self) -> float:
        """Return the time of a request in flight where the load is least, s: of a sixth of the levels."""
        some = slice(0, max(1, len(self._load) // FEWEST_LOADS))
        return float(self._load[some].sum() / max(self._rate[some].sum(), _NOISE * self._rate.max()))


# --- Requests in flight by bucket of time, and the levels of load that a service was at.
#
# Per bucket, requests in flight are the time that all requests spent in it, divided by its width: exactly the time
# average, whatever the arrivals (Little, Operations Research 9, 1961). Throughput is what was completed in it.

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
    least = (load[-1] - load[0]) / MOST_LEVELS
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
