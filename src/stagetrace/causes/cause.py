"""Name the cause of a breach, from its breakdown and the baseline of its route: pure (docs/causes.md)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.policy import verdict
from stagetrace.semconv import INFERENCE, PREPROCESS

if TYPE_CHECKING:
    from collections.abc import Mapping


class Definition(NamedTuple):
    """One word that `sla.breach.cause` may be. The table of docs/causes.md follows from it."""

    word: str
    meaning: str  # in docs/causes.md: the part of the request's time behind it
    source: str  # in docs/causes.md: where that time is read
    phrase: str | None  # that part of the time in the evidence; None for a word that is no part of a breakdown
    is_wait: bool  # the thread of the request waits meanwhile, so that a trace draws the time as unseen
    advice: str  # how to learn more, at the end of the evidence of a breach without a line of code
    is_inferred: bool  # false: the bound that was missed is the cause


CAUSES: Final[dict[str, Definition]] = {}  # by word


def _cause(
    word: str,
    meaning: str,
    source: str,
    *,
    phrase: str | None = None,
    is_wait: bool = False,
    advice: str = "",
    is_inferred: bool = True,
) -> str:
    """Add a cause to the table and return its word."""
    CAUSES[word] = Definition(word, meaning, source, phrase, is_wait, advice, is_inferred)
    return word


# One text a line: a table.
# fmt: off
SOCKET_WAIT: Final = _cause(
    "socket_wait",
    "waiting in the socket before the server read it: an event loop or a worker was busy; `queue.blocked_by` names the blocker. Also suspended, while other work blocked the event loop that was to resume it",
    "`TCP_INFO`; the long steps of requests' tasks",
    phrase="in the socket, until the server read it",
)
POOL_WAIT: Final = _cause(
    "pool_wait",
    "waiting for a thread of a pool without a free one, for the consumer of a queue of the service's own, or for a lock or semaphore of asyncio or AnyIO that another request had",
    "the patch of the pool, of the queue, or of the lock",
    phrase="waiting for a thread",
)
BATCH_WAIT: Final = _cause(
    "batch_wait",
    "waiting for a batch to fill",
    "the patch of the batcher",
    phrase="waiting for a batch",
)
SLOW_UPLOAD: Final = _cause(
    "slow_upload",
    "waiting for the client to send the body",
    "the server's `receive` waits, and no data is in the kernel",
    phrase="waiting for the client to send the body",
)
SLOW_DOWNLOAD: Final = _cause(
    "slow_download",
    "waiting for the client to read the response",
    "the server's `send` waits, and bytes are unacknowledged; `stagetrace.network.unacked_bytes` has their number at the end",
    phrase="waiting for the client to take the response",
)
DOWNSTREAM: Final = _cause(
    verdict.DOWNSTREAM,
    "waiting for another service, `sla.breach.peer`",
    "the patches of clients",
    phrase="waiting for other services", is_wait=True,
)
CPU_WAIT: Final = _cause(
    "cpu_wait",
    "runnable, but without a CPU: the machine, or the container's quota, has too few",
    "`schedstat`",
    phrase="waiting for a CPU", is_wait=True,
)
LOCK_WAIT: Final = _cause(
    "lock_wait",
    "blocked, while threads of the process that run Python computed for at least half of that time: the GIL, or a lock that one of them held",
    "`schedstat`, CPU time of threads, the system call in which it was blocked",
    phrase="blocked while other threads of the process computed", is_wait=True,
)
IO_WAIT: Final = _cause(
    "io_wait",
    "blocked in a system call that no patch covers: a socket, a file, a sleep, a subprocess; or a lock held by a thread that waits for such a call itself",
    "the rest of a section on one thread after `schedstat`; for a suspended task, the time in which its event loop was idle",
    phrase="blocked in a socket, a file, a sleep or a subprocess", is_wait=True,
    advice='; wrap the call in `stagetrace.stage("...")`, or instrument its client, to see what it waits for',
)
GC: Final = _cause(
    "gc",
    "Python's garbage collector stopped the request's own thread, or the thread that was to take it up, while that would have run",
    "`gc.callbacks`",
    phrase="collecting garbage", is_wait=True,
)
COMPUTE: Final = _cause(
    "compute",
    "computing, longer than the baseline",
    "`schedstat`",
    phrase="computing",
)
UNKNOWN: Final = _cause(
    verdict.UNKNOWN,
    "the time has no reading",
    "",
    phrase="not explained by any reading", is_wait=True,
)
COLD_START: Final = _cause(
    "cold_start",
    "its own work, at the first call of a model in this process and before it, or while modules were imported",
    "",
)
INPUT_SIZE: Final = _cause(
    "input_size",
    "its own work, as much as an input of this size explains, which is at least twice the baseline",
    "rows of the model's input",
)
MIXED: Final = _cause(
    "mixed",
    "several causes, of which none has half of the excess; the evidence has the share of each",
    "",
)
DISCONNECT: Final = _cause(
    verdict.DISCONNECT,
    "none: the client disconnected before the end of the response, and the policy says `disconnect breach`",
    "`sla.breach.promise` is `disconnect`",
    is_inferred=False,
)
ERROR: Final = _cause(
    verdict.ERROR,
    "none: the response was an error of the server, and the policy says `errors: bad`",
    "`sla.breach.promise` is `error`",
    is_inferred=False,
)
# fmt: on

# The parts of a breakdown, and the words of the evidence for them.
PHRASES: Final = {word: one.phrase for word, one in CAUSES.items() if one.phrase is not None}
# Of a queue, by its `queue.reason`: which part it is, if not POOL_WAIT, and its words, where the part's are others.
QUEUES: Final = {"socket": SOCKET_WAIT, "batch": BATCH_WAIT}
WAITS_FOR: Final = {
    "consumer": "waiting for the consumer of a queue",
    "lock": "waiting for a lock",
    "semaphore": "waiting for a semaphore",
}
WORDS: Final = tuple(word for word, one in CAUSES.items() if one.is_inferred)
# The parts of a request's own work, and what took the CPU or the GIL from that.
OWN: Final = (COMPUTE, IO_WAIT, UNKNOWN)
CONTENTION: Final = (CPU_WAIT, LOCK_WAIT, GC)
MANY_IMPORTS: Final = 20  # modules: those that a request looks for each time, and does not find, are fewer

LARGER: Final = 2.0  # an input of so many times the baseline's size is a large one
LIKE: Final = 1.5  # its work may take so many times what its size explains
MOST: Final = 0.5  # of the excess
SHOWN: Final = 0.05  # of the duration, for the evidence


@dataclass(frozen=True, slots=True)
class Breakdown:
    """How the time of one request, or of one of its stages, divides: nanoseconds by part, of which no two overlap."""

    times: Mapping[str, int]
    size: int | None = None  # of its input
    is_first: bool = False  # call of its model in this process
    for_gil: int = 0  # of `lock_wait`, what waiting for the GIL explains at most
    is_recognised: bool = True  # false: the work looks like that of a model, and no model was recognised
    stages: Mapping[str, int] = field(default_factory=dict)  # nanoseconds by stage
    by_stage: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # part -> stage -> nanoseconds: how each stage divides, as `breakdown_by_stage.py` works it out
    imported: int = 0  # modules, by this process meanwhile
    importing: int = 0  # for how many nanoseconds, about
    phrases: Mapping[str, str] = field(default_factory=dict)  # words for parts, in place of PHRASES

    def within(self, stage: str) -> Breakdown:
        """Return the breakdown of one stage: its parts are together as long as that."""
        placed = {part: stages[stage] for part, stages in self.by_stage.items() if stages.get(stage)}
        lock = self.times.get(LOCK_WAIT)
        return replace(
            self,
            times={part: round(took) for part, took in placed.items()},
            for_gil=round(self.for_gil * placed.get(LOCK_WAIT, 0) / lock) if lock else 0,
            stages={stage: self.stages.get(stage, 0)},
            by_stage={part: {stage: took} for part, took in placed.items()},
        )


@dataclass(frozen=True, slots=True)
class Baseline:
    """What requests of a route that meet their objective normally take: nanoseconds by part."""

    times: Mapping[str, float]
    size: float | None  # of their input
    stages: Mapping[str, float] = field(default_factory=dict)
    by_stage: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by part and stage

    def within(self, stage: str) -> Baseline:
        """Return what one stage of them normally takes."""
        times = {part: took for (part, placed), took in self.by_stage.items() if placed == stage}
        return replace(self, times=times, stages={stage: self.stages.get(stage, 0.0)}, by_stage={})


NO_BASELINE: Final = Baseline({}, None)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an objective was missed, and the part of the time that shows it."""

    word: str
    part: str
    shares: Mapping[str, float] = field(default_factory=dict, compare=False)  # of the excess, by part, if it is mixed


