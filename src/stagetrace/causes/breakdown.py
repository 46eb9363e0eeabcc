"""Work out the breakdown of one request: its stages, and what the sources recorded, as nanoseconds by part."""

from __future__ import annotations

from dataclasses import dataclass
from threading import get_native_id
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.causes import cause
from stagetrace.causes.breakdown_by_stage import (
    WAITS,
    Section,
    add,
    at_most,
    fit,
    queue_part,
    remote_stages,
    sections_of,
    with_marked,
)
from stagetrace.causes.cause import Breakdown
from stagetrace.policy.verdict import overlap
from stagetrace.request.exchange import NOT_HERE
from stagetrace.request.stages import NOTHING
from stagetrace.semconv import (
    CPU_TIME_MS,
    ML_BATCH_SIZE,
    ML_COLD_START,
    ML_MODEL_RECOGNISED,
    QUEUE,
    QUEUE_BLOCKED_BY,
    QUEUE_REASON,
)
from stagetrace.sources import gc_pauses, thread_cpu
from stagetrace.system.import_hooks import finder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from stagetrace.causes.breakdown_by_stage import Cells, Measurements
    from stagetrace.request.stages import Segment

    Interval = tuple[int, int]
    LoopShare = tuple[int, int, thread_cpu.Share]  # begin and end of a part of a loop's time, and how that divides


RIVALS: Final = 0.5  # the share of a blocked time that other threads must have computed to be what it waited for
EXPLAINS: Final = 0.25  # of another wait


@dataclass
class _Sections:
    """How the time of sections divides, in nanoseconds: what the thread did, and what delayed it."""

    computed: int = 0
    waited: int = 0  # for a CPU
    locked: int = 0  # blocked by other threads of the process
    blocked: int = 0  # in a system call: a socket, a file, a sleep, a subprocess
    late: int = 0  # able to run and not running, for an unknown reason
    for_gil: int = 0  # of `locked`, what waiting for the GIL explains at most
    is_contended: bool = False  # whether threads wanted the GIL while the request was handed over

    @property
    def otherwise(self) -> int:
        """For how long other things than the GIL and CPUs blocked or delayed the sections."""
        return self.blocked + self.late + self.locked - self.for_gil

    def add_sections(self, sections: Iterable[Section], waits: list[Interval]) -> None:
        """Add these sections; `waits` are waits with a known reason."""
        for section in _outermost(sections):
            if section.share is not None:
                self._add_section(section.share, overlap([(section.start, section.end)], waits))

    def _add_section(self, share: thread_cpu.Share, explained: int) -> None:
        blocked = max(share.blocked - explained, 0)
        self.computed += share.computed
        self.waited += max(share.waited - max(explained - share.blocked, 0), 0)  # it may lack a CPU in such a wait
        # At most so long it waited for another thread, of that for the GIL.
        lock = blocked if share.for_threads is None else min(int(share.for_threads * share.blocked), blocked)
        gil = min(share.turns * thread_cpu.gil_turn_ns(), lock)
        self.blocked += blocked - lock
        if share.rivals < RIVALS * gil:
            # The thread that held the GIL lacked a CPU as this one did, in proportion to what it computed.
            short = int(min(gil - share.rivals, _for_each(share) * share.rivals))
            self.waited += short
            gil, lock = gil - short, lock - short
        if share.rivals >= RIVALS * gil:
            self.locked += gil
            self.for_gil += gil
            lock -= gil
        if share.for_threads is None:
            self.blocked += lock  # by anything
        else:
            self._add_lock(lock, share)

    def _add_lock(self, took: int, share: thread_cpu.Share) -> None:
        """Add a wait for another thread: for what that computes, unless it was itself blocked."""
        if share.rivals >= RIVALS * took:
            self.locked += took
        elif share.natives >= RIVALS * took:
            self.computed += took  # as by the threads of a BLAS, while this thread waits for them
        else:
            self.blocked += took

    def explained(self) -> int:
        """Return how much of the time has a known part."""
        return self.computed + self.waited + self.locked + self.blocked

    def collect(self, runs: _Collected) -> int:
        """Subtract runs of the garbage collector from the parts that have them; return how much was found there.

        One in the section's own thread was computed, one elsewhere kept the GIL from it. While the section waited for
        anything else, a run elsewhere has not delayed it.
        """
        computed, locked = min(runs.here, self.computed), min(runs.elsewhere, self.locked)
        self.computed -= computed
        self.locked -= locked
        self.for_gil = min(self.for_gil, self.locked)
        return computed + locked

    def add_wake_up(self, took: int, lacked: int) -> dict[str, int]:
        """Add the wake-up latency of a free thread, or of the event loop that takes the request back; return its parts.

        The thread could not run: it lacked a CPU, for `lacked` ns where that is known, or the GIL: where other threads
        wanted that, or the sections lacked it more than anything else.
        """
        if lacked == thread_cpu.UNKNOWN:
            lacked = took if self.waited > max(self.for_gil, self.otherwise) else 0
        lacked = min(lacked, took)
        self.waited += lacked
        if self.is_contended or self.for_gil > self.otherwise:
            self.locked += took - lacked
            self.for_gil += took - lacked
            return {cause.CPU_WAIT: lacked, cause.LOCK_WAIT: took - lacked}
        self.late += took - lacked
        return {cause.CPU_WAIT: lacked, cause.UNKNOWN: took - lacked}

    def add_suspended(self, took: int, suspended: _Suspended) -> None:
        """Add `took` ns in which the request was in no section, by what the event loop did meanwhile."""
        idle = min(suspended.idle, took)
        waited = min(suspended.waited, took - idle)
        for_gil = min(suspended.for_gil, took - idle - waited)
        self.blocked += idle
        self.waited += waited
        self.locked += for_gil
        self.for_gil += for_gil
        self.late += took - idle - waited - for_gil

    def delayed_by(self, waited: int) -> str | None:
        """Return the part that delayed the sections for longer than they computed, to explain another wait; or None."""
        kept = max(self.for_gil, self.waited)
        if kept <= max(self.computed, self.otherwise, EXPLAINS * waited):
            return None
        return cause.LOCK_WAIT if self.for_gil > self.waited else cause.CPU_WAIT


