"""Stacks of other work that a late request waits for, sampled together with its own (docs/stalls.md).

On its event loop or its thread (`blocker`), in the pool that has no thread for it (`pool`), and anywhere, computing
while it could not (`rival`). A request that waits to be read, or for a server's thread, is not known yet: what the
threads of other late requests did is kept for a while, and looked up when it ends.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.causes.code import application_place
from stagetrace.request.current import current
from stagetrace.request.in_flight import NO_CLOCKS, SEES_HOLDER, thread_state
from stagetrace.request.stalls import BLOCKER, POOL, RAN, REQUEST, RIVAL, UNKNOWN, WAITED, Stall
from stagetrace.request.working import threads_of, workers_of
from stagetrace.semconv import QUEUE, QUEUE_REASON
from stagetrace.sources import gc_pauses, process_cpu
from stagetrace.sources.coroutines import Tasks, of_coroutine
from stagetrace.sources.stacks import (
    MAX_KEPT,
    WORKER_THREADS,
    from_entry,
    is_ours,
    of_frame,
    of_greenlet,
    of_request,
    of_threads,
    of_work,
    waits_for_thread,
    work_of,
)
from stagetrace.sources.thread_cpu import AT
from stagetrace.system.bounded import copied

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextvars import Context
    from types import CodeType, FrameType

    from stagetrace.request.in_flight import Holder
    from stagetrace.request.request import Request
    from stagetrace.request.stages import Segment
    from stagetrace.sources.stacks import NamedCode, Place, Stack

MAX_RECENT: Final = 256  # stacks of threads
MAX_MEANWHILE: Final = 64  # of these, that a request takes
MAX_THREADS: Final = 64  # of a pool, which are looked at: 20 us each
MAX_LINES: Final = 4  # of a pool, or of a server's threads, at one time
LONG_NS: Final = 5_000_000  # of a wait for the GIL: threads that compute in Python give it up after as long
SHORT_NS: Final = 2_000_000  # two looks this close cannot show which thread computes
RIVAL_SHARE: Final = 5  # a function that computed for 1/n of the time is a rival: threads share the GIL, and lack CPUs
SOCKET: Final = "socket"
_STATES: Final = {"R": RAN, "S": WAITED, "D": WAITED}
SERVER_THREADS: Final = "server_threads"


class Seen(NamedTuple):
    """What a thread that serves requests did at one time, in nanoseconds since the epoch."""

    at: int
    thread: int
    stack: Stack
    gil_ns: int


_recent: deque[Seen] = deque(maxlen=MAX_RECENT)
_last_clocks: list[tuple[int, Mapping[int, int]]] = [(0, NO_CLOCKS)]  # when, and by thread; the sampler's alone


class Look:
    """One look of the sampler at all threads; each is looked at once, however many requests ask."""

    def __init__(
        self, now: int, gil_ns: int, before: Mapping[int, int] = NO_CLOCKS, holder: Holder | None = None
    ) -> None:
        """Look at `now`; the caller waited `gil_ns` for the GIL, `before` which threads had computed so much.

        `holder` had the GIL then.
        """
        self.now = now
        self.gil_ns = gil_ns
        self._holder = holder
        self.held = holder if gil_ns >= LONG_NS else None  # the thread that kept the GIL, and where it stood
        self.held_at = now if self.held is None else now - self.held.ago_ns
        self._held_work: Stack = () if self.held is None else work_of(self.held.places())[0]
        self.frames = of_threads()
        self._works: dict[int, tuple[Stack, str]] = {}
        self._noted: set[int] = set()
        self._pools: dict[int, list[Stall]] = {}
        # The rival is the thread that held the GIL; if it was free, the thread that computed most since the last look.
        self._since, first = (now - gil_ns, process_cpu.by_ident(before)) if before else _last_clocks[0]
        self._took = now - self._since
        self._computed: Mapping[int, int] = NO_CLOCKS
        if not 0 <= self._took < SHORT_NS:
            last = process_cpu.read()
            self._computed = process_cpu.computed(first, last)
            _last_clocks[0] = now, last
        most = max(self._computed, key=lambda thread: self._computed[thread], default=None) if before else None
        self._held_unseen = (
            most if self.held is None or not self.held.raw else None
        )  # the thread that had the GIL, though it was not seen

    def note_thread(self, request: Request) -> Stack:
        """Return what the thread that a request came in on does now, and keep it for those that wait for the thread."""
        thread = request.thread
        stack, _ = self._work(thread)
        if stack and thread not in self._noted:
            self._noted.add(thread)
            if self.held is not None and self._held_work and self.held.thread == thread:
                _recent.append(Seen(self.held_at, thread, self._held_work, 0))
            _recent.append(Seen(self.now, thread, stack, self.gil_ns))
        return stack

    def state_of(self, thread: int) -> int:
        """Return what a thread did at this moment."""
        if self._holder is not None and self._holder.thread == thread:
            return RAN
        known = getattr(threading, "_active", {}).get(thread)
        state = _STATES.get(thread_state(known.native_id), UNKNOWN) if known is not None else UNKNOWN
        # Else it may wait for the GIL, which it has given up for this look.
        return state if state == RAN or (SEES_HOLDER and self._holder is None) else UNKNOWN

    def held_ns(self, thread: int) -> int:
        """Return for how long a thread had the GIL before this look, as far as no sample was taken meanwhile."""
        return self.gil_ns if thread == self._held_unseen else 0

    def has_its_thread(self, request: Request) -> bool:
        """Return whether a request has its thread, or its event loop, for itself; what that does is kept for others."""
        is_busy, work = bool(self.note_thread(request)), request.work
        return is_busy and not threads_of(request) and (work is None or getattr(work, "cr_running", False))

    def in_the_way_of(self, request: Request, *, runs: bool) -> list[Stall]:
        """Return the stacks of what is in a request's way now; `runs`: some of its own code does."""
        found = []
        on_thread = self.note_thread(request)
        if self._is_blocked(request):
            found.append(Stall(self.held_at, BLOCKER, self._held_work))
        if on_thread and not runs and request.work is not None:
            found.append(Stall(self.now, BLOCKER, on_thread, self.gil_ns))
        for pool in request.pools:
            if id(pool) not in self._pools:
                self._pools[id(pool)] = self._pool(pool)
            found += self._pools[id(pool)]
        if request.started <= self._since < self.now and (
            rival := self._rival(threads_of(request) or (request.thread,))
        ):
            found.append(Stall(self.now, RIVAL, rival, self.gil_ns))
        return found

    def _is_blocked(self, request: Request) -> bool:
        """Return whether other work on a request's event loop held the GIL."""
        if self.held is None or not self._held_work or request.work is None or request.started > self.held_at:
            return False
        return self.held.thread == request.thread and not of_holder(request, self.held)

    def _work(self, thread: int) -> tuple[Stack, str]:
        work = self._works.get(thread)
        if work is None:
            work = self._works[thread] = of_work(self.frames.get(thread))
        return work

    def _pool(self, pool: Any) -> list[Stall]:
        """Return what the threads of a pool do, by line, the most frequent ones."""
        if pool is WORKER_THREADS:
            of_all = map(self._work, self.frames)
            works = [*islice((stack for stack, giver in of_all if giver in WORKER_THREADS), MAX_THREADS)]
        else:
            works = [self._work(one.ident)[0] for one in tuple(pool)[:MAX_THREADS]]
        return by_line(self.now, POOL, [stack for stack in works if stack], self.gil_ns)

    def _rival(self, own: Sequence[int]) -> Stack:
        """Return the stack of the thread that computed most since the look before, in the function that did."""
        by_function: dict[CodeType | NamedCode, list[tuple[int, Stack]]] = {}
        for thread, took in self._computed.items():
            if thread not in own and took * 4 * RIVAL_SHARE >= self._took:
                stack = self._held_work if self.held is not None and self.held.thread == thread else ()
                stack = stack or self._work(thread)[0] or of_frame(self.frames.get(thread))
                place = application_place(stack)
                if place is not None and not _is_ours(stack):
                    by_function.setdefault(place[0], []).append((took, stack))
        most = max(by_function.values(), key=lambda those: sum(took for took, _ in those), default=[])
        if not most or sum(took for took, _ in most) * RIVAL_SHARE < self._took:
            return ()
        return max(most, key=lambda one: one[0])[1]


