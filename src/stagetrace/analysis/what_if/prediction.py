"""How a service fares after a change, by simulating its model: percentiles and breaches with their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stagetrace.analysis.arrays import Floats
from stagetrace.analysis.what_if import simulation
from stagetrace.analysis.what_if.changes import Change, Goal
from stagetrace.analysis.what_if.model import GIL, ONE, WAIT_S, Model, fit
from stagetrace.analysis.what_if.recorded import Recorded, at_work, have_stages, read, since_last_start
from stagetrace.analysis.what_if.simulation import Station
from stagetrace.errors import StagetraceError

if TYPE_CHECKING:
    from stagetrace.analysis.base import Source

PERCENTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
LEAST: Final = 500  # requests
MOST_READ: Final = 8_000  # the newest requests; a second for each change that is simulated
RUNS: Final = 20
_OWN: Final = 5  # of them, at most, in which each request needs what it needed, by as many of the shares that fit
UNLIKE: Final = 0.15  # by which the present may be reproduced wrongly at p95
_WAITED: Final = 0.01  # share of their time that requests waited for or were slowed by others, at least
_OFF: Final = {"low": 1 / (1 + UNLIKE), "high": 1 + UNLIKE}  # by which the model may be off, so that intervals have it
_PIECE: Final = 50  # requests that stay together where others are drawn
_THREADS: Final = 2.0  # times its own time of CPU time, from which on a request is computed by several threads
_INTERVAL: Final = (5.0, 95.0)
UNKNOWN_CPUS: Final = 64.0  # more than a process keeps busy


@dataclass(frozen=True)
class Value:
    """A number with the interval that has it by 90 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """How requests fare, those refused excluded; durations in ms, shares from 0 to 1."""

    percentiles_ms: Mapping[str, Value]
    breaches: Value | None  # share of requests that miss their objective; None where there is none
    refused: float
    waited_ms: float  # mean
    use: Mapping[str, float]  # what may run short -> share of it in use

    @property
    def bottleneck(self) -> tuple[str, float] | None:
        """Return what is most in use."""
        return max(self.use.items(), key=lambda one: one[1], default=None)

    def measure(self, name: str) -> float | None:
        """Return the value of a percentile, in ms, or of `breaches`."""
        if name in PERCENTILES:
            return self.percentiles_ms[name].value
        return None if self.breaches is None else self.breaches.value


@dataclass(frozen=True)
class WhatIf:
    """The present of one service as recorded and as modelled, and each change; or why there is no answer."""

    service: str
    requests: int
    recorded: Outcome | None = None
    modelled: Outcome | None = None
    changes: tuple[tuple[Change, Outcome], ...] = ()  # those that reach the goal, the least first, if there is one
    model: Model | None = None
    goal: str | None = None
    refusal: str | None = None
    would_help: str | None = None

    @property
    def waits_reproduced(self) -> float | None:
        """Return the waits of the present as modelled, as a share of those recorded."""
        if self.recorded is None or self.modelled is None or not self.recorded.waited_ms:
            return None
        return self.modelled.waited_ms / self.recorded.waited_ms


@dataclass(frozen=True)
class _Run:
    duration_s: Floats  # NaN where refused
    within_s: Floats
    wait_s: Floats
    use: Mapping[str, float]


def ask(
    source: Source, service: str, changes: Sequence[Change], goal: Goal | None = None, cpus: float | None = None
) -> WhatIf:
    """Return what each change would do to a service; without any change and goal, what some usual ones would.

    `cpus`: of its machine, where that is not as recorded.
    """
    rows: Sequence[Mapping[str, Any]]
    rows = source.reduce("recorded_requests", ("path", "method"), service=service, most=MOST_READ)
    if len(rows) < LEAST:
        why = f"{len(rows)} requests are stored, and a model needs {LEAST}"
        return WhatIf(service, len(rows), refusal=why, would_help="record it under load: stagetrace bench URL")
    if any(row["weight"] != 1 for row in rows):
        why = "the store holds a sample of the requests, so what each one waited for is not there"
        return WhatIf(service, len(rows), refusal=why, would_help="some minutes with OTEL_TRACES_SAMPLER=always_on")
    if not have_stages(rows):
        why = "its spans have no stages, so what waited and what worked is not known"
        return WhatIf(service, len(rows), refusal=why, would_help="record it by stagetrace: STAGETRACE=1")
    rows = since_last_start(rows, LEAST)
    recorded = read(rows)
    since, until = rows[-1]["start_unix_nano"], rows[0]["start_unix_nano"] + 1
    pools = source.reduce("pools", service=service, since=since, until=until, one_in=1)
    return predict(service, fit(recorded, pools, cpus or recorded.cpus or UNKNOWN_CPUS), changes, goal)