@dataclass
class _Suspended:
    """What the event loop did while a request was in none of its sections, in nanoseconds."""

    known: int = 0  # how much of these times CPU samples of the loop cover
    idle: int = 0  # at least: in this time the loop did not delay the request
    waited: int = 0  # for a CPU, at most; as evenly as that may be
    for_gil: int = 0

    @classmethod
    def of(cls, times: Sequence[Interval], shares: Sequence[LoopShare]) -> _Suspended:
        """Return what the calling thread, in which the request ends now, did in these times, by its CPU samples."""
        found = cls()
        for begin, end, share in shares if times else ():
            if share.waited == thread_cpu.UNKNOWN or begin >= end:
                continue
            within = overlap(times, [(begin, end)])
            if not within:
                continue
            found.known += within
            for_gil = share.for_gil
            found.idle += max(within - (end - begin - share.blocked + for_gil), 0)
            found.waited += share.waited * within // (end - begin)
            found.for_gil += for_gil * within // (end - begin)
        return found


def _is_contended(times: Sequence[Interval], shares: Iterable[LoopShare]) -> bool:
    """Return whether other threads that run Python computed for most of these times, by the loop's CPU samples."""
    known = held = 0
    for begin, end, share in shares if times else ():
        within = overlap(times, [(begin, end)]) if begin < end else 0
        known += within
        held += within and min(share.rivals, end - begin) * within // (end - begin)
    return held >= RIVALS * known > 0


def _for_each(share: thread_cpu.Share) -> float:
    """Return how long a thread has waited for a CPU for what it computed."""
    return share.waited / share.computed if share.computed else 0.0


class _Unexplained(NamedTuple):
    """A wait in the socket without a known event loop blocker, and how long the garbage collector stopped its end."""

    stage: str
    begin: int
    end: int
    here: int  # in the thread that was to read it
    elsewhere: int