def cause_of(
    breakdown: Breakdown, overrun_ns: int, baseline: Baseline | None = None, of_this_size: Baseline | None = None
) -> Cause:
    """Return the cause of a breach: the part that accounts for most of the excess over the baseline.

    The breakdown is that of the request, or of one stage; so are `baseline`, of the route, and `of_this_size`, of
    inputs of this size, as far as they are known. Where neither is, and for a request that takes no longer than its
    baseline, the excess is what exceeds the objective. Then computing that alone would have met the objective is no
    cause: the objective allows for it.
    """
    expected = of_this_size or baseline or NO_BASELINE
    excess = {part: ns - expected.times.get(part, 0) for part, ns in breakdown.times.items()}
    took = sum(breakdown.times.values())
    whole, allowed_ns = took - sum(expected.times.values()), took - overrun_ns
    is_usual = whole < MOST * overrun_ns
    if is_usual or not expected.times:
        excess, whole = dict(breakdown.times), overrun_ns
        if 0 < excess.get(COMPUTE, 0) <= allowed_ns:
            excess[COMPUTE] = 0
    part = max(excess, key=lambda name: excess[name], default=UNKNOWN)
    is_mixed = bool(excess) and excess[part] < MOST * whole
    if (cold := _cold_part(breakdown, excess, whole, allowed_ns)) is not None and (is_mixed or part in CONTENTION):
        return Cause(COLD_START, cold)
    if is_mixed:
        more = {name: ns for name, ns in excess.items() if ns > 0}
        return Cause(MIXED, part, {name: ns / sum(more.values()) for name, ns in more.items()})
    if part in OWN:
        if _is_cold(breakdown, part):
            return Cause(COLD_START, part)
        if _is_large(breakdown, part, baseline, explained=is_usual and of_this_size is not None):
            return Cause(INPUT_SIZE, part)
    return Cause(part, part)