def predict(
    service: str, model: Model, changes: Sequence[Change], goal: Goal | None = None, runs: int = RUNS
) -> WhatIf:
    """Return what each change would do; with a goal the least changes, one of each kind, that would reach it."""
    recorded = model.recorded
    as_recorded = _outcome([_Run(recorded.duration_s, recorded.within_s, model.wait_s, {})])
    modelled = _simulated(model, Change(), runs)
    found = WhatIf(
        service, len(recorded.start_s), as_recorded, modelled, model=model, goal=None if goal is None else goal.text
    )
    why = _cannot(model, as_recorded, modelled)
    if why is not None:
        return replace(found, refusal=why[0], would_help=why[1])
    changes = changes or ([] if goal is not None else list(_usual(model)))
    for change in changes:
        _check(model, change)
    tried = [(change, _simulated(model, change, runs)) for change in changes]
    return replace(found, changes=tuple(tried if goal is None else _least(model, goal, runs)))


def _cannot(model: Model, recorded: Outcome, modelled: Outcome) -> tuple[str, str] | None:
    """Return why the model cannot tell, and what would help; None if it can."""
    own = model.recorded
    if model.slowed < _WAITED:
        why = f"its requests waited for or were slowed by each other for {100 * model.slowed:.1f} % of their time only"
        return why, "record it under more load: stagetrace bench URL"
    p95, was = modelled.percentiles_ms["p95"].value, recorded.percentiles_ms["p95"].value
    if abs(p95 / was - 1) > UNLIKE:
        why = f"the model gives a p95 of {p95:.3g} ms for the present, and {was:.3g} ms were recorded"
        return why, f"record it under a steady load, of {own.per_s:.3g} requests/s or less"
    return None


def _check(model: Model, change: Change) -> None:
    """Raise StagetraceError for a change of what these requests do not show."""
    if change.threads is not None and not model.has_pool:
        raise StagetraceError("no request waited for a thread of a pool, so what more or fewer would do is not known")
    if (change.batch_size is not None or change.batch_wait_s is not None) and model.batches is None:
        raise StagetraceError("no request waited for a batch, so what other batches would do is not known")
    if (change.workers or 0) > model.recorded.processes and _computes_beside(model):
        raise StagetraceError(
            "its model computes with threads of its own, and what several workers do to each other by that is not known"
        )
    if change.off_loop and model.pool != ONE:
        raise StagetraceError("the requests of this service do not hold an event loop: there is nothing to move")
    known = {stage for stage, took in model.recorded.work_s.items() if took.any()}
    if lacking := change.stages.keys() - known:
        raise StagetraceError(f"no request has stage {min(lacking)!r}\nthere are {', '.join(sorted(known))}")
    paths = set(model.recorded.path)
    if lacking := set(change.off_loop) - paths:
        raise StagetraceError(f"there is no request {min(lacking)!r}\nthere are {', '.join(sorted(paths))}")


def _computes_beside(model: Model) -> bool:
    """Return whether requests use more CPU time than one thread can in the time that they take alone."""
    cpu_s = model.recorded.cpu_s
    return cpu_s is not None and cpu_s > _THREADS * float(model.own_s.mean()) and model.batches is None


def _usual(model: Model) -> Iterator[Change]:
    """Yield what people ask first."""
    if not _computes_beside(model):
        yield Change(workers=model.recorded.processes + 1)
    if model.limit is not None and model.has_pool:
        yield Change(threads=2 * model.limit)
    if model.batches is not None:
        yield Change(batch_wait_s=model.batches.wait_s / 2)
    yield Change(stages={_longest_stage(model): 0.8})
    yield Change(rate=1.5)