class _Waits:
    """Where the request did not work itself: these times have their parts; the rest of its time is its own."""

    def __init__(self, measured: Measurements, shares: Sequence[LoopShare]) -> None:
        self._measured = measured
        self._shares = shares
        self.cells: Cells = {}
        self.times: list[Interval] = []  # in other stages than its own, perhaps within a section
        self.own: dict[str, list[Interval]] = {}  # by stage
        self.wake_ups: list[tuple[int, int]] = []  # how long, and for how much of that a CPU was lacking
        self.unexplained: list[_Unexplained] = []  # in the socket, without a known event loop blocker
        self._queued: dict[str, int] = {}  # nanoseconds of POOL_WAIT, by `queue.reason`

    def add(self, segment: Segment) -> None:
        """Add a stage of the request."""
        if segment.stage == QUEUE:
            self.times.append((segment.start, segment.end))
            self._add_queue(segment)
        elif segment.stage in WAITS:
            self._add_transfer(segment)
        else:
            self._add_own(segment.stage, segment.start, segment.end)

    def _add_own(self, stage: str, begin: int, end: int) -> None:
        if begin < end:
            self.own.setdefault(stage, []).append((begin, end))

    def _add_queue(self, wait: Segment) -> None:
        begin, end, part = wait.start, wait.end, queue_part(wait)
        if part == cause.SOCKET_WAIT:
            self._add_socket(wait.stage, begin, end, is_explained=QUEUE_BLOCKED_BY in wait.attributes)
            return
        if part == cause.POOL_WAIT:
            reason = wait.attributes.get(QUEUE_REASON, "")
            self._queued[reason] = self._queued.get(reason, 0) + end - begin
            for since, until, lacked in self._measured.wakeups:
                if since < end and begin < until:
                    over = max(since, begin)  # the thread was asked for just before the stage
                    collected = gc_pauses.paused_ns(over, end)  # which stopped the free thread
                    add(self.cells, cause.GC, QUEUE, collected)
                    self.wake_ups.append((end - over - collected, lacked))
                    end = over
        # A collection while no thread is free, or no batch full, has stopped no thread of this request's.
        add(self.cells, part, QUEUE, end - begin)

    def _add_socket(self, stage: str, begin: int, end: int, *, is_explained: bool) -> None:
        """Add a wait for the thread that was to read the socket: the calling one, of an event loop or a worker."""
        here = elsewhere = 0
        for since, until, thread in gc_pauses.pauses(begin, end):
            if thread == get_native_id():
                here += until - since
            else:
                elsewhere += until - since
        if elsewhere:
            elsewhere = min(elsewhere, self.loop_in([(begin, end)]).for_gil)
        add(self.cells, cause.GC, stage, here + elsewhere)
        add(self.cells, cause.SOCKET_WAIT, stage, end - begin - here - elsewhere)
        if not is_explained:
            self.unexplained.append(_Unexplained(stage, begin, end, here, elsewhere))

    def loop_in(self, times: Sequence[Interval]) -> _Suspended:
        """Return what the loop did in these times."""
        return _Suspended.of(times, self._shares)

    def words_of_queues(self) -> Mapping[str, str]:
        """Return the words for the wait in queues, if those of its part are not those of most of it."""
        took = max(self._queued, key=lambda reason: self._queued[reason], default="")
        return {cause.POOL_WAIT: cause.WAITS_FOR[took]} if took in cause.WAITS_FOR else NOTHING

    def add_behind(self, known: Sequence[Interval]) -> Mapping[str, str]:
        """Add the times in which other work blocked the loop, but for those of which more is `known`.

        Return the words for that wait, if it is most of the wait for the loop.
        """
        others: dict[str, int] = {}
        for begin, end, other in self._measured.behind:
            others[other] = others.get(other, 0) + end - begin
        if not others:
            return NOTHING
        behind = 0
        for stage, times in self.own.items():
            idle = _without(times, known)
            found = _without(idle, _without(idle, [(begin, end) for begin, end, _ in self._measured.behind]))
            self.own[stage] = _without(times, found)
            took = sum(end - begin for begin, end in found)
            add(self.cells, cause.SOCKET_WAIT, stage, took)
            behind += took
        if 2 * behind <= sum(self.cells.get(cause.SOCKET_WAIT, NOTHING).values()):
            return NOTHING
        return {cause.SOCKET_WAIT: f"while the event loop was blocked by {max(others, key=lambda one: others[one])}"}

    def loop_wake_up(self, own: list[Interval]) -> int:
        """Return the wake-up latency of the event loop: for how long it did not take the request back."""
        took = 0
        for since, until, lacked in self._measured.wakeups:
            if lacked == thread_cpu.UNKNOWN:
                found = overlap(own, [(since, until)])
                took += max(found - gc_pauses.paused_ns(since, until), 0)
        return took

    def all_own(self) -> list[Interval]:
        """Return the times in which the request works itself, in all stages."""
        return sorted(one for times in self.own.values() for one in times)

    def _add_transfer(self, segment: Segment) -> None:
        """Add a send or receive: what waited for the peer, what lay in the socket meanwhile, and the rest as own."""
        measured, stage = self._measured, segment.stage
        at, whole = segment.start, segment.end
        peer = [(at, whole)] if measured.peer_waits is None else measured.peer_waits
        peer = () if measured.fits_buffer(stage) else peer
        # While other work blocked the loop, nobody waited for the peer.
        here = [(begin, end) for begin, end, _ in (*measured.socket_waits, *measured.behind)]
        kept = [(WAITS[stage], begin, end, True) for begin, end in _without(peer, here)]
        kept += [(cause.SOCKET_WAIT, begin, end, is_explained) for begin, end, is_explained in measured.socket_waits]
        for part, begin, end, is_explained in sorted(kept, key=lambda one: one[1:]):
            begin, end = max(begin, at), min(end, whole)  # noqa: PLW2901
            if begin < end:
                self._add_own(stage, at, begin)
                self.times.append((begin, end))
                if part == cause.SOCKET_WAIT:
                    self._add_socket(stage, begin, end, is_explained=is_explained)
                else:
                    add(self.cells, part, stage, end - begin)
                at = end
        self._add_own(stage, at, whole)

    def divide_unexplained(self, divided: _Sections) -> int:
        """Divide the waits in the socket by what delayed a loop that no known request blocked; return the GIL's time.

        By the CPU samples of its own thread; where there are none, by what delayed the request's sections.
        """
        loop, for_gil = self.loop_in([(one.begin, one.end) for one in self.unexplained]), 0
        for one in self.unexplained:
            whole = one.end - one.begin
            left = whole - one.here - one.elsewhere
            parts: dict[str, int] = {}
            if loop.known:
                lacked = min(loop.waited * whole // loop.known, left)
                kept = max(loop.for_gil * whole // loop.known - one.elsewhere, 0)
                parts = {cause.CPU_WAIT: lacked, cause.LOCK_WAIT: min(kept, left - lacked)}
            elif (part := divided.delayed_by(left)) is not None:
                parts = {part: left}
            for part, took in parts.items():
                if took > 0:
                    add(self.cells, part, one.stage, took)
                    self.cells[cause.SOCKET_WAIT][one.stage] -= took
            for_gil += parts.get(cause.LOCK_WAIT, 0)
        return for_gil


def breakdown_of(
    segments: Sequence[Segment],
    measured: Measurements,
    model: Mapping[str, Any] = NOTHING,
    within: Interval | None = None,
) -> Breakdown:
    """Return the breakdown of a request with these stages, and attributes of its model.

    `within`: only that interval is measured.
    """
    shares = measured.loop_shares(segments[0].start, segments[-1].end) if segments else []
    waits = _Waits(measured, shares)
    stages: dict[str, int] = {}
    for segment in segments:
        waits.add(segment)
        stages[segment.stage] = stages.get(segment.stage, 0) + segment.end - segment.start
    divided = _Sections(is_contended=_is_contended([(begin, end) for begin, end, _ in measured.wakeups], shares))
    calls = sorted((begin, end) for _, begin, end in measured.calls)
    sections = sections_of(measured, within)
    divided.add_sections(sections, sorted([*calls, *waits.times]))
    remote = list(remote_stages(segments, sections))
    for _, computed, waited in remote:
        divided.computed += computed
        divided.waited += waited
    known = [*calls, *((one.start, one.end) for one in sections), *((one.start, one.end) for one, _, _ in remote)]
    phrases = {**waits.words_of_queues(), **waits.add_behind(known)}
    own = waits.all_own()
    found = _own_parts(divided, waits, own, calls, sections, [one for one, _, _ in remote])
    for_gil = divided.for_gil + waits.divide_unexplained(divided)
    times = {part: sum(by_stage.values()) for part, by_stage in waits.cells.items()}
    for part, took in found.items():
        times[part] = times.get(part, 0) + took
    runs = sorted((begin, end) for begin, end, _ in gc_pauses.pauses(own[0][0], own[-1][1])) if own else []
    near = at_most(waits.own, with_marked(sections, measured.computed), remote, calls, runs)
    totals = {stage: sum(end - begin for begin, end in own) for stage, own in waits.own.items()}
    cells = fit(near, found, totals)
    for part, by_stage in waits.cells.items():
        for stage, ns in by_stage.items():
            add(cells, part, stage, ns)
    return Breakdown(
        {part: int(took) for part, took in times.items() if took > 0},
        model.get(ML_BATCH_SIZE),
        bool(model.get(ML_COLD_START)),
        for_gil,
        model.get(ML_MODEL_RECOGNISED, True),
        stages,
        cells,
        *finder.imported_in([(one.start, one.end, one.thread.thread) for one in sections]),
        phrases=phrases,
    )


def _own_parts(
    divided: _Sections,
    waits: _Waits,
    own: list[Interval],
    calls: list[Interval],
    sections: list[Section],
    remote: Sequence[Segment],
) -> dict[str, int]:
    """Return how `own` divides, the time in which the request works itself; its wake-ups are added to the queue."""
    whole = sum(end - begin for begin, end in own)
    downstream = overlap(own, calls)
    rest = max(whole - downstream - divided.explained(), 0)
    back = min(waits.loop_wake_up(own), rest)
    rest -= back
    elsewhere = [(one.start, one.end) for one in remote]
    covered = [(section.start, section.end) for section in sections]
    suspended = waits.loop_in(_without(own, [*calls, *covered, *elsewhere]))
    reported = [(one.start, one.end) for one in remote if CPU_TIME_MS in one.attributes]
    reported += [(one.start, one.end) for one in sections if one.thread.thread == NOT_HERE]
    runs = _collect_runs(_without(own, [*calls, *reported]), [one for one in sections if one.share is not None])
    found = divided.collect(runs)
    awaited = min(runs.awaited + runs.here, max(rest - suspended.idle, 0))
    in_queue = [divided.add_wake_up(took, lacked) for took, lacked in waits.wake_ups]
    divided.add_wake_up(back, thread_cpu.UNKNOWN)
    divided.add_suspended(rest - awaited, suspended)
    parts = {
        cause.DOWNSTREAM: downstream,
        cause.CPU_WAIT: divided.waited,
        cause.GC: found + awaited,
        cause.COMPUTE: divided.computed,
        cause.LOCK_WAIT: divided.locked,
        cause.IO_WAIT: divided.blocked,
        cause.UNKNOWN: divided.late,
    }
    for wake_up in in_queue:
        for part, took in wake_up.items():
            parts[part] -= took
            add(waits.cells, part, QUEUE, took)
    shown = sum(parts.values())
    if shown > whole:  # several threads worked at once: each has its share of the time that passed
        parts = {part: took * whole // shown for part, took in parts.items()}
    return parts


class _Collected(NamedTuple):
    """For how long the garbage collector ran during times of a request, in nanoseconds."""

    here: int  # in a section of the thread that ran it
    elsewhere: int  # in another thread's section
    awaited: int  # in no section


def _collect_runs(times: Sequence[Interval], sections: Collection[Section]) -> _Collected:
    here = elsewhere = awaited = 0
    for begin, end, thread in gc_pauses.pauses(times[0][0], times[-1][1]) if times else ():
        within = [(max(since, begin), min(until, end)) for since, until in times if since < end and begin < until]
        own = overlap(within, [(one.start, one.end) for one in sections if one.thread.thread == thread])
        known = overlap(within, [(one.start, one.end) for one in sections])
        here += own
        elsewhere += known - own
        awaited += sum(until - since for since, until in within) - known
    return _Collected(here, elsewhere, awaited)


def _without(times: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    """Return what of `times`, which do not overlap, lies within none of the others."""
    found = []
    others = sorted(others)
    for begin, end in sorted(times):
        at = begin
        for since, until in others:
            if until > at and since < end:
                found.append((at, since))
                at = until
        found.append((at, end))
    return [(begin, end) for begin, end in found if begin < end]


def _outermost(sections: Iterable[Section]) -> list[Section]:
    """Return the sections that are not a part of another on the same thread."""
    found: list[Section] = []
    for section in sections:
        if not any(other.thread is section.thread and section.end <= other.end for other in found):
            found.append(section)
    return found
