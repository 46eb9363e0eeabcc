"""A model of a service from its recorded requests: how its processes share their time, and what a request needs alone.

A process lets at most `limit` requests work at once; others wait in the order of their arrival. Those at work slow each
other down: a share `serial` of the work needs what one of them has at a time (the GIL, the event loop), a share
`parallel` needs a CPU alone, and the rest waits for something outside, slowed by nobody. How fast n requests go at once
follows by mean value analysis of that closed queueing network (Reiser and Lavenberg, 1980; several CPUs by Seidmann's
approximation, 1987). The shares are those by which the work that requests needed does not depend on how many others
were at work beside them; `contention` is what more it takes for the simulated present to be as slow as the recorded.
The requests of a language-model engine go step by step `together` instead. Where requests compute for a few ms each, of
which the GIL's switch interval (5 ms) lets nobody interrupt them, they go through their process one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

import numpy as np

from stagetrace.analysis.arrays import Floats
from stagetrace.analysis.what_if.recorded import Recorded, at_work, profile
from stagetrace.analysis.what_if.simulation import Batches, Served, Station, serve

_STEP: Final = 0.1  # from one share that is tried to the next
_PARALLEL: Final = tuple(_STEP * step for step in range(11))
_SERIAL: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, *_PARALLEL[1:])  # a little counts where many are at work
_OF_REQUESTS: Final = 0.8  # of the CPU time of a process: what its requests' own work takes, at least ...
_BESIDE_S: Final = 0.0015  # ... beside so much for each, of the server and of recording
_GROUPS: Final = 8
_NEARLY: Final = 0.2  # others beside a request, on average, below which it was nearly alone
_LEAST_ALONE: Final = 50
_FEW: Final = 5
_TAIL: Final = 95
_NEAR: Final = 0.03
_HALVINGS: Final = 8
_MOST_CONTENTION: Final = 16.0
_RANKS: Final = (95, 90, 99)  # of durations: each tells how much of their time was own work, of which they may differ
_LEAST_RANK: Final = 80.0
_SWITCH_S: Final = 0.005  # `sys.getswitchinterval`: for that long nobody takes the GIL from a thread that computes
_LIKE_CPU: Final = 1.25  # times the CPU time of the process, at most, and no less of it
_ALONE: Final = 0.02  # of requests that were at work beside one other, below which their process takes one at a time
_SAME_BATCH_S: Final = 0.0005  # requests of a batch begin their inference within that
_LEAST_BATCHES: Final = 50
_LEAST_FULL: Final = 10
_MOST_AT_ONCE: Final = 400
_COMPUTING: Final = 0.8  # share of its work that is computed, below which a request also waits for others
_MOMENT_S: Final = 0.0001
_SHORTEST_S: Final = 1e-6
WAIT_S: Final = 0.001
_POOLS: Final = ("thread_pool", "executor", "server_threads", "grpc_pool")
_BATCHES: Final = ("batch", "consumer")
ONE: Final = "one request"
GIL: Final = "the GIL"


@dataclass(frozen=True, order=True)
class Shares:
    """Which share of the work of a request, alone, needs what; the rest of it waits for something outside."""

    serial: float
    parallel: float
    contention: float = 0.0  # part by which all of it gets longer beyond that, where many are at work
    together: float = 0.0  # part by which each other one makes it longer: all go step by step together

    def speeds(self, cpus: float, most: int = _MOST_AT_ONCE) -> Floats:
        """Return how fast each of 0 ... `most` requests at work at once goes, as a share of one alone."""
        if self.together:
            return 1 / (1 + self.together * np.maximum(np.arange(most + 1) - 1, 0))
        outside, cpus = max(0.0, 1 - self.serial - self.parallel), max(1.0, cpus)
        on_cpu = self.serial + self.parallel
        waiting_serial = waiting_parallel = 0.0
        found = [1.0]
        for count in range(1, most + 1):
            serial = self.serial * (1 + waiting_serial)
            parallel = self.parallel / cpus * (1 + waiting_parallel)
            alone = outside + self.parallel * (cpus - 1) / cpus
            took = max(serial + parallel + alone, count * on_cpu / cpus)
            waiting_serial, waiting_parallel = count * serial / took, count * parallel / took
            found.append(1 / (took * (1 + self.contention * (1 - 1 / count))))
        speeds = np.array(found)
        return speeds / speeds[1] if most else speeds


# Those that are tried.
_SHARED: Final = [Shares(a, b) for a, b in product(_SERIAL, _PARALLEL) if a + b < 1 + _STEP / 2]
_TOGETHER: Final = [Shares(0.0, 0.0, together=float(part)) for part in np.geomspace(0.0005, 1, 34)]


@dataclass(frozen=True)
class Model:
    """A service as it was recorded."""

    recorded: Recorded
    # The shares that fit, the best first, each with the work of every request alone, in seconds.
    plausible: tuple[tuple[Shares, Floats], ...]
    limit: int | None  # requests at work at once in a process; None: no limit was ever reached
    pool: str | None  # what that limit is
    visits: int  # how often a request waits for its pool
    after_s: float  # that a process which takes one request at a time needs between two
    cpus: float
    batches: Batches | None
    spread: Floats  # factors by which batches took longer than such ones do

    @property
    def shares(self) -> Shares:
        """Return the shares that fit best."""
        return self.plausible[0][0]

    @property
    def own_s(self) -> Floats:
        """Return how long the work of each request would have taken alone, by these."""
        return self.plausible[0][1]

    @property
    def has_pool(self) -> bool:
        """Return whether requests are known to wait for a thread of a pool."""
        return self.limit is not None and self.pool not in (ONE, GIL) and self.batches is None

    @property
    def wait_s(self) -> Floats:
        """Return how long each request waited: who waits for the GIL does so in any stage."""
        recorded = self.recorded
        return recorded.wait_s + (recorded.total_work_s - self.own_s) if self.pool == GIL else recorded.wait_s

    @property
    def has_sync_workers(self) -> bool:
        """Return whether a process waits for others with its one request: no event loop does.

        Such workers take the next request from one queue, whoever is free; event loops accept it whether free or not.
        """
        return self.limit == 1 and self.shares.serial < _COMPUTING

    @property
    def slowed(self) -> float:
        """Return the share of their time that requests waited for or were slowed by each other."""
        recorded = self.recorded
        lost = recorded.wait_s.sum() + (recorded.total_work_s - self.own_s).sum()
        return float(lost / recorded.duration_s.sum())

    def notes(self) -> Iterator[str]:
        """Yield what the model has found, in sentences."""
        shares, processes = self.shares, self.recorded.processes
        workers = "1 worker" if processes == 1 else f"{processes} workers"
        most = {None: "any number of requests", 1: ONE}.get(self.limit, f"at most {self.limit} requests")
        parts = shares.serial, shares.parallel, 1 - shares.serial - shares.parallel
        serial, parallel, outside = (f"{100 * max(0.0, part):.0f} %" for part in parts)
        yield (
            f"The model: {workers}, each at work for {most} at a time; of the work of a request {serial} is done one "
            f"request after another (the GIL, the event loop), {parallel} on any CPU, and {outside} waits for others."
        )


def fit(recorded: Recorded, pools: Sequence[dict[str, Any]], cpus: float) -> Model:
    """Return the model of recorded requests; `pools`: rows of the reduction of that name."""
    begin, end = at_work(recorded)
    times, busy = profile(begin, end, recorded.process, recorded.processes)
    limit, pool = _limit(recorded, busy, times, begin, pools)
    fitting = [_of_one(recorded)] if limit == 1 else _shares(recorded, begin, end, times, busy, cpus)
    took = np.maximum(end - begin, _SHORTEST_S)
    alone = _during(np.maximum(busy - 1, 0), begin, end, times, recorded.process) / took < _NEARLY
    most = _most_alone(recorded.path, took, alone)

    def own_of(shares: Shares) -> Floats:
        return np.minimum(_own(shares, begin, end, times, busy, recorded.process, cpus), most)

    plausible = [(one, own_of(one)) for one in fitting]
    after = _between(recorded, begin, end) if limit == 1 else 0.0
    batches = _batches(recorded) if any(row["reason"] in _BATCHES and row["waits"] for row in pools) else None
    waits = sum(row["waits"] for row in pools if row["reason"] == pool)
    visits = max(1, round(waits / len(begin)))
    if limit != 1 and batches is None and not recorded.is_engine:
        plausible = [_with_contention(one, own_of, recorded, limit, visits, cpus) for one in _some(fitting)]
        in_turn = _in_turn(recorded, alone, cpus)
        if in_turn and _unlike(recorded, in_turn[0], 1, 1, cpus) < _unlike(recorded, plausible[0], limit, visits, cpus):
            return Model(recorded, tuple(in_turn), 1, GIL, 1, 0.0, cpus, None, np.ones(1))
    return Model(recorded, tuple(plausible), limit, pool, visits, after, cpus, *(batches or (None, np.ones(1))))


def _limit(
    recorded: Recorded, busy: Floats, times: Floats, begin: Floats, pools: Sequence[dict[str, Any]]
) -> tuple[int | None, str | None]:
    """Return how many requests a process works for at once, and what limits it."""
    # A moment later: clocks are read in between.
    beside = busy[recorded.process, np.searchsorted(times, begin + _MOMENT_S, side="right") - 1]
    if float(np.mean(beside > 1)) < _ALONE and float(np.mean(recorded.wait_s > WAIT_S)) > _ALONE:
        return 1, ONE
    for row in pools:
        # Mostly more at work than there are threads: the pool is for a part of the work.
        if row["reason"] in _POOLS and row["pool_size"] and np.median(beside) <= row["pool_size"]:
            return int(row["pool_size"]), str(row["reason"])
    return None, None


def _between(recorded: Recorded, begin: Floats, end: Floats) -> float:
    """Return how long a process that takes one request at a time needs from one to the next that waits for it."""
    gaps = []
    for process in range(recorded.processes):
        own = np.flatnonzero(recorded.process == process)
        own = own[np.argsort(begin[own])]
        waited = recorded.start_s[own[1:]] < end[own[:-1]]
        gaps.append((begin[own[1:]] - end[own[:-1]])[waited])
    found = np.concatenate(gaps)
    return max(0.0, float(found.mean())) if len(found) else 0.0


def _of_one(recorded: Recorded) -> Shares:
    """Return the shares of requests that are never beside another one: by the CPU time of their process alone."""
    mean = float(recorded.total_work_s.mean())
    serial = 1.0 if recorded.cpu_s is None or mean <= 0 else min(1.0, recorded.cpu_s / mean)
    return Shares(serial, 0.0)


def _speed(shares: Shares, busy: Floats, cpus: float) -> Floats:
    """Return how fast a request of each process goes, where `busy` are at work in each."""
    speeds = shares.speeds(cpus, min(_MOST_AT_ONCE, int(busy.max())))
    found = speeds[np.minimum(busy, len(speeds) - 1).astype(np.intp)]
    if len(busy) > 1:
        on_cpu = shares.serial + shares.parallel
        short = np.maximum(1.0, (busy * found).sum(axis=0) * on_cpu / cpus)
        found = 1 / ((1 - on_cpu) + (1 / found - (1 - on_cpu)) * short)
    return np.asarray(found)


def _own(shares: Shares, begin: Floats, end: Floats, times: Floats, busy: Floats, process: Any, cpus: float) -> Floats:
    """Return how long the work of each request would have taken alone."""
    return np.maximum(_during(_speed(shares, busy, cpus), begin, end, times, process), _SHORTEST_S)


def _some(fitting: Sequence[Shares]) -> list[Shares]:
    """Return a few of the shares that fit, the best among them."""
    few = min(_FEW, len(fitting))
    return [fitting[place * len(fitting) // few] for place in range(few)]


def _with_contention(
    shares: Shares,
    own_of: Callable[[Shares], Floats],
    recorded: Recorded,
    limit: int | None,
    visits: int,
    cpus: float,
) -> tuple[Shares, Floats]:
    """Return shares with as much contention as makes the simulated work as long as the recorded at p95, and the work.

    How long requests are slowed by being unlucky, and by switching from one to the other, is in no mean.
    """
    wanted = np.percentile(recorded.total_work_s, _TAIL)
    low, high = 0.0, _MOST_CONTENTION
    found = shares, own_of(shares)
    for _ in range(_HALVINGS):
        served = _present(recorded, found, limit, visits, cpus)
        off = float(np.percentile(served.work_s, _TAIL) / wanted) - 1
        contention = found[0].contention
        if abs(off) < _NEAR or (off > 0 and not contention):
            break
        low, high = (low, contention) if off > 0 else (contention, high)
        tried = replace(shares, contention=(low + high) / 2)
        found = tried, own_of(tried)
    return found


def _present(recorded: Recorded, fitting: tuple[Shares, Floats], limit: int | None, visits: int, cpus: float) -> Served:
    """Return how the recorded requests fare in a simulation."""
    shares, own = fitting
    on_cpu = shares.serial + shares.parallel
    station = Station(recorded.processes, limit, shares.speeds(cpus).tolist(), on_cpu, cpus, visits=visits)
    return serve(station, recorded.start_s, own, recorded.process.tolist())


def _unlike(recorded: Recorded, fitting: tuple[Shares, Floats], limit: int | None, visits: int, cpus: float) -> float:
    """Return how far the durations of a simulation are from the recorded ones, at p50 and p95, as logarithms."""
    served = _present(recorded, fitting, limit, visits, cpus)
    took = served.wait_s + served.work_s + recorded.receive_s + recorded.send_s
    ours, theirs = (
        np.log(np.maximum(np.percentile(one, (50, _TAIL)), _SHORTEST_S)) for one in (took, recorded.duration_s)
    )
    return float(np.abs(ours - theirs).sum())


def _in_turn(recorded: Recorded, alone: Any, cpus: float) -> list[tuple[Shares, Floats]]:
    """Return how long requests compute that go through their process one after another; nothing where they do not.

    Each stage took as long as it does for those that have nobody beside them, or else they waited for the GIL: as much
    of the time is own work as makes the simulated present as long as the recorded. It is about the process's CPU time.
    """
    if not recorded.cpu_s or np.count_nonzero(alone) < _LEAST_ALONE:
        return []
    if np.median(recorded.total_work_s[alone]) >= _SWITCH_S:
        return []
    found = []
    for rank in _RANKS:
        wanted = np.percentile(recorded.duration_s, rank)
        low, high = _LEAST_RANK, 100.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            own = np.sum([_most_alone(recorded.path, work, alone, middle) for work in recorded.work_s.values()], axis=0)
            tried = Shares(1.0, 0.0), np.maximum(own, _SHORTEST_S)
            served = _present(recorded, tried, 1, 1, cpus)
            is_more = np.percentile(served.wait_s + served.work_s + recorded.receive_s + recorded.send_s, rank) > wanted
            low, high = (low, middle) if is_more else (middle, high)
        if 1 / _LIKE_CPU < tried[1].mean() / recorded.cpu_s < _LIKE_CPU:
            found.append(tried)
    return found


def _most_alone(paths: Any, took: Floats, alone: Any, rank: float = 100.0) -> Floats:
    """Return what each request took, or what those of its route took that had nearly nobody beside them (the longest).

    Threads get the GIL by luck: what one took for being unlucky is no work of its own.
    """
    most = np.full(len(took), np.inf)
    for path in np.unique(paths):
        own = paths == path
        those = took[own & alone]
        if len(those) >= _LEAST_ALONE:
            most[own] = np.percentile(those, rank)
    return np.asarray(np.minimum(took, most))


def _during(values: Floats, begin: Floats, end: Floats, times: Floats, process: Any) -> Floats:
    """Return the integral of a value of each process over the work of each of its requests."""
    until = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values[:, :-1] * np.diff(times), axis=1)], axis=1)
    found = np.empty(len(begin))
    for one in range(len(values)):
        own = process == one
        found[own] = np.interp(end[own], times, until[one]) - np.interp(begin[own], times, until[one])
    return found


def _shares(recorded: Recorded, begin: Floats, end: Floats, times: Floats, busy: Floats, cpus: float) -> list[Shares]:
    """Return the shares by which work depends least on who was beside it, the best first of those that fit as well."""
    # How many were there when it began: that does not depend on its own work, as how many came meanwhile does.
    beside = busy[recorded.process, np.searchsorted(times, begin, side="right") - 1]
    edges = np.unique(np.quantile(beside, np.linspace(0, 1, _GROUPS + 1)))
    group = np.clip(np.searchsorted(edges, beside, side="right") - 1, 0, max(len(edges) - 2, 0))
    # By chance alone the groups differ by about as much as this.
    spread = float(np.std(np.log(np.maximum(end - begin, _SHORTEST_S))))
    chance = spread / np.sqrt(len(begin) / max(len(edges) - 1, 1))

    tried: list[tuple[float, Shares]] = []
    for shares in _TOGETHER if recorded.is_engine else _SHARED:
        own = _own(shares, begin, end, times, busy, recorded.process, cpus)
        if recorded.is_engine or _fits_cpu(shares, float(own.mean()), recorded.cpu_s):
            tried.append((_misfit(own, recorded.path, group), shares))
    if not tried:
        return [Shares(0.0, 0.0)]
    tried.sort()
    return [shares for misfit, shares in tried if misfit <= tried[0][0] + chance / 2]


def _fits_cpu(shares: Shares, own_s: float, cpu_s: float | None) -> bool:
    """Return whether shares agree with the CPU time of the process, some of which is for no request's own work."""
    if cpu_s is None:
        return True
    on_cpu = shares.serial + shares.parallel
    least = min(1.0, (_OF_REQUESTS * cpu_s - _BESIDE_S) / own_s)
    return least - _STEP <= on_cpu and (on_cpu - _STEP) * own_s <= cpu_s