def _longest_stage(model: Model) -> str:
    work = model.recorded.work_s
    return max(work, key=lambda stage: float(work[stage].sum()))


def _candidates(model: Model) -> Iterator[Iterator[Change]]:
    """Yield the changes of each kind that may be tried, the least first."""
    now = model.recorded.processes
    if not _computes_beside(model):
        yield (Change(workers=now + more) for more in range(1, 9))
    if model.limit is not None and model.has_pool:
        yield (Change(threads=model.limit * times) for times in (2, 4, 8))
    if model.batches is not None:
        most, wait = model.batches.most, model.batches.wait_s
        yield (Change(batch_wait_s=wait * part) for part in (0.5, 0.25, 0.0) if wait)
        yield (Change(batch_size=most * times) for times in (2, 4))
    yield (Change(stages={_longest_stage(model): 1 - percent / 100}) for percent in (10, 20, 30, 40, 50))
    yield (Change(rate=1 - percent / 100) for percent in (10, 20, 30, 40, 50))


def _least(model: Model, goal: Goal, runs: int) -> Iterator[tuple[Change, Outcome]]:
    """Yield of each kind the least change that reaches a goal, with what it does."""
    for kind in _candidates(model):
        for change in kind:
            outcome = _simulated(model, change, runs)
            value = outcome.measure(goal.measure)
            if value is None:
                raise StagetraceError("no request of this service has an objective, so there are no breaches")
            if value < goal.below:
                yield change, outcome
                break


# --- Simulate a change some times, and what comes out.


def _simulated(model: Model, change: Change, runs: int) -> Outcome:
    own = min(_OWN, runs, len(model.plausible))
    return _outcome([_run(model, change, seed, own) for seed in range(runs)], own)


def _outcome(runs: Sequence[_Run], own: int = 1) -> Outcome:
    """Return what comes out: of the first `own` runs the median, and of all the interval."""
    measures = [_measures(run) for run in runs]
    is_recorded = len(runs) == 1

    def value(key: str) -> Value:
        found = float(np.median([one[key] for one in measures[:own]]))
        if is_recorded:
            return Value(found, found, found)
        low, high = (
            float(np.percentile([one.get(f"{key} {off}", one[key]) for one in measures], rank))
            for off, rank in zip(_OFF, _INTERVAL, strict=True)
        )
        return Value(found, low, high)

    return Outcome(
        {name: value(name) for name in PERCENTILES},
        value("breaches") if all("breaches" in one for one in measures) else None,
        value("refused").value,
        value("waited_ms").value,
        {key: float(np.median([run.use.get(key, 0.0) for run in runs])) for key in runs[0].use},
    )


def _measures(run: _Run) -> dict[str, float]:
    kept = ~np.isnan(run.duration_s)
    took = run.duration_s[kept]
    judged = kept & ~np.isnan(run.within_s)
    found: dict[str, float] = {}
    for off, times in {"": 1.0, **_OFF}.items():
        for name, rank in PERCENTILES.items():
            found[f"{name} {off}".strip()] = float(np.percentile(took, rank)) * 1e3 * times
        if judged.any():
            share = float(np.mean(run.duration_s[judged] * times > run.within_s[judged]))
            found[f"breaches {off}".strip()] = share
    found["refused"] = 1 - float(np.mean(kept))
    found["waited_ms"] = float(np.mean(run.wait_s[kept])) * 1e3
    return found


