"""Work out the breakdown of one request: its stages, and what the sources recorded, as nanoseconds by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stagetrace.recording.segments import NOTHING
from stagetrace.semconv import (
    ML_BATCH_SIZE,
    ML_COLD_START,
    ML_MODEL_RECOGNISED,
    QUEUE,
    QUEUE_BLOCKED_BY,
)
from stagetrace.sla import cause
from stagetrace.sla.breakdown_by_stage import WAITS, Section, queue_part, remote_stages, sections_of, times_by_stage
from stagetrace.sla.cause import Breakdown
from stagetrace.sla.verdict import overlap
from stagetrace.sources import gc_pauses, loops, thread_cpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from stagetrace.recording.segments import Segment
    from stagetrace.sla.breakdown_by_stage import Measurements

    Interval = tuple[int, int]


RIVALS: Final = 0.5  # of the time blocked, computed by other threads meanwhile: they held what it waited for
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
        """What blocked or delayed the sections, apart from the GIL and CPUs."""
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
            self.computed += took  # by the threads of a BLAS, say, while this one waits until they are done
        else:
            self.blocked += took

    def explained(self) -> int:
        """Return how much of the time has a known part."""
        return self.computed + self.waited + self.locked + self.blocked

    def collect(self, collected: int) -> int:
        """Subtract the time of the garbage collector from the part that has it; return how much was found there."""
        # Another thread may have run it, and held the GIL meanwhile; else it has computed in this one.
        left = collected
        for name in ("locked", "computed") if self.locked >= self.computed else ("computed", "locked"):
            found: int = min(getattr(self, name), left)
            setattr(self, name, getattr(self, name) - found)
            left -= found
        self.for_gil = min(self.for_gil, self.locked)
        return collected - left

    def add_wake_up(self, took: int, lacked: int) -> None:
        """Add the wake-up latency of a free thread, or of the event loop that takes the request back.

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
        else:
            self.late += took - lacked

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
    def of(cls, times: list[Interval]) -> _Suspended:
        """Return what the calling thread, in which the request ends now, did in these times."""
        found = cls()
        if not times:
            return found
        for begin, end, share in loops.recent_shares(times[0][0], times[-1][1]):
            if share.waited == thread_cpu.UNKNOWN or begin >= end:
                continue
            within = overlap(times, [(begin, end)])
            found.known += within
            for_gil = min(share.turns * thread_cpu.gil_turn_ns(), share.blocked, share.rivals)
            found.idle += max(within - (end - begin - share.blocked + for_gil), 0)
            found.waited += share.waited * within // (end - begin)
            found.for_gil += for_gil * within // (end - begin)
        return found


def _is_contended(times: list[Interval]) -> bool:
    """Return whether other threads that run Python computed for most of these times, by the loop's CPU samples."""
    known = held = 0
    for begin, end, share in loops.recent_shares(min(times)[0], max(times)[1]) if times else ():
        within = overlap(times, [(begin, end)]) if begin < end else 0
        known += within
        held += within and min(share.rivals, end - begin) * within // (end - begin)
    return held >= RIVALS * known > 0


def _for_each(share: thread_cpu.Share) -> float:
    """Return how long a thread has waited for a CPU for what it computed."""
    return share.waited / share.computed if share.computed else 0.0


def breakdown_of(segments: Sequence[Segment], measured: Measurements, model: Mapping[str, Any] = NOTHING) -> Breakdown:
    """Return the breakdown of a request with these stages, and attributes of its model."""
    times: dict[str, int] = {}
    own: list[Interval] = []
    waits: list[Interval] = []  # in other stages, perhaps within a section
    wake_ups: list[tuple[int, int]] = []  # how long, and for how much of that a CPU was lacking
    unexplained: list[Interval] = []  # in the socket, without a known event loop blocker
    for segment in segments:
        times_of = (segment.start, segment.end)
        if segment.stage == QUEUE:
            waits.append(times_of)
            if _add_queue(times, segment, measured.wakeups, wake_ups):
                unexplained.append(times_of)
        elif segment.stage in WAITS:
            _add_transfer(times, segment, measured, own, waits, unexplained)
        else:
            own.append(times_of)
    divided = _Sections(is_contended=_is_contended([(begin, end) for begin, end, _ in measured.wakeups]))
    calls = [(begin, end) for _, begin, end in measured.calls]
    sections = sections_of(measured.cpu_samples)
    divided.add_sections(sections, sorted([*calls, *waits]))
    covered = [(section.start, section.end) for section in sections]
    remote = list(remote_stages(segments, sections))
    for segment, computed, waited in remote:
        divided.computed += computed
        divided.waited += waited
        covered.append((segment.start, segment.end))
    suspended = _Suspended.of(_without(own, [*calls, *covered]))
    others = _of_own(own, divided, sorted(calls), wake_ups, _loop_wake_up(own, measured.wakeups), suspended)
    for_gil = divided.for_gil
    for part, kept in _loop_delays(unexplained, divided):
        times[cause.SOCKET_WAIT] = times.get(cause.SOCKET_WAIT, 0) - kept
        _add(times, part, kept)
        for_gil += kept if part == cause.LOCK_WAIT else 0
    for part, took in others.items():
        _add(times, part, took)
    times = {part: took for part, took in times.items() if took > 0}
    is_first, is_recognised = bool(model.get(ML_COLD_START)), model.get(ML_MODEL_RECOGNISED, True)
    stages: dict[str, int] = {}
    for segment in segments:
        _add(stages, segment.stage, segment.end - segment.start)
    by_stage = times_by_stage(segments, measured, sections, remote)
    return Breakdown(times, model.get(ML_BATCH_SIZE), is_first, for_gil, is_recognised, stages, by_stage)


