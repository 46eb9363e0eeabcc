"""How much a service can take: requests in flight, the law of its throughput, head-room, and replicas for a rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil, exp
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from stagetrace import semconv
from stagetrace.analysis import usl
from stagetrace.analysis.arrays import Floats
from stagetrace.analysis.base import sample_of
from stagetrace.analysis.estimates import Sample
from stagetrace.analysis.usl import SECOND, Buckets, Fit, Interval, Level, buckets, levels_of, rows_of

if TYPE_CHECKING:
    from stagetrace.analysis.base import Source

STAGES: Final = (*(stage.replace(".", "_") for stage in semconv.STAGES), "other")
MOST_SERVICES: Final = 50
_CHANCE: Final = 6.0  # standard deviations over which loads differ by more than chance
_RISE: Final = 0.75  # throughput of the least load over the greatest one, from which on it did not rise
_UNLIKE: Final = 0.15  # share of the greatest throughput by which it may vary at one load
_PAST: Final = 1.5  # times the saturation to which load must have gone for a limit to be known, and more where ...
_FLUCTUATING: Final = 4.0  # ... load fluctuates: by e to the power of so many times what half of the buckets are off
_LEAST_ERROR: Final = 0.01  # of a level, as a share of the greatest throughput
_BENT: Final = 0.1  # by which share of its fluctuation a level may be off the law
_ABOVE: Final = 1.1  # times the peak that a law has, which a minute may have been by chance
_FULL: Final = 10  # buckets from which on a level counts in full
_BUSY_S: Final = 60
_BUSY_PARTS: Final = 10  # of less data than so many minutes, the busiest of so many parts
_SHARE: Final = 0.7  # of peak or knee, which an instance is planned for
_CHANCE_OF_BREAKING: Final = 0.05  # that a load at which the objective holds seems to break it
TARGET: Final = 0.99  # of objectives that requests carry


class Instance(NamedTuple):
    """One process of a service, or all processes without a name (`name` None)."""

    name: str | None
    requests: float
    in_flight: float  # time average from its first request to its last
    per_s: float
    busiest_in_flight: float  # of a bucket


class Busiest(NamedTuple):
    """The minute with most requests completed, or the tenth of less than ten; where requests were, as of these."""

    start_unix_nano: int
    seconds: float
    per_s: float
    in_flight: float
    waiting: float  # requests in stage `queue`, time average
    working: float  # in any other stage
    inferring: float
    cpus: float | None  # that the processes used; None where no request carries it
    instances: int  # at work at once; of the busiest tenth of all such minutes


@dataclass(frozen=True)
class Capacity:
    """The throughput and the capacity of one service. Rates and requests in flight are of all instances by default."""

    service: str
    requests: float  # by weight
    reversed: int  # that end before they begin, which count for nothing
    sample: Sample
    since_ns: int
    until_ns: int
    width_s: float
    instances: tuple[Instance, ...]
    in_flight: float  # time average
    per_s: float
    busiest: Busiest
    mean_ms: float
    stages: dict[str, float | None]  # requests in that stage, time average
    levels: tuple[Level, ...]  # of one instance
    law: Fit  # of one instance
    batch: float | None = None  # mean of `ml.batch.size`
    cpus: float | None = None  # time average of all processes; None where no request carries what they used

    @property
    def peak_per_s(self) -> float | None:
        """Return the greatest throughput of the instances at work, where it is known."""
        return None if self.law.peak_per_s is None else self.law.peak_per_s * self.busiest.instances

    @property
    def interval(self) -> Interval | None:
        """Return where the peak lies by 95 %."""
        return _times(self.law.interval, self.busiest.instances)

    @property
    def knee(self) -> float | None:
        """Return the requests in flight, in all instances at work, at the peak or where throughput levels off."""
        return None if self.law.knee is None else self.law.knee * self.busiest.instances

    @property
    def knee_interval(self) -> Interval | None:
        """Return where the knee lies by 95 %."""
        return _times(self.law.knee_interval, self.busiest.instances)

    @property
    def saturation(self) -> float | None:
        """Return the requests in flight, in all instances, that would keep them at their peak, did none wait."""
        known = self.law.identifiable and self.law.saturation is not None
        return (self.law.saturation or 0) * self.busiest.instances if known else None

    @property
    def headroom(self) -> float | None:
        """Return the share of the peak that the busiest minute left over; negative where it took more."""
        return None if not self.peak_per_s else 1 - self.busiest.per_s / self.peak_per_s


class Plan(NamedTuple):
    """The load that one instance takes, and how many instances a rate needs. None: not known, with a `reason`."""

    in_flight: float | None  # in one instance
    per_s: float | None  # of one instance
    replicas: int | None  # that the rate needs
    at_most: bool  # fewer may do, for no more load than that was seen
    reason: str  # what it rests on


def _times(interval: Interval | None, factor: float) -> Interval | None:
    if interval is None:
        return None
    return Interval(interval.low * factor, None if interval.high is None else interval.high * factor)


def ask(source: Source, within_ms: float | None = None) -> list[Capacity]:
    """Return the capacity of each service, that with most requests first; `within_ms`: bound to count by.

    Each is asked for by itself, so of more than `MOST_SERVICES` those with most requests are there, and one more.
    """
    rows = source.reduce("stage_work", ["service"])
    rows.sort(key=lambda row: row["service"])
    services = [(name, list(found)) for name, found in groupby(rows, key=lambda row: row["service"])]
    services.sort(key=lambda one: -sum(row["requests"] for row in one[1]))
    return [
        _capacity(source, name, found, -1.0 if within_ms is None else within_ms)
        for name, found in services[: MOST_SERVICES + 1]
        if any(row["requests"] for row in found)
    ]


def _capacity(source: Source, service: str, work: list[dict[str, Any]], within_ms: float) -> Capacity:
    since, until = min(row["first_ns"] for row in work), max(row["last_ns"] for row in work)
    rows, width = rows_of(source, service, work, within_ms)
    width_ns = round(width * SECOND)
    first = min(row["first"] for row in rows)
    count = max(row["last"] for row in rows) - first + 1
    total, active, instances = buckets([], first, count, width_ns), np.zeros(count), []
    rows.sort(key=lambda row: row["instance"] or "")
    for name, found in groupby(rows, key=lambda row: row["instance"]):
        one = buckets(found, first, count, width_ns)
        total = Buckets(*(getattr(total, key) + getattr(one, key) for key in Buckets.__annotations__))
        active += (one.in_flight > 0) | (one.done > 0)
        instances.append(_instance(name, [row for row in work if row["instance"] == name], one))
    levels = levels_of(total, active, width, work)
    sums = {key: sum(row[key] for row in work) for key in ("requests", "whole_ms", "squares_ms", "reversed")}
    seconds, sample = max((until - since) / SECOND, 1e-9), sample_of(work)
    batched = sum(row["with_batch"] for row in work)
    busiest = _busiest(total, active, first, width, seconds)
    return Capacity(
        service=service,
        requests=sums["requests"],
        reversed=sums["reversed"],
        sample=sample,
        since_ns=since,
        until_ns=until,
        width_s=width,
        instances=tuple(sorted(instances, key=lambda one: -one.requests)),
        in_flight=sums["whole_ms"] / 1e3 / seconds,
        per_s=sums["requests"] / seconds,
        busiest=busiest,
        mean_ms=sums["whole_ms"] / sums["requests"],
        stages={key: _mean_in(f"{key}_ms", work, seconds) for key in STAGES},
        levels=levels,
        law=throughput_law(
            levels, _noise(sums, levels, width), busiest.per_s / busiest.instances, unknown=sample.is_unknown
        ),
        batch=sum(row["batched"] or 0 for row in work) / batched if batched else None,
        cpus=_mean_in("cpu_ms", work, seconds),
    )


def _mean_in(column: str, work: list[dict[str, Any]], seconds: float) -> float | None:
    """Return how many requests were in a stage on average, or how many CPUs were used; None where no row has it."""
    known = [row[column] for row in work if row[column] is not None]
    return sum(known) / 1e3 / seconds if known else None


def _busiest(total: Buckets, active: Floats, first: int, width: float, seconds: float) -> Busiest:
    window = min(len(active), max(1, round(min(_BUSY_S, seconds / _BUSY_PARTS) / width)))
    done = np.convolve(total.done, np.ones(window), "valid")
    at = int(done.argmax())
    span = slice(at, at + window)
    busy = active[: len(done)][done >= np.quantile(done, 0.9)]
    length = min(window * width, max(seconds, width / 10))
    return Busiest(
        start_unix_nano=(first + at) * round(width * SECOND),
        seconds=length,
        per_s=float(done[at]) / length,
        in_flight=float(total.in_flight[span].sum()) * width / length,
        waiting=float(total.queue_ms[span].sum()) / 1e3 / length,
        working=float((total.whole_ms - total.queue_ms)[span].sum()) / 1e3 / length,
        inferring=float(total.inference_ms[span].sum()) / 1e3 / length,
        cpus=float(total.cpu_ms[span].sum()) / 1e3 / length if total.cpu_ms.any() else None,
        instances=max(1, round(float(np.median(busy)))),
    )


def _instance(name: str | None, work: list[dict[str, Any]], one: Buckets) -> Instance:
    requests, whole = (sum(row[key] for row in work) for key in ("requests", "whole_ms"))
    seconds = max(1, max(row["last_ns"] for row in work) - min(row["first_ns"] for row in work)) / SECOND
    return Instance(name, requests, whole / 1e3 / seconds, requests / seconds, float(one.in_flight.max()))


def _noise(sums: dict[str, float], found: Sequence[Level], width: float) -> float:
    """Return by how much requests in flight differ between buckets by chance alone, in logarithms."""
    mean = sums["whole_ms"] / sums["requests"]
    spread = sums["squares_ms"] / sums["requests"] / mean**2 if mean else 1.0  # 1 + squared coefficient of variation
    per_bucket = sums["requests"] / max(1.0, sum(one.seconds for one in found) / width)
    return float((spread / max(per_bucket, 1.0)) ** 0.5)


def throughput_law(
    found: Sequence[Level], noise: float = 0.0, busiest_per_s: float = 0.0, *, unknown: bool = False
) -> Fit:
    """Return the law of throughput over requests in flight; not identifiable, with a reason, where it would be a guess.

    `noise`: standard deviation of the logarithm of a bucket's load by chance; `busiest_per_s`: of an instance, in the
    busiest minute; `unknown`: the rate of sampling is.
    """
    weights = [min(1.0, one.buckets / _FULL) for one in found]
    # Levels are means over loads that fluctuate, which lie below a curve that is bent.
    error = _LEAST_ERROR + _BENT * median(one.noise for one in found) if found else 0.0
    law = usl.fit([one.in_flight for one in found], [one.per_s for one in found], weights, error)
    reason = _doubt(law, found, noise, busiest_per_s)
    if unknown:
        reason = "the service samples at a rate that is not known, so the number in flight is not known"
    if reason is None:
        return law
    nothing: dict[str, Any] = dict.fromkeys(("knee", "peak_per_s", "knee_interval", "interval"))
    # Of a limit, the saturation is a parameter of the law.
    saturation = law.saturation if law.law == usl.LIMIT else None
    return replace(law, identifiable=False, reason=reason, saturation=saturation, **nothing)


def _doubt(law: Fit, found: Sequence[Level], noise: float, busiest_per_s: float) -> str | None:
    """Return why the law of these levels shows no limit, though it may look as if it did."""
    if law.law is None or not found:
        return law.reason
    least, most, fold = found[0].in_flight, found[-1].in_flight, exp(_CHANCE * noise)
    if most < least * fold:
        return (
            f"all at one load: {least:.3g} to {most:.3g} in flight, which is no more than chance; "
            f"needed is a load that varies {fold:.2g}-fold"
        )
    if not law.identifiable:
        return law.reason
    top = max(one.per_s for one in found)
    needed = _PAST * exp(_FLUCTUATING * median(one.noise for one in found)) * (law.saturation or 0)
    above = busiest_per_s > _ABOVE * (law.peak_per_s or 0)
    reason = None
    if most < needed:
        words = f"at most {most:.3g} in flight, and a limit shows from {needed:.3g} on"
        reason = f"the load did not go far enough: {words}"
    elif min(one.per_s for one in found) > _RISE * top:
        words = "as of a steady rate with slow spells; needed is a rate that varies"
        reason = f"throughput was about {top:.3g}/s at any load, {words}"
    elif above or sum(one.spread_per_s**2 for one in found) / len(found) > (_UNLIKE * top) ** 2:
        reason = "throughput does not follow the requests in flight: something else makes it vary"
    return reason


def plan(one: Capacity, rate: float | None = None, share: float | None = None) -> Plan:
    """Return the load that one instance takes: the greatest load seen at which all lower ones kept the objective too.

    `share` of requests (0.99 for p99) within the bound that `ask` was given; without it, of those judged, `TARGET` that
    met their objectives, if any load keeps these. Never more than 70 % of the peak. `rate`: requests per second in all.
    """
    kept, found = _kept(one.levels, share)
    if share is not None and kept is None:
        reason = f"no load keeps {found}" if found else _too_few(one.levels, share)
        return Plan(None, None, None, at_most=False, reason=reason)
    bound = None if one.law.peak_per_s is None else _SHARE * one.law.peak_per_s
    seen = kept or (max(one.levels, key=lambda level: level.per_s) if one.levels else None)
    if bound is not None and (seen is None or seen.per_s >= bound):
        load, per_s, at_most = _load_at(one, bound), bound, False
        reason = f"{100 * _SHARE:.0f} % of the peak"
    elif seen is None:
        return Plan(None, None, None, at_most=False, reason=one.law.reason or "no load was seen")
    else:
        load, per_s = seen.in_flight, seen.per_s
        at_most = (found is None or kept is None) and one.law.peak_per_s is None
        reason = (kept and found) or "the greatest load seen"
    count = None if rate is None or per_s <= 0 else max(1, ceil(rate / per_s * (1 - 1e-9)))
    return Plan(load, per_s, count, at_most, reason)


def _kept(levels: Sequence[Level], share: float | None) -> tuple[Level | None, str | None]:
    """Return the greatest level that kept the objective below the first that broke it, and what that did.

    What chance explains is neither. No second one: none broke it, or nothing was judged.
    """
    from scipy.special import bdtrc

    wanted = TARGET if share is None else share
    kept = None
    for level in levels:
        met = level.good if share is None else level.within
        if met is None:
            continue
        count = round(level.requests)
        missed = round((1 - met) * count)
        if met < wanted and bdtrc(missed - 1, count, 1 - wanted) < _CHANCE_OF_BREAKING:
            words = f"at {level.in_flight:.3g} in flight {100 * met:.3g} % kept it, {100 * wanted:.4g} % are wanted"
            return kept, f"the objective: {words}"
        if met >= wanted and count >= _enough(wanted):
            kept = level
    return kept, None


def _enough(share: float) -> int:
    """Return how many requests one is expected among that the share leaves out."""
    return ceil(1 / (1 - share) * (1 - 1e-9))


def _too_few(levels: Sequence[Level], share: float) -> str:
    most = max((round(level.requests) for level in levels), default=0)
    return f"not enough data: {most} requests at one load at most, and {100 * share:.4g} % take {_enough(share)}"


def _load_at(one: Capacity, per_s: float) -> float:
    """Return the requests in flight at which the law has this throughput, on its way up."""
    most = one.law.knee or one.levels[-1].in_flight
    loads = np.linspace(0, most, 1001)[1:]
    rates = np.maximum.accumulate(one.law.throughput(loads.tolist()))
    return float(np.interp(per_s, rates, loads))