def _is_ours(stack: Stack) -> bool:
    """Return whether a stack is that of one of stagetrace's own threads."""
    return any(is_ours(code) for code, _ in stack[-4:]) and stack[-1][0].co_filename == threading.__file__


def by_line(at: int, of: str, stacks: Sequence[Stack], gil_ns: int) -> list[Stall]:
    """Return stacks of one time as counts by the application's line, the most frequent ones."""
    groups: dict[Place | None, list[Stack]] = {}
    for stack in stacks:
        groups.setdefault(application_place(stack), []).append(stack)
    groups.pop(None, None)  # only called from C, and by stagetrace
    most = sorted(groups.values(), key=len, reverse=True)[:MAX_LINES]
    return [Stall(at, of, alike[0], gil_ns, len(alike), len(stacks)) for alike in most]


def waited_behind(request: Request, visits: Iterable[Segment]) -> list[Stall]:
    """Return what was seen on the thread, or the threads, that a request waited for before it was known."""
    found = []
    for visit in visits:
        reason = visit.attributes.get(QUEUE_REASON) if visit.stage == QUEUE else None
        if reason not in (SOCKET, SERVER_THREADS):
            continue
        meanwhile = [
            one
            for one in copied(_recent)
            if visit.start <= one.at < visit.end and (reason == SERVER_THREADS or one.thread == request.thread)
        ]
        seen: dict[int, list[Seen]] = {}
        for one in meanwhile[:: len(meanwhile) // MAX_MEANWHILE + 1]:
            seen.setdefault(one.at, []).append(one)
        for at, then in seen.items():
            of = BLOCKER if reason == SOCKET else POOL
            found += by_line(at, of, [one.stack for one in then], max(one.gil_ns for one in then))
    return found


def collected_in(request: Request, start: int, end: int) -> list[Stall]:
    """Return where the longer runs of the garbage collector within [start, end) were triggered."""
    return [
        Stall(one.start, REQUEST if _is_own(one, request) else RIVAL, one.stack, one.end - one.start)
        for one in copied(gc_pauses.long_pauses)
        if one.start < end and one.end > start
    ]


def _is_own(run: gc_pauses.LongPause, request: Request) -> bool:
    """Return whether a run of the collector lies in a section of a thread that was the request's."""
    return any(
        first[0].thread == run.thread and first[AT] <= run.start < last[AT] for first, last in request.cpu_samples
    )


# --- Where a late request stands: on the stack of the thread, greenlet or coroutine that works for it (docs/stalls.md).


def of_holder(request: Request, holder: Holder, *, in_task: Any = None) -> Stack:
    """Return the stack of a request if the thread that had the GIL worked for it then; else an empty one.

    `in_task` is the coroutine of the task that runs now and ends the request.
    """
    places = holder.places()
    coroutines = [one for one in (request.work, in_task, *workers_of(request)) if hasattr(type(one), "cr_frame")]
    if coroutines:
        found = (holder.index_of(one) for one in coroutines)
        at = max((one for one in found if one is not None), default=None)
        if at is not None:
            return from_entry(places) or tuple(places[: min(at + 1, MAX_KEPT)])
    if holder.thread in threads_of(request):
        return from_entry(places) or tuple(places[:MAX_KEPT])
    if coroutines or request.greenlet is not None or holder.thread != request.thread:
        return ()
    return from_entry(places) or (tuple(places[:MAX_KEPT]) if request.protocol is None else ())


def _has_code(stack: Stack) -> bool:
    return application_place(stack) is not None


class RequestStacks:
    """The stacks of late requests at one look of the sampler, which goes through the tasks of event loops once."""

    def __init__(self) -> None:
        self._tasks = Tasks()

    def of(self, request: Request) -> tuple[Stack, bool, int]:
        """Return the stack of a request, whether its code runs (and is no coroutine that awaits), and its thread.

        Empty where that is unknown, as while it waits for a thread. Of several workers that is the first to have begun,
        unless it waits for another one.
        """
        frames = of_threads()  # for each request anew: the threads run meanwhile
        stack, waits, runs = self._own(request, frames)
        thread = request.thread
        for worker in (*workers_of(request), *(() if request.batch is None else workers_of(request.batch))):
            if stack and not waits:
                break
            found = self._of_worker(worker, request, frames)
            if found[0]:
                stack, waits, runs = found
                thread = worker if type(worker) is int else request.thread
        return stack, runs, thread

    def _own(self, request: Request, frames: Mapping[int, FrameType]) -> tuple[Stack, bool, bool]:
        """Return where the code stands that the request came in on, whether it waits, and whether it runs."""
        frame = frames.get(request.thread)
        if request.work is not None:
            return self._of_coroutine(request.work, frame, request)
        if request.greenlet is not None:
            stack = of_greenlet(request.greenlet, frame)
        else:
            # Without an adapter of ours no entry is on the stack: OpenTelemetry's instrumentations, by the processor.
            stack = of_frame(frame) if request.protocol is None else of_request(frame)
        return stack, waits_for_thread(stack), True

    def _of_worker(self, worker: Any, request: Request, frames: Mapping[int, FrameType]) -> tuple[Stack, bool, bool]:
        if type(worker) is int:
            stack = of_frame(frames.get(worker))
        elif hasattr(type(worker), "gr_frame"):
            stack = of_greenlet(worker, frames.get(request.thread))
        else:
            return self._of_coroutine(worker, frames.get(request.thread), request)
        return stack, waits_for_thread(stack), True

    def _of_coroutine(self, work: Any, frame: FrameType | None, request: Request) -> tuple[Stack, bool, bool]:
        def belongs(context: Context) -> bool:
            return context.get(current) is request

        stack, runs = of_coroutine(work, frame, self._tasks, belongs, _has_code)
        return stack, not runs, runs