def _run(model: Model, change: Change, seed: int, own_runs: int) -> _Run:
    """Simulate the recorded requests: at first (`own_runs`) as they came, then pieces of their course."""
    recorded = model.recorded
    chance = np.random.default_rng(seed)
    count = len(recorded.start_s)
    which = np.arange(count) if seed < own_runs else _resampled(count, chance)
    times = change.rate or (1.0 if change.per_s is None else change.per_s / recorded.per_s)
    arrive = np.cumsum(np.diff(recorded.start_s, prepend=0.0)[which]) / times
    processes = change.workers or recorded.processes
    is_same = processes == recorded.processes
    process = recorded.process[which] if is_same else chance.integers(0, processes, count)
    if model.batches is not None:
        return _batched(model, change, arrive, which, process)
    fitting = len(model.plausible)
    shares, own_s = model.plausible[seed * fitting // own_runs if seed < own_runs else int(chance.integers(fitting))]
    limit = model.limit if change.threads is None else change.threads
    station = Station(
        processes=processes,
        limit=limit,
        speeds=shares.speeds(model.cpus).tolist(),
        on_cpu=shares.serial + shares.parallel,
        cpus=model.cpus,
        after_s=model.after_s,
        shared=model.has_sync_workers and not is_same,
        most=change.most_in_process,
        visits=model.visits,
    )
    own = (own_s * _left(recorded, change.stages))[which]
    free = np.isin(recorded.path[which], change.off_loop) if change.off_loop else None
    served = simulation.serve(
        station,
        arrive,
        own,
        process.tolist(),
        free=None if free is None else free.tolist(),
        taken_until=_taken_before(model) if change == Change() else (),
    )
    use = {} if model.cpus >= UNKNOWN_CPUS else {"the CPUs": served.used_cpus / model.cpus}
    if limit is not None:
        name = {ONE: "each worker", GIL: GIL}.get(model.pool or "", "the pool's threads")
        use[name] = served.taken / (processes * limit)
    if station.on_cpu and limit != 1:
        use["the GIL"] = served.used_cpus * shares.serial / station.on_cpu / processes
    rest = (recorded.receive_s + recorded.send_s)[which]
    return _Run(served.wait_s + served.work_s + rest, recorded.within_s[which], served.wait_s, use)


def _taken_before(model: Model) -> list[tuple[float, int]]:
    """Return until when the places of each process were taken by requests before the recorded ones."""
    if model.limit is None:
        return []
    found: list[tuple[float, int]] = []
    begin, _ = at_work(model.recorded)
    for process in range(model.recorded.processes):
        first = np.flatnonzero(model.recorded.process == process)[: model.limit]
        found += [(float(begin[one]), process) for one in first if model.recorded.wait_s[one] > WAIT_S]
    return found


def _resampled(count: int, chance: np.random.Generator) -> Any:
    """Return pieces of a course of requests, drawn with replacement (moving block bootstrap; Künsch, 1989)."""
    begins = chance.integers(0, count - _PIECE + 1, -(-count // _PIECE))
    return (begins[:, None] + np.arange(_PIECE)).ravel()[:count]


def _left(recorded: Recorded, stages: Mapping[str, float]) -> Floats:
    """Return which part of the work of each request a change of stages leaves."""
    total = recorded.total_work_s
    kept = np.sum([stages.get(stage, 1.0) * took for stage, took in recorded.work_s.items()], axis=0)
    return np.where(total > 0, kept / np.maximum(total, 1e-12), 1.0)


def _batched(model: Model, change: Change, arrive: Floats, which: Any, process: Any) -> _Run:
    """Simulate a service that puts its requests into batches, in each process by itself."""
    assert model.batches is not None  # noqa: S101 -- its caller has asked
    recorded, now, left = model.recorded, model.batches, change.stages
    faster = left.get("inference", 1.0)
    batches = replace(
        now,
        most=change.batch_size or now.most,
        wait_s=now.wait_s if change.batch_wait_s is None else change.batch_wait_s,
        fixed_s=now.fixed_s * faster,
        each_s=now.each_s * faster,
    )
    work = recorded.work_s
    before = recorded.receive_s + sum(
        work[stage] * left.get(stage, 1.0) for stage in ("preprocess", "handler", "other")
    )
    after = recorded.send_s + work["postprocess"] * left.get("postprocess", 1.0)
    ready = arrive + before[which]
    wait, took, busy = np.empty(len(arrive)), np.empty(len(arrive)), 0.0
    for one in np.unique(process):
        own = np.flatnonzero(process == one)
        own = own[np.argsort(ready[own], kind="stable")]
        free = float(ready[own[0]] + recorded.wait_s[which[own[0]]]) if change == Change() else 0.0
        found = simulation.batch(batches, ready[own], model.spread, free)
        wait[own], took[own] = found.wait_s, found.work_s
        busy = max(busy, found.busy)
    return _Run((before + after)[which] + wait + took, recorded.within_s[which], wait, {"the batches' model": busy})