def _loop_delays(unexplained: list[Interval], divided: _Sections) -> Iterator[tuple[str, int]]:
    """Yield what delayed, and for how long, an event loop that no known request blocked.

    By the CPU samples of its own thread; where there are none, by what delayed the request's sections.
    """
    loop = _Suspended.of(unexplained)
    for begin, end in unexplained:
        took = end - begin - gc_pauses.paused_ns(begin, end)
        if took <= 0:
            continue
        if loop.known:
            lacked = min(loop.waited * (end - begin) // loop.known, took)
            yield cause.CPU_WAIT, lacked
            yield cause.LOCK_WAIT, min(loop.for_gil * (end - begin) // loop.known, took - lacked)
        elif (part := divided.delayed_by(took)) is not None:
            yield part, took


def _add_queue(
    times: dict[str, int], wait: Segment, wakeups: Iterable[tuple[int, int, int]], wake_ups: list[tuple[int, int]]
) -> bool:
    """Add a wait in a queue, and its wake-ups; return whether it was in the socket without a known reason."""
    begin, end = wait.start, wait.end
    part = queue_part(wait)
    if part == cause.POOL_WAIT:
        for since, until, lacked in wakeups:
            if since < end and begin < until:
                over = max(since, begin)  # the thread was asked for just before the stage
                wake_ups.append((_uncollected(times, over, end), lacked))
                end = over
    took = end - begin if part == cause.BATCH_WAIT else _uncollected(times, begin, end)
    _add(times, part, took)
    return part == cause.SOCKET_WAIT and QUEUE_BLOCKED_BY not in wait.attributes


def _add_transfer(
    times: dict[str, int],
    segment: Segment,
    measured: Measurements,
    own: list[Interval],
    waits: list[Interval],
    unexplained: list[Interval],
) -> None:
    """Add a send or receive: what waited for the peer, what lay in the socket meanwhile, and the rest as own work."""
    at, whole = segment.start, segment.end
    peer = [(at, whole)] if measured.peer_waits is None else measured.peer_waits
    peer = () if measured.fits_buffer(segment.stage) else peer
    in_socket = [(begin, end) for begin, end, _ in measured.socket_waits]
    kept = [(WAITS[segment.stage], begin, end, True) for begin, end in _without(peer, in_socket)]
    kept += [(cause.SOCKET_WAIT, begin, end, is_explained) for begin, end, is_explained in measured.socket_waits]
    for part, begin, end, is_explained in sorted(kept, key=lambda one: one[1:]):
        begin, end = max(begin, at), min(end, whole)  # noqa: PLW2901
        if begin < end:
            own.append((at, begin))
            waits.append((begin, end))
            took = _uncollected(times, begin, end) if part == cause.SOCKET_WAIT else end - begin
            _add(times, part, took)
            if not is_explained:
                unexplained.append((begin, end))
            at = end
    own.append((at, whole))


def _uncollected(times: dict[str, int], begin: int, end: int) -> int:
    """Add the garbage collection within a wait, which stops the thread that would end it; return the rest of it."""
    collected = min(gc_pauses.paused_ns(begin, end), end - begin)
    _add(times, cause.GC, collected)
    return end - begin - collected


def _add(times: dict[str, int], part: str, took: int) -> None:
    if took > 0:
        times[part] = times.get(part, 0) + took


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


def _loop_wake_up(own: list[Interval], wakeups: Iterable[tuple[int, int, int]]) -> int:
    """Return the wake-up latency of the event loop: for how long it did not take the request back."""
    took = 0
    for since, until, lacked in wakeups:
        if lacked == thread_cpu.UNKNOWN:
            found = overlap(own, [(since, until)])
            took += max(found - gc_pauses.paused_ns(since, until), 0)
    return took


def _of_own(
    own: list[Interval],
    divided: _Sections,
    called: list[Interval],
    wake_ups: Iterable[tuple[int, int]],
    back: int,
    suspended: _Suspended,
) -> dict[str, int]:
    """Return how the request's own stages and its wake-ups divide; that of `back` lies within these stages."""
    whole = sum(end - begin for begin, end in own)
    downstream = overlap(own, called)
    collected = min(sum(gc_pauses.paused_ns(begin, end) for begin, end in own), whole)
    rest = max(whole - downstream - divided.explained(), 0)
    back = min(back, rest)
    rest -= back
    found = divided.collect(collected)
    awaited = min(collected - found, rest)  # in no section
    for took, lacked in (*wake_ups, (back, thread_cpu.UNKNOWN)):
        divided.add_wake_up(took, lacked)
    divided.add_suspended(rest - awaited, suspended)
    return {
        cause.DOWNSTREAM: downstream,
        cause.CPU_WAIT: divided.waited,
        cause.GC: found + awaited,
        cause.COMPUTE: divided.computed,
        cause.LOCK_WAIT: divided.locked,
        cause.IO_WAIT: divided.blocked,
        cause.UNKNOWN: divided.late,
    }


def _outermost(sections: Iterable[Section]) -> list[Section]:
    """Return the sections that are not a part of another on the same thread."""
    found: list[Section] = []
    for section in sections:
        if not any(other.thread is section.thread and section.end <= other.end for other in found):
            found.append(section)
    return found