def _is_cold(breakdown: Breakdown, part: str) -> bool:
    """Return whether work of this part is what a process does once: to import, to load, to call a model first."""
    if breakdown.imported >= MANY_IMPORTS and breakdown.importing >= MOST * breakdown.times.get(part, 0):
        return True
    return breakdown.is_first and (part != IO_WAIT or _is_in_model(breakdown, part))


def _cold_part(breakdown: Breakdown, excess: Mapping[str, float], whole: float, allowed_ns: int) -> str | None:
    """Return the part that has most of the work that a process does once; None if that alone is no cause.

    It is one if the request had missed its objective without contention, too, and this work had been the reason: what
    a busy machine adds to the loading of a model is none.
    """
    work = {part: ns for part in OWN if (ns := excess.get(part, 0)) > 0 and _is_cold(breakdown, part)}
    late_ns = sum(ns for part, ns in breakdown.times.items() if part not in CONTENTION) - allowed_ns
    if not work or late_ns <= 0:
        return None
    left = whole - sum(max(excess.get(part, 0), 0) for part in CONTENTION)
    return max(work, key=lambda part: work[part]) if sum(work.values()) >= MOST * max(late_ns, left) else None


def _is_in_model(breakdown: Breakdown, part: str) -> bool:
    """Return whether this part of the time lies mostly in calls of models, as far as that is known."""
    times = breakdown.by_stage.get(part)
    return not times or max(times, key=lambda stage: times[stage]) == INFERENCE


def _is_large(breakdown: Breakdown, part: str, baseline: Baseline | None, *, explained: bool) -> bool:
    """Return whether the input's size explains what this part took; `explained`: it is normal for this size."""
    if baseline is None or not baseline.size or breakdown.size is None or breakdown.size < LARGER * baseline.size:
        return False
    return explained or breakdown.times[part] <= LIKE * baseline.times.get(part, 0) * breakdown.size / baseline.size


def stage_of(cause: Cause, breakdown: Breakdown, baseline: Baseline | None = None) -> str | None:
    """Return the stage in which the cause's part of the time lies, where its excess is; None of a mixed cause."""
    placed = breakdown.by_stage.get(cause.part, {}) if cause.word != MIXED else {}
    expected = baseline.stages if baseline is not None else {}
    excess = {stage: max(breakdown.stages.get(stage, 0) - expected.get(stage, 0), 0) for stage in placed}
    return max(placed, key=lambda stage: (min(placed[stage], excess[stage]), placed[stage]), default=None)


def evidence(breakdown: Breakdown, cause: Cause, baseline: Baseline | None = None) -> str:
    """Return the parts that took the most, in words, that of the cause first; all are of the time of `breakdown`."""
    whole = sum(breakdown.times.values())
    shown = sorted(breakdown.times, key=lambda part: (part != cause.part, -breakdown.times[part]))
    phrases = [
        f"{breakdown.times[part] / 1e6:.1f} ms {breakdown.phrases.get(part, PHRASES[part])}" + _share(cause, part)
        for part in shown
        if part == cause.part or breakdown.times[part] >= SHOWN * whole
    ]
    if phrases and baseline is not None and baseline.times and cause.word != MIXED:
        phrases[0] += f" (usually {baseline.times.get(cause.part, 0) / 1e6:.1f} ms)"
    if phrases and cause.part == LOCK_WAIT:
        phrases[0] += f", of which waiting for the GIL explains at most {breakdown.for_gil / 1e6:.1f} ms"
    if cause.word == INPUT_SIZE and baseline is not None:
        phrases.append(f"an input of {breakdown.size} where {baseline.size:.0f} is usual")
    if cause.word == COLD_START:
        phrases += _of_cold_start(breakdown)
    return ", ".join(phrases)


def _share(cause: Cause, part: str) -> str:
    return f" ({cause.shares[part]:.0%} of the excess)" if part in cause.shares else ""


def _of_cold_start(breakdown: Breakdown) -> list[str]:
    phrases = []
    if breakdown.is_first:
        before = "before " if PREPROCESS in breakdown.stages and INFERENCE not in breakdown.stages else ""
        phrases.append(f"{before}the first call of its model in this process")
    if breakdown.imported >= MANY_IMPORTS:
        phrases.append(f"{breakdown.imported} modules imported meanwhile")
    return phrases
