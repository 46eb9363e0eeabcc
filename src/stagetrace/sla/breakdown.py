"""Work out how the time of one request divides into what causes can be told by: its stages, and what sources noted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stagetrace.semconv import (
    ML_BATCH_SIZE,
    ML_COLD_START,
    ML_MODEL_RECOGNISED,
    QUEUE,
    QUEUE_BLOCKED_BY,
)
from stagetrace.sla import cause
from stagetrace.sla.breakdown_by_stage import WAITS, elsewhere, places_of, queue_part
from stagetrace.sla.cause import Parts
from stagetrace.sla.verdict import overlap
from stagetrace.sources import gc_pauses, loops, thread_cpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any, Protocol

    from stagetrace.recording.segments import Segment
    from stagetrace.sources.thread_cpu import CpuSample

    Interval = tuple[int, int]

    class Noted(Protocol):
        """What a request's timeline has, besides its stages."""

        accounts: Sequence[tuple[CpuSample, CpuSample]]
        handed: Sequence[tuple[int, int, int]]
        calls: Sequence[tuple[str, int, int]]
        peer_waits: Sequence[Interval] | None
        socket_waits: Sequence[tuple[int, int, bool]]

        def is_quick(self, activity: str) -> bool: ...  # noqa: D102

        model: Mapping[str, Any]


RIVALS: Final = 0.5  # of the time blocked, computed by other threads meanwhile: they had what it waited for
EXPLAINS: Final = 0.25  # of another wait


@dataclass
class _Divided:
    """How the time of sections divides, in nanoseconds: what the thread did, and what it was kept by."""

    computed: int = 0
    waited: int = 0  # for a CPU
    locked: int = 0  # out by other threads of the process
    blocked: int = 0  # in a system call: a socket, a file, a sleep, a subprocess
    late: int = 0  # able to run and not running, for a reason that nothing tells
    for_gil: int = 0  # of `locked`, what waiting for the GIL explains at most
    is_contended: bool = False  # whether threads wanted the GIL while the request was handed over

    @property
    def otherwise(self) -> int:
        """What the sections were blocked by that keeps nobody else out."""
        return self.blocked + self.late + self.locked - self.for_gil

    def add_sections(self, accounts: Sequence[tuple[CpuSample, CpuSample]], waits: list[Interval]) -> None:
        """Add the sections with these accounts; `waits` are for what is told otherwise."""
        for first, last in _outermost(accounts):
            share = thread_cpu.between(first, last)
            if share is not None and share.waited != thread_cpu.UNKNOWN:
                self._add_section(share, overlap([(first[thread_cpu.AT], last[thread_cpu.AT])], waits))

    def _add_section(self, share: thread_cpu.Share, told: int) -> None:
        blocked = max(share.blocked - told, 0)
        self.computed += share.computed
        self.waited += max(share.waited - max(told - share.blocked, 0), 0)  # it may lack a CPU within such a wait
        # At most as long it waited for another thread, of that for the GIL.
        lock = blocked if share.for_threads is None else min(int(share.for_threads * share.blocked), blocked)
        gil = min(share.turns * thread_cpu.gil_turn_ns(), lock)
        self.blocked += blocked - lock
        if share.rivals < RIVALS * gil:
            # Who held the GIL has lacked a CPU like this thread: so much for what was computed.
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
        """Add a wait for another thread: for what that computes, unless it was itself blocked by something."""
        if share.rivals >= RIVALS * took:
            self.locked += took
        elif share.natives >= RIVALS * took:
            self.computed += took  # by the threads of a BLAS, say, while this one waits until they are done
        else:
            self.blocked += took

    def told(self) -> int:
        """Return what of the time is told."""
        return self.computed + self.waited + self.locked + self.blocked

    def collect(self, collected: int) -> int:
        """Take the time of the garbage collector out of what it was counted as; return how much was found there."""
        # Another thread may have run it, and held the GIL meanwhile; else it has computed in this one.
        left = collected
        for name in ("locked", "computed") if self.locked >= self.computed else ("computed", "locked"):
            found: int = min(getattr(self, name), left)
            setattr(self, name, getattr(self, name) - found)
            left -= found
        self.for_gil = min(self.for_gil, self.locked)
        return collected - left

    def add_hand_over(self, took: int, lacked: int) -> None:
        """Add the time that it took a free thread to take the request up, or the event loop to take it back.

        It could not run: for want of a CPU, which is `lacked` where that is known, or of the GIL: where that was in
        demand, or the sections were in want of it more than of anything else.
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
        """Add time in which the request was in no section, `took` in all; most is known of what the loop was idle."""
        idle = min(suspended.idle, took)
        waited = min(suspended.waited, took - idle)
        for_gil = min(suspended.for_gil, took - idle - waited)
        self.blocked += idle
        self.waited += waited
        self.locked += for_gil
        self.for_gil += for_gil
        self.late += took - idle - waited - for_gil

    def kept_from(self, waited: int) -> str | None:
        """Return what kept the sections for longer than they computed, which explains another wait; else None."""
        kept = max(self.for_gil, self.waited)
        if kept <= max(self.computed, self.otherwise, EXPLAINS * waited):
            return None
        return cause.LOCK_WAIT if self.for_gil > self.waited else cause.CPU_WAIT


@dataclass
class _Suspended:
    """What the event loop did while a request was in none of its sections, in nanoseconds."""

    known: int = 0  # of how much of these times there are accounts
    idle: int = 0  # at least: so long the request cannot have been kept by the loop
    waited: int = 0  # for a CPU, at most; as evenly as that may be
    for_gil: int = 0

    @classmethod
    def of(cls, times: list[Interval]) -> _Suspended:
        """Return it for these times, of a request that ends now in the calling thread."""
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
    """Return whether other threads that run Python computed for most of these times, by what is known of the loop's."""
    known = held = 0
    for begin, end, share in loops.recent_shares(min(times)[0], max(times)[1]) if times else ():
        within = overlap(times, [(begin, end)]) if begin < end else 0
        known += within
        held += within and min(share.rivals, end - begin) * within // (end - begin)
    return held >= RIVALS * known > 0


