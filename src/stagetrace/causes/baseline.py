"""Learn what requests of a route normally take, in constant memory, from some of those that meet their objective."""

from __future__ import annotations

import threading
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from stagetrace import semconv
from stagetrace.policy.verdict import DISCONNECT, ERROR, FIRST_CHUNK, FIRST_TOKEN, PER_CHUNK, PER_TOKEN, over_budget
from stagetrace.semconv import NETWORK_RETRANSMITS, NETWORK_RTT_MS, NETWORK_UNACKED_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.causes.cause import Baseline, Breakdown, Cause
    from stagetrace.policy.verdict import Missed, Verdict
    from stagetrace.sources.machine import Meter, Rise

MAX_ROUTES: Final = 256
MAX_SIZES: Final = 16
KEPT: Final = 256  # durations of a route, for its p99
ENOUGH_FOR_P99: Final = 100
LEAST_P99_NS: Final = 5_000_000  # a shorter one is rounded up to this: a shorter stall makes no request late
ENOUGH: Final = 20  # requests make a baseline
LEARNED_FROM_EACH: Final = 64  # after ENOUGH requests, one of this many is learned from,
LEARNED_AFTER_NS: Final = 500_000_000  # and none this soon after the last one: learning costs more than recording
SLOW: Final = 1.5  # a request that takes so many times its baseline is slow
WEIGHT: Final = 0.05  # of a request, among those before it

# The time in question, where it is not the whole request's.
_OF_INTERVAL: Final = {
    FIRST_CHUNK: "the time until then",
    PER_CHUNK: "the gap",
    FIRST_TOKEN: "the time until then",
    PER_TOKEN: "the time of all tokens",
}

Route = tuple["str | None", str]
K = TypeVar("K")


class _Means:
    """Means of what requests took, weighted towards the latest."""

    __slots__ = ("by_stage", "count", "size", "stages", "times")

    def __init__(self) -> None:
        self.count = 0
        self.times: dict[str, float] = {}
        self.stages: dict[str, float] = {}
        self.by_stage: dict[tuple[str, str], float] = {}  # by part and stage
        self.size: float | None = None

    def add(self, breakdown: Breakdown) -> None:
        """Add one request."""
        self.count += 1
        weight = max(1 / self.count, WEIGHT)
        _move(self.times, breakdown.times, weight)
        _move(self.stages, breakdown.stages, weight)
        cells = {(part, stage): ns for part, stages in breakdown.by_stage.items() for stage, ns in stages.items()}
        _move(self.by_stage, cells, weight)
        if breakdown.size is not None:
            self.size = breakdown.size if self.size is None else self.size + weight * (breakdown.size - self.size)

    def baseline(self) -> Baseline | None:
        """Return the baseline; None where too few requests were added."""
        if self.count < ENOUGH:
            return None
        from stagetrace.causes.cause import Baseline

        return Baseline(dict(self.times), self.size, dict(self.stages), dict(self.by_stage))


def _move(means: dict[K, float], took: Mapping[K, float], weight: float) -> None:
    """Move means towards what a request took."""
    for key in means.keys() | took.keys():
        before = means.get(key, 0.0)
        means[key] = before + weight * (took.get(key, 0) - before)