def _misfit(own: Floats, path: Any, group: Any) -> float:
    """Return by how much the logarithm of the work differs between groups of requests, beyond their routes."""
    logs = np.log(own)
    for one in np.unique(path):
        logs[path == one] -= np.median(logs[path == one])
    counts = np.bincount(group)
    medians = np.array([np.mean(logs[group == one]) if count else 0.0 for one, count in enumerate(counts)])
    overall = float((medians * counts).sum() / counts.sum())
    return float(np.sqrt((counts * (medians - overall) ** 2).sum() / counts.sum()))


def _batches(recorded: Recorded) -> tuple[Batches, Floats] | None:
    """Return how the batches were made that requests were in; None where too few can be told apart."""
    known = ~np.isnan(recorded.batch)
    end = recorded.start_s + recorded.duration_s - recorded.send_s - recorded.work_s["postprocess"]
    begin = end - recorded.work_s["inference"]
    ready = begin - recorded.wait_s
    sizes, took, gaps, delays = [], [], [], []  # after the batch before, and after the first request came
    for process in range(recorded.processes):
        own = np.flatnonzero(known & (recorded.process == process))
        own = own[np.argsort(begin[own])]
        before = -np.inf
        for group in np.split(own, np.flatnonzero(np.diff(begin[own]) > _SAME_BATCH_S) + 1):
            if not len(group):
                continue
            since = float(begin[group].min())
            sizes.append(float(recorded.batch[group].max()))
            took.append(float(recorded.work_s["inference"][group].max()))
            gaps.append(since - before)
            delays.append(since - float(ready[group].min()))
            before = since + took[-1]
    if len(sizes) < _LEAST_BATCHES:
        return None
    size, time = np.array(sizes), np.array(took)
    each, fixed = np.polyfit(size, time, 1) if len(np.unique(size)) > 1 else (0.0, float(time.mean()))
    fixed, each = max(float(fixed), 1e-6), max(float(each), 0.0)
    gap, delay, is_full = np.array(gaps), np.array(delays), size == size.max()
    # A batch that is not full has waited for as long as it may: since it was taken up, or since its first request came.
    taken_up, came = np.minimum(gap, delay)[~is_full], delay[~is_full]
    from_first = len(came) >= _LEAST_FULL and _spread(came) < _spread(taken_up)
    behind = gap[is_full & (gap < delay)]
    gather = float(behind.mean()) if len(behind) >= _LEAST_FULL else 0.0
    wait = float(np.median(came if from_first else taken_up)) if len(came) >= _LEAST_FULL else gather
    spread = time / (fixed + each * size)
    return Batches(int(size.max()), wait, from_first, gather, fixed, each), spread


def _spread(values: Floats) -> float:
    """Return how far values lie from each other: the middle half of them."""
    return float(np.subtract(*np.percentile(values, (75, 25))))