def _for_each(share: thread_cpu.Share) -> float:
    """Return how long a thread has waited for a CPU for what it computed."""
    return share.waited / share.computed if share.computed else 0.0


def parts_of(segments: Sequence[Segment], noted: Noted) -> Parts:
    """Return how the request's time divides."""
    times: dict[str, int] = {}
    own: list[Interval] = []
    waits: list[Interval] = []  # in other stages, perhaps within a section
    overs: list[tuple[int, int]] = []  # hand-overs: how long, and how much of that a CPU was lacking
    unheld: list[Interval] = []  # in the socket, and nobody known was in the way
    for segment in segments:
        times_of = (segment.start, segment.end)
        if segment.stage == QUEUE:
            waits.append(times_of)
            if _add_queue(times, segment, noted.handed, overs):
                unheld.append(times_of)
        elif segment.stage in WAITS:
            _add_passing(times, segment, noted, own, waits, unheld)
        else:
            own.append(times_of)
    divided = _Divided(is_contended=_is_contended([(begin, end) for begin, end, _ in noted.handed]))
    calls = [(begin, end) for _, begin, end in noted.calls]
    divided.add_sections(noted.accounts, sorted([*calls, *waits]))
    sections = [(first[thread_cpu.AT], last[thread_cpu.AT]) for first, last in noted.accounts]
    for segment, computed, waited in elsewhere(segments, noted.accounts):
        divided.computed += computed
        divided.waited += waited
        sections.append((segment.start, segment.end))
    suspended = _Suspended.of(_without(own, [*calls, *sections]))
    others = _of_own(own, divided, sorted(calls), overs, _handed_back(own, noted.handed), suspended)
    for_gil = divided.for_gil
    for part, kept in _kept_out(unheld, divided):
        times[cause.SOCKET_WAIT] = times.get(cause.SOCKET_WAIT, 0) - kept
        _add(times, part, kept)
        for_gil += kept if part == cause.LOCK_WAIT else 0
    for part, took in others.items():
        _add(times, part, took)
    times = {part: took for part, took in times.items() if took > 0}
    model = noted.model
    is_first, is_recognised = bool(model.get(ML_COLD_START)), model.get(ML_MODEL_RECOGNISED, True)
    stages: dict[str, int] = {}
    for segment in segments:
        _add(stages, segment.stage, segment.end - segment.start)
    places = places_of(segments, noted)
    return Parts(times, model.get(ML_BATCH_SIZE), is_first, for_gil, is_recognised, stages, places)