class Baselines:
    """The baselines of routes, and of sizes of their input in powers of two."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._routes: dict[Route, dict[int | None, _Means]] = {}
        # Read without the lock: a miscount does no harm.
        self._seen: dict[Route, int] = {}
        self._learned_at: dict[Route, int] = {}
        self._usual_ns: dict[Route, float] = {}
        self._durations: dict[Route, deque[int]] = {}
        self._slow_ns: dict[Route, int] = {}

    def is_of_interest(self, route: Route, start: int, end: int) -> bool:
        """Return whether to read what only explains a good request: one that is slow, or is to be learned from."""
        return self.is_slow(route, end - start) or self.wants(route, end)

    def is_slow(self, route: Route, took_ns: int) -> bool:
        """Return whether a request took much longer than the baseline of its route; so where that is unknown."""
        usual_ns = self._usual_ns.get(route)
        return usual_ns is None or took_ns > SLOW * usual_ns

    def wants(self, route: Route, now: int) -> bool:
        """Return whether to learn from this request, which ended at `now`: the first ones of a route, then a few."""
        seen = self._seen.get(route, 0)
        if not seen:
            return len(self._seen) < MAX_ROUTES
        if seen < 2 * ENOUGH:
            return True
        return not (seen % LEARNED_FROM_EACH or 0 <= now - self._learned_at.get(route, 0) < LEARNED_AFTER_NS)

    def add(self, route: Route, now: int, breakdown: Breakdown | None) -> None:
        """Count a request that met its objective and ended at `now`, and learn from its breakdown, if there is one."""
        seen = self._seen.get(route, 0)
        if not seen and len(self._seen) >= MAX_ROUTES:
            return
        self._seen[route] = seen + 1
        if breakdown is None:
            return
        self._learned_at[route] = now
        read_meters()
        with self._lock:
            self._learn_p99(route, sum(breakdown.times.values()))
            by_size = self._routes.setdefault(route, {})
            for key in (None, _bucket(breakdown.size)) if breakdown.size is not None else (None,):
                if key in by_size or len(by_size) <= MAX_SIZES:
                    by_size.setdefault(key, _Means()).add(breakdown)
            overall = by_size.get(None)
            if overall is not None and overall.count >= ENOUGH:
                self._usual_ns[route] = sum(overall.times.values())

    def _learn_p99(self, route: Route, took_ns: int) -> None:
        durations = self._durations.setdefault(route, deque(maxlen=KEPT))
        durations.append(took_ns)
        if len(durations) >= ENOUGH_FOR_P99:
            self._slow_ns[route] = max(sorted(durations)[int(len(durations) * 0.99)], LEAST_P99_NS)

    def slow_ns(self, route: Route) -> int | None:
        """Return the p99 of good requests of a route, in nanoseconds; None where too few are known."""
        return self._slow_ns.get(route)

    def slow_routes(self) -> dict[Route, int]:
        """Return the p99 of all routes of which it is known."""
        return self._slow_ns.copy()

    def of(self, route: Route, size: int | None) -> tuple[Baseline | None, Baseline | None]:
        """Return the baseline of a route, and that of inputs of this size, as far as they are known."""
        with self._lock:
            by_size = self._routes.get(route, {})
            means = by_size.get(None), by_size.get(_bucket(size)) if size is not None else None
            overall, of_this_size = (one.baseline() if one is not None else None for one in means)
            return overall, of_this_size

    def stages(self, route: Route) -> Mapping[str, float]:
        """Return what the stages of good requests of a route normally take, in nanoseconds; empty where not known."""
        with self._lock:
            means = self._routes.get(route, {}).get(None)
            return dict(means.stages) if means is not None and means.count >= ENOUGH else {}

    def explain(
        self, route: Route, verdict: Verdict, breakdown: Breakdown, attributes: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the attributes of a breach's cause, besides those of its verdict and `attributes`."""
        missed = verdict.missed
        if missed is None or missed.bound in (DISCONNECT, ERROR):
            return {}
        from stagetrace.causes.cause import GC

        read_meters()
        found: dict[str, Any] = {semconv.breach_part_ms(part): took / 1e6 for part, took in breakdown.times.items()}
        if breakdown.times.get(GC):
            found[semconv.GC_PAUSE_MS] = breakdown.times[GC] / 1e6
        if verdict.peer is not None or verdict.stage is None:
            return found  # the verdict has the cause
        # Learned is what whole requests take, not a wait for a chunk.
        baselines = self.of(route, breakdown.size) if missed.end_ns is None else (None, None)
        stage, cause, text = _blame_stage(verdict, missed, breakdown, baselines)
        verdict = verdict._replace(stage=stage, stage_ns=breakdown.stages.get(stage, verdict.stage_ns))
        text = verdict.evidence(missed) + text
        text += connection_evidence(cause, attributes or {}) + host_evidence(cause)
        if stage == semconv.HANDLER and not breakdown.is_recognised:
            text += "; no model was recognised"
        found[semconv.SLA_BREACH_CAUSE] = cause.word
        found[semconv.SLA_BREACH_STAGE] = stage
        found[semconv.SLA_BREACH_EVIDENCE] = text
        return found


