"""The requests in flight, and the next moment at which one of them may be late.

A request passes here as it begins and as it ends, so both are an operation on a set and a comparison. The sampler
(`causes/stall_sampler.py`) waits for that moment in a thread of its own. While requests are in time the moment is
moved on before it comes, or is taken back once none is left, so nothing wakes up: each wake-up would take the GIL from
the service.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from stagetrace.guard import guarded
from stagetrace.sources.stacks import NamedCode
from stagetrace.system.native import native
from stagetrace.system.threads import RLock, allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.sources.stacks import Place

NEVER: Final = 2**63 - 1  # nanoseconds
# After a gap between requests the timer is cleared so often, each time that none is left. It takes a tenth of what a
# wake-up takes, so no sequence of requests pays more than twice of what it would have paid at the least.
CLEARS: Final = 10
# Of the timer in the time of a bound, where requests take nearly that long; two where they do not.
MOST_MOVES: Final = 32


class Bounds(NamedTuple):
    """When a request is late: it began at `start`, is slow after `late` and a breach after `bound`; nanoseconds."""

    start: int
    late: int
    bound: int


class Begun(Protocol):
    """A request, or a part of one: here it only counts when it began."""

    @property
    def started(self) -> int:
        """When that was."""


class InFlight:
    """Requests that were not found late yet. Any thread may call any method; times in nanoseconds since the epoch."""

    def __init__(self) -> None:
        self.is_watched = False  # whether a sampler wants to know of late requests: else nothing is kept
        self.requests: set[Begun] = set()
        self.parts: dict[Begun, int] = {}  # work for requests of other processes, by when those are late
        self.bounds_of: Callable[[Any], Bounds | None] = lambda _: None
        self.look_back: Callable[[Any], None] = lambda _: None  # for a breach, or a part, that ends
        self.bound_ns = NEVER  # no request is late that has taken less
        self.due = NEVER  # when the sampler wants to look at a request that it has found late
        self.rest_until = 0  # by the clock of time.monotonic_ns: the sampler does not look before
        self.timer: Timer | None = None  # of this process, once it has had a request
        self._setting = RLock()  # guards the timer and its setting
        # A request moves the timer if it does not begin between these, as where the clock was set back,
        self._moved_at, self._move_at = 0, 0
        self._end_moves_at = NEVER  # or if it ends from then on
        self.ends_at = NEVER  # the timer
        self._clears = 0  # how often to clear the timer
        self._bound: Callable[[int], int] = lambda _: NEVER
        self._start: Callable[[Timer], None] = lambda _: None

    def watch(
        self,
        bound: Callable[[int], int],
        start: Callable[[Timer], None],
        bounds_of: Callable[[Any], Bounds | None],
    ) -> None:
        """Keep requests from now on, none of which is late that has taken less than `bound` of the time now.

        `start` is called with each timer: once in a process, by its first request at the latest. `bounds_of` returns
        when a request is late, as far as that is known by now; None for never.
        """
        self.bounds_of = bounds_of
        self._bound, self._start = bound, start
        self._move_at, self._clears = 0, CLEARS
        self.is_watched = True

    def stop(self) -> None:
        """Keep no requests any more."""
        self.is_watched, self._clears = False, 0
        self.requests.clear()
        self.parts.clear()
        with self._setting:
            self._forget_timer()

    def prepare(self) -> None:
        """Have the timer and its thread before the first request, which would wait for the thread to begin."""
        if self.is_watched:
            self._move(time.time_ns())

    def begin(self, request: Begun) -> None:
        """Keep a request that begins."""
        self.requests.add(request)
        if not self._moved_at <= request.started < self._move_at:
            self._move(request.started)

    def began_earlier(self, request: Begun) -> None:
        """Look again at when a request began that is kept."""
        if request.started + self.bound_ns < self.ends_at and self.is_watched:
            self._move(request.started)

    def end(self, request: Begun) -> None:
        """Drop a request that has ended, if it is still kept."""
        requests = self.requests
        requests.discard(request)
        if requests:
            if (now := time.time_ns()) >= self._end_moves_at:
                self._move(now)
        elif self._clears and self.ends_at < self.due:
            self._clear()

    def begin_part(self, request: Begun, late_at: int) -> None:
        """Keep work for a request that is late at a known time."""
        self.parts[request] = late_at
        if late_at < self.ends_at:
            self._move(request.started)

    def end_part(self, request: Begun) -> None:
        """Drop such work, if it is still kept."""
        if self.parts.pop(request, None) is None:
            return
        if self._clears and not self.parts:
            self._clear()
        elif (now := time.time_ns()) >= self._end_moves_at:
            self._move(now)

    @guarded
    def _move(self, now: int) -> None:
        with self._setting:
            if self.timer is None:
                if not self.is_watched:  # any more
                    return
                self._open()
            if now >= self._moved_at + self.bound_ns:  # none began for so long: requests are seldom
                self._clears = CLEARS
            self._moved_at = now
            self.set_timer(now)

    @guarded
    def _clear(self) -> None:
        with self._setting:
            self._clears -= 1
            self.set_timer(time.time_ns())

    def set_timer(self, now: int) -> None:
        """Let the timer end at the next moment at which a request may be late, or the sampler wants to look."""
        with self._setting:
            # First: a request that begins meanwhile either is seen below, or moves the timer.
            self._move_at, self._end_moves_at, self.ends_at = 0, NEVER, NEVER
            self.bound_ns = bound = self._bound(now)
            oldest = min((one.started for one in self.requests.copy()), default=NEVER)
            self._set_to(min(self.due, oldest + bound, *self.parts.copy().values()))
            # One that begins from now on may be late before that; else, after a while, that moment may be a later one.
            if self.ends_at <= now + bound:
                self._move_at = self._end_moves_at = now + max((self.ends_at - now) // 2, bound // MOST_MOVES)

    def _set_to(self, end: int) -> None:
        if self.timer is None:
            return
        self.ends_at = min(end, NEVER)
        try:
            if end >= NEVER:
                self.timer.clear()
            else:
                self.timer.set(max(end - time.time_ns(), self.rest_until - time.monotonic_ns(), 0))
        except OSError:  # the service has closed its descriptor: the next request gets another
            self._forget_timer()

    def _open(self) -> None:
        self.timer = make()
        try:
            self._start(self.timer)
        except BaseException:  # no thread is left, or the interpreter ends
            self.timer.close()
            self.stop()
            raise

    def lose(self, lost: Timer) -> None:
        """Stop using a timer whose descriptor was closed."""
        with self._setting:
            if self.timer is lost:
                self._forget_timer()

    def _forget_timer(self) -> None:
        """Leave the timer to its thread, which wakes up and closes it."""
        if self.timer is not None:
            with suppress(OSError):
                self.timer.set(0)
        self.timer, self.ends_at, self._move_at, self._end_moves_at = None, NEVER, 0, NEVER

    def take(self, now: int) -> list[Any]:
        """Remove and return the requests, and the work for requests, that may be late by now."""
        latest = now - self.bound_ns
        taken = [one for one in self.requests.copy() if one.started <= latest]
        for one in taken:
            self.requests.discard(one)
        parts = [one for one, late_at in self.parts.copy().items() if late_at <= now]
        for one in parts:
            self.parts.pop(one, None)
        return taken + parts

    def begin_anew(self) -> None:
        """Forget the parent's requests and its timer, in a forked child."""
        self.requests, self.parts = set(), {}
        self._setting = RLock()
        inherited, self.timer = self.timer, None
        self._forget_timer()
        self.due, self.rest_until = NEVER, 0
        if inherited is not None:
            inherited.close()