def _kept_out(unheld: list[Interval], divided: _Divided) -> Iterator[tuple[str, int]]:
    """Yield by what, and for how long, an event loop was kept from taking the request up that nobody is known to hold.

    Its own thread's accounts tell; where there are none, what kept the request's sections is taken for that.
    """
    loop = _Suspended.of(unheld)
    for begin, end in unheld:
        took = end - begin - gc_pauses.paused_ns(begin, end)
        if took <= 0:
            continue
        if loop.known:
            lacked = min(loop.waited * (end - begin) // loop.known, took)
            yield cause.CPU_WAIT, lacked
            yield cause.LOCK_WAIT, min(loop.for_gil * (end - begin) // loop.known, took - lacked)
        elif (part := divided.kept_from(took)) is not None:
            yield part, took


def _add_queue(
    times: dict[str, int], wait: Segment, handed: Iterable[tuple[int, int, int]], overs: list[tuple[int, int]]
) -> bool:
    """Add a wait in a queue, and its hand-overs; return whether it was in the socket without a known reason."""
    begin, end = wait.start, wait.end
    part = queue_part(wait)
    if part == cause.POOL_WAIT:
        for since, until, lacked in handed:
            if since < end and begin < until:
                over = max(since, begin)  # it was asked for just before the stage
                overs.append((_uncollected(times, over, end), lacked))
                end = over
    took = end - begin if part == cause.BATCH_WAIT else _uncollected(times, begin, end)
    _add(times, part, took)
    return part == cause.SOCKET_WAIT and QUEUE_BLOCKED_BY not in wait.attributes


def _add_passing(
    times: dict[str, int],
    segment: Segment,
    noted: Noted,
    own: list[Interval],
    waits: list[Interval],
    unheld: list[Interval],
) -> None:
    """Add a send or receive: what waited for the other side, what lay in the socket meanwhile, and the rest as own."""
    at, whole = segment.start, segment.end
    peer = () if noted.is_quick(segment.stage) else [(at, whole)] if noted.peer_waits is None else noted.peer_waits
    lain = [(begin, end) for begin, end, _ in noted.socket_waits]
    kept = [(WAITS[segment.stage], begin, end, True) for begin, end in _without(peer, lain)]
    kept += [(cause.SOCKET_WAIT, begin, end, is_told) for begin, end, is_told in noted.socket_waits]
    for part, begin, end, is_told in sorted(kept, key=lambda one: one[1:]):
        begin, end = max(begin, at), min(end, whole)  # noqa: PLW2901
        if begin < end:
            own.append((at, begin))
            waits.append((begin, end))
            took = _uncollected(times, begin, end) if part == cause.SOCKET_WAIT else end - begin
            _add(times, part, took)
            if not is_told:
                unheld.append((begin, end))
            at = end
    own.append((at, whole))


def _uncollected(times: dict[str, int], begin: int, end: int) -> int:
    """Return how long a wait was apart from garbage collection, which stops whoever would end it and is added."""
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


def _handed_back(own: list[Interval], handed: Iterable[tuple[int, int, int]]) -> int:
    """Return for how long the event loop did not take the request back."""
    took = 0
    for since, until, lacked in handed:
        if lacked == thread_cpu.UNKNOWN:
            found = overlap(own, [(since, until)])
            took += max(found - gc_pauses.paused_ns(since, until), 0)
    return took


def _of_own(
    own: list[Interval],
    divided: _Divided,
    called: list[Interval],
    hand_overs: Iterable[tuple[int, int]],
    back: int,
    suspended: _Suspended,
) -> dict[str, int]:
    """Return how the request's own stages divide, and its hand-overs; that of `back` lies within these stages."""
    whole = sum(end - begin for begin, end in own)
    downstream = overlap(own, called)
    collected = min(sum(gc_pauses.paused_ns(begin, end) for begin, end in own), whole)
    rest = max(whole - downstream - divided.told(), 0)
    back = min(back, rest)
    rest -= back
    found = divided.collect(collected)
    awaited = min(collected - found, rest)  # in no section
    for took, lacked in (*hand_overs, (back, thread_cpu.UNKNOWN)):
        divided.add_hand_over(took, lacked)
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


def _outermost(accounts: Sequence[tuple[CpuSample, CpuSample]]) -> list[tuple[CpuSample, CpuSample]]:
    """Return the sections that are not a part of another on the same thread."""
    found: list[tuple[CpuSample, CpuSample]] = []
    # The longer of two that begin at once comes first: a reading may serve two sections that begin together.
    for first, last in sorted(accounts, key=lambda one: (one[0][thread_cpu.AT], -one[1][thread_cpu.AT])):
        if not any(other[0] is first[0] and last[thread_cpu.AT] <= until[thread_cpu.AT] for other, until in found):
            found.append((first, last))
    return found
