"""Simulate processes that serve requests: at most so many at once in each, slower the more there are (discrete events).

Within a process all go equally fast (processor sharing with a speed that depends on their number). One event is an
arrival or the end of a request's work; a process keeps how much work each of its requests has been given since it
began, so that an event costs a step in a heap and not a pass over all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from stagetrace.analysis.arrays import Floats

_NEVER = float("inf")
_MOMENT_S = 1e-5


@dataclass(frozen=True)
class Station:
    """What requests are served by: `processes`, each with its own queue unless they share one."""

    processes: int
    limit: int | None  # requests at work at once in a process
    speeds: Sequence[float]  # of each of 0, 1, 2 ... requests at work in a process
    on_cpu: float  # share of the work that needs a CPU
    cpus: float
    after_s: float = 0.0  # until a process takes its next request, once it is done with one
    shared: bool = False  # requests wait for whichever process is free first
    most: int | None = None  # requests in a process, at work or waiting, beyond which one is refused
    visits: int = 1  # how often a request waits for a place: all but the first time it needs that for a moment


@dataclass(frozen=True)
class Served:
    """Of each request: how long it waited, and how long it was at work, in seconds; NaN where it was refused."""

    wait_s: Floats
    work_s: Floats
    taken: float  # places of all processes that were taken on average: by requests, and until the next one
    used_cpus: float  # on average


def serve(  # noqa: C901, PLR0912, PLR0915 -- one loop, a few microseconds a request
    station: Station,
    arrive_s: Floats,
    own_s: Floats,
    process: Sequence[int],
    *,
    free: Sequence[bool] | None = None,
    taken_until: Sequence[tuple[float, int]] = (),
) -> Served:
    """Return how requests fare that arrive in that order and need `own_s` of work.

    `process`: which one takes each. `free`: those that are at work at once, whatever the limit. `taken_until`: until
    when places of processes are taken by requests that came before, which are not there.
    """
    arrivals, needs = arrive_s.tolist(), own_s.tolist()
    count, processes = len(arrivals), station.processes
    limit = station.limit or count + 1
    speeds, last = station.speeds, len(station.speeds) - 1
    on_cpu, cpus, after = station.on_cpu, station.cpus, station.after_s
    outside = 1 - on_cpu
    coupled = processes > 1 and on_cpu > 0
    came, begun = list(arrivals), [0.0] * count
    waited, worked = [0.0] * count, [0.0] * count
    more = [station.visits - 1] * count
    refused: list[int] = []
    waiting: list[deque[int]] = [deque() for _ in range(1 if station.shared else processes)]
    working: list[list[tuple[float, int]]] = [[] for _ in range(processes)]  # when the work given is enough, request
    given = [0.0] * processes  # work that each request there has been given
    speed = [1.0] * processes
    taken = [0] * processes  # places taken in each: at work, or resting after a request
    area = cpu_area = now = 0.0
    place = 0
    resting = sorted(taken_until)  # when a process is ready for the next request
    for _, of in resting:
        taken[of] += 1
    while True:
        # The next event: an arrival, the end of a rest, or of the work of some request.
        when, what, of = (arrivals[place], 0, 0) if place < count else (_NEVER, 0, 0)
        if resting and resting[0][0] < when:
            when, what, of = resting[0][0], 1, resting[0][1]
        for one in range(processes):
            jobs = working[one]
            if jobs:
                at = now + (jobs[0][0] - given[one]) / speed[one]
                if at <= when:
                    when, what, of = at, 2, one
        if when == _NEVER:
            break
        step = when - now
        if step > 0:
            for one in range(processes):
                jobs = working[one]
                if jobs:
                    given[one] += speed[one] * step
                    cpu_area += len(jobs) * speed[one] * step
            area += sum(taken) * step
            now = when
        if what == 0:
            request = place
            place += 1
            of = process[request]
            if station.shared:
                of = min(range(processes), key=taken.__getitem__)
            queue = waiting[0 if station.shared else of]
            if (
                station.most is not None
                and taken[of] + len(queue) / (processes if station.shared else 1) >= station.most
            ):
                refused.append(request)
                continue
            if free is not None and free[request]:
                begun[request] = now
                heappush(working[of], (given[of] + needs[request], request))
            else:
                queue.append(request)
        elif what == 1:
            heappop(resting)
            taken[of] -= 1
        else:
            done = heappop(working[of])[1]
            worked[done] += now - begun[done]
            if free is None or not free[done]:
                if more[done]:
                    more[done] -= 1
                    came[done], needs[done] = now, _MOMENT_S
                    waiting[0 if station.shared else of].append(done)
                if after > 0:
                    heappush(resting, (now + after, of))
                else:
                    taken[of] -= 1
        queue = waiting[0 if station.shared else of]
        while queue and taken[of] < limit:
            request = queue.popleft()
            begun[request] = now
            waited[request] += now - came[request]
            taken[of] += 1
            heappush(working[of], (given[of] + needs[request], request))
        if coupled:
            plain = [speeds[min(len(jobs), last)] for jobs in working]
            needed = on_cpu * sum(len(jobs) * one for jobs, one in zip(working, plain, strict=True)) / cpus
            short = needed if needed > 1 else 1.0
            speed = plain if short == 1 else [1 / (outside + (1 / one - outside) * short) for one in plain]
        else:
            speed[of] = speeds[min(len(working[of]), last)]
    wait, work = np.array(waited), np.array(worked)
    wait[refused] = work[refused] = np.nan
    length = max(now, 1e-9)
    return Served(wait, work, area / length, on_cpu * cpu_area / length)


@dataclass(frozen=True)
class Batched:
    """Of each request: how long it waited for its batch, and how long that took; and which share the model was busy."""

    wait_s: Floats
    work_s: Floats
    busy: float


@dataclass(frozen=True)
class Batches:
    """How batches of requests are made, one after another: one of n takes `fixed_s` + n * `each_s`."""

    most: int  # requests in one
    wait_s: float  # for more of them
    from_first: bool  # it waits from the arrival of the first request on, else from when it takes that
    gather_s: float  # until it begins, after the one before, where more requests wait than it takes
    fixed_s: float
    each_s: float


def batch(batches: Batches, ready_s: Floats, spread: Floats, free_s: float = 0.0) -> Batched:
    """Return how requests fare that become ready in this order; `spread`: factors by which batches took longer.

    `free_s`: when the model is free.
    """
    most, wait_s, fixed_s, each_s = batches.most, batches.wait_s, batches.fixed_s, batches.each_s
    ready, factors = ready_s.tolist(), spread.tolist()
    count, place, number, free, busy = len(ready), 0, 0, free_s, 0.0
    waits, works = [0.0] * count, [0.0] * count
    while place < count:
        first = ready[place]
        taken = max(free, first)
        until = max(taken, (first if batches.from_first else taken) + wait_s)
        end = place + 1
        while end < count and end - place < most and ready[end] <= until:
            end += 1
        begin = until
        if end - place == most:
            begin = min(until, max(taken + batches.gather_s if taken == free else taken, ready[end - 1]))
        took = (fixed_s + (end - place) * each_s) * factors[number % len(factors)]
        for one in range(place, end):
            waits[one], works[one] = begin - ready[one], took
        free, place, number, busy = begin + took, end, number + 1, busy + took
    length = max(free - ready[0], 1e-9)
    return Batched(np.array(waits), np.array(works), busy / length)