in_flight: Final = InFlight()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_flight.begin_anew)


if TYPE_CHECKING:
    # As C gives a place: file, name, qualified name, flags, line, the frame's address.
    Raw = tuple[str, str, str, int, int, int]

# --- A timer that one thread waits for and any thread sets.
#
# Two implementations, chosen once at import. `KernelTimer` is a timerfd: to set it later, or clear it, wakes no thread.
# `PythonTimer`, for builds without C, sleeps until the moment that it was set to as the wait began: one that is always
# set later wakes its thread once in that distance.

_NEVER: Final = 2**63 - 1
_LONGEST_S: Final = 3_600.0  # of one wait
_DECADES_NS: Final = 2**61
NO_CLOCKS: Final[Mapping[int, int]] = {}


class Holder(NamedTuple):
    """The thread that had the GIL as a timer ended, and where it stood: seen by a thread that had not."""

    ago_ns: int
    thread: int  # its ident
    raw: tuple[Raw, ...]  # the innermost place first; none of a thread that ran Python

    def places(self) -> list[Place]:
        """Return its places, the innermost first."""
        return [(NamedCode(file, name, qualified, flags), line) for file, name, qualified, flags, line, _ in self.raw]

    def index_of(self, thing: Any) -> int | None:
        """Return which of its places is the frame of a coroutine, which lies in the object itself; None if none is."""
        begin, end = id(thing), id(thing) + thing.__sizeof__()
        return next((at for at, one in enumerate(self.raw) if begin <= one[5] < end), None)