def _blame_stage(
    verdict: Verdict, missed: Missed, breakdown: Breakdown, baselines: tuple[Baseline | None, Baseline | None]
) -> tuple[str, Cause, str]:
    """Return the stage to blame, the cause, and the evidence for it: all three from the breakdown of that stage.

    The stage that exceeds its budget, where there are budgets, has its own cause. Else the cause is the request's, and
    lies in the stage; where that stage shows another one, the evidence is the request's, and says so.
    """
    from stagetrace.causes.cause import MIXED, cause_of, evidence, stage_of

    over_ns = missed.excess_ns
    over = over_budget(verdict.objective, breakdown.stages) if missed.end_ns is None else ()
    expected = baselines[1] or baselines[0]
    cause = cause_of(breakdown, over_ns, *baselines)
    stage = over[0] if over else stage_of(cause, breakdown, expected) or verdict.stage or ""
    took = breakdown.stages.get(stage, 0)
    if over:
        over_ns = took - dict(verdict.objective.stages)[stage]
    part, usual = breakdown.within(stage), [one and one.within(stage) for one in baselines]
    in_stage = cause_of(part, min(over_ns, took), *usual)
    if over or (cause.word != MIXED and in_stage.part == cause.part):
        cause = in_stage if over else cause
        return stage, cause, f": {evidence(part, cause, usual[1] or usual[0])}"
    of_all = _OF_INTERVAL.get(missed.bound) or f"the request's {missed.took_ns / 1e6:.1f} ms"
    return stage, cause, f"; of {of_all}: {evidence(breakdown, cause, expected)}"


def _bucket(size: int) -> int:
    return size.bit_length()


# --- Add host pressure and page faults to the evidence, where they bear on the cause.

LEAST_SHARE: Final = 0.01  # of the time, to be reported


@cache
def _meters() -> tuple[Meter, Meter, Meter]:
    """Return the meters of the machine's pressure, the container's quota and page faults."""
    from stagetrace.sources import machine, page_faults

    return machine.pressure, machine.quota, page_faults.major_faults


def read_meters() -> None:
    """Read the meters now and then, so that their rise after a breach is that of the last few seconds."""
    for meter in _meters():
        meter.tick()


def host_evidence(cause: Cause) -> str:
    """Return what bears on this cause, to be appended to the evidence; often nothing."""
    from stagetrace.causes.cause import COLD_START, CPU_WAIT, IO_WAIT, MIXED, UNKNOWN

    pressure, quota, major_faults = _meters()
    if cause.word == CPU_WAIT:
        return of_cpus(pressure.rise(), quota.rise())
    is_of_disks = cause.word in (COLD_START, IO_WAIT, MIXED, UNKNOWN)
    return of_disks(major_faults.rise()) if is_of_disks else ""


def of_cpus(pressure: Rise | None, quota: Rise | None) -> str:
    """Return for how much of the last seconds the machine lacked CPUs, and the quota held this container."""
    text = ""
    if pressure is not None and pressure.by >= LEAST_SHARE * pressure.within:
        share = min(pressure.by / pressure.within, 1.0)
        text = f"; in {share:.0%} of the last {pressure.within / 1e9:.0f} s something on this machine waited for a CPU"
    if quota is not None and quota.by:
        text += (
            f"; the CPU quota held this container for {quota.by / 1e6:.0f} ms in the last {quota.within / 1e9:.0f} s"
        )
    return text


def of_disks(loads: Rise | None) -> str:
    """Return how many page faults of this process waited for a disk."""
    if loads is None or not loads.by:
        return ""
    return f"; {loads.by} page faults of this process waited for a disk in the last {loads.within / 1e9:.0f} s"


def connection_evidence(cause: Cause, attributes: Mapping[str, Any]) -> str:
    """Return the entry span's attributes of the client's connection in words, to be appended to the evidence."""
    from stagetrace.causes.cause import SLOW_DOWNLOAD, SLOW_UPLOAD

    if cause.word not in (SLOW_DOWNLOAD, SLOW_UPLOAD) or NETWORK_RTT_MS not in attributes:
        return ""
    phrases = [f"round trip to the client {attributes[NETWORK_RTT_MS]:.1f} ms"]
    if attributes.get(NETWORK_RETRANSMITS):
        phrases.append(f"{attributes[NETWORK_RETRANSMITS]} segments retransmitted")
    if cause.word == SLOW_DOWNLOAD and attributes.get(NETWORK_UNACKED_BYTES):
        phrases.append(f"{attributes[NETWORK_UNACKED_BYTES]} bytes unacknowledged at the end")
    return f"; {', '.join(phrases)}"