class Late(NamedTuple):
    """How long a timer had ended when its thread ran again: the wait for a CPU, then for the GIL, in nanoseconds."""

    cpu_ns: int
    gil_ns: int
    computed: Mapping[int, int] = NO_CLOCKS  # before a wait for the GIL of 5 ms and more, by the numbers of threads
    holder: Holder | None = None


class Timer(Protocol):
    """Ends once, at the time that was set last."""

    def set(self, after_ns: int) -> None:
        """Let it end after so many nanoseconds. Raise OSError where it is no longer there."""

    def clear(self) -> None:
        """Let it not end. Raise OSError where it is no longer there."""

    def wait(self) -> Late:
        """Wait for its end, and clear it. Raise OSError where it is no longer there."""

    def close(self) -> None:
        """Close what it has open, in a forked child too; it is not used any more."""


class PythonTimer:
    """A `Timer` in Python. It cannot separate waits for a CPU from those for the GIL: all count as the former."""

    def __init__(self) -> None:
        self._woken = allocate_lock()  # released to wake the thread that waits
        self._woken.acquire()
        self._due = _NEVER  # by the clock of time.monotonic_ns
        self._until = _NEVER  # when the thread that waits will look by itself

    def set(self, after_ns: int) -> None:
        """As `Timer` says; so below."""
        self._due = time.monotonic_ns() + after_ns
        if self._due < self._until:
            with suppress(RuntimeError):  # woken already
                self._woken.release()

    def clear(self) -> None:
        self._due = _NEVER

    def wait(self) -> Late:
        while True:
            due = self._due
            left = due - time.monotonic_ns()
            if left <= 0:
                self.clear()
                return Late(-left, 0)
            self._until = due
            self._woken.acquire(timeout=min(left / 1e9, _LONGEST_S))
            self._until = _NEVER  # who sets it from now on wakes

    def close(self) -> None:
        pass


class KernelTimer:
    """A `Timer` of Linux (native/timer.c)."""

    def __init__(self) -> None:
        self._interval = _DECADES_NS + int.from_bytes(os.urandom(7), "little")  # by which it is known again
        self._number: int = _native.make_timer(self._interval)

    def set(self, after_ns: int) -> None:
        """As `Timer` says; so below."""
        _native.set_timer(self._number, self._interval, max(after_ns, 1))

    def clear(self) -> None:
        _native.set_timer(self._number, self._interval, 0)

    def wait(self) -> Late:
        cpu_ns, gil_ns, computed, seen = _native.wait_for_timer(self._number, self._interval)
        return Late(cpu_ns, gil_ns, computed, None if seen is None else Holder(*seen))

    def close(self) -> None:
        _native.close_timer(self._number, self._interval)


_native = native("timer")
HAS_KERNEL_TIMERS: Final = hasattr(_native, "make_timer")
SEES_HOLDER: Final[bool] = HAS_KERNEL_TIMERS and _native.sees_holder()  # of the GIL: so in CPython 3.11


def holder_meanwhile() -> Holder | None:
    """Return where a thread stood that had the GIL as a timer ended, while the timer's thread waits for it still."""
    seen = _native.seen_meanwhile() if SEES_HOLDER else None
    return None if seen is None else Holder(*seen)


def thread_state(number: int) -> str:
    """Return the kernel's letter for what a thread does, by its number; "" where that is unknown."""
    state: str = _native.thread_state(number) if HAS_KERNEL_TIMERS else ""
    return state


def make() -> Timer:
    """Return a new timer, which is not set."""
    if HAS_KERNEL_TIMERS:
        with suppress(OSError):  # no descriptor is left, or a sandbox allows none
            return KernelTimer()
    return PythonTimer()
