"""How a thread's time divides: on a CPU, runnable but waiting for one, and (the rest) blocked.

`/proc/self/task/TID/schedstat` through a descriptor that each thread keeps open; it closes with the thread, and a
forked child opens its own. Where the kernel has none, or no descriptor is left, only the thread's CPU time is known.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace import settings
from stagetrace.guard import switch
from stagetrace.sources.base import SLOW_NS, Source
from stagetrace.sources.process_cpu import Snapshot, python_threads, snapshot
from stagetrace.sources.process_cpu import share as share_of_natives
from stagetrace.system.native import native
from stagetrace.system.threads import allocate_lock, local, start_new_thread

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DESCRIPTORS: Final = 256
UNKNOWN: Final = -1
DIVIDED_NS: Final = 1_000_000  # how long a section must be for its time to be divided


# One thread at one moment: its descriptor; the time, by the clock of the stages; its CPU time; its schedstat, None
# where the kernel keeps none; the CPU time of all threads of the process; what native threads had computed then or
# before; the samples of its waits. A tuple, and schedstat as bytes: few samples are ever evaluated.
CpuSample = tuple["Descriptor", int, int, "bytes | None", int, "Snapshot | None", int]
AT: Final = 1
COMPUTED: Final = 2
SCHEDSTAT: Final = 3
PROCESS: Final = 4
NATIVES: Final = 5
WAIT_SAMPLES: Final = 6
RECENT_NS: Final = 200_000  # of the wait for a CPU before a section, which may count as the section's
NEAR_NS: Final = 10_000_000  # after so long the kernel is asked again anyway
AT_ONCE_NS: Final = 50_000
TRIES: Final = 3


class Share(NamedTuple):
    """How a thread's time between two samples divides, in nanoseconds."""

    wall: int
    computed: int
    waited: int  # for a CPU; UNKNOWN where the kernel keeps no schedstat
    blocked: int  # UNKNOWN with it
    rivals: int  # computed meanwhile by other threads of this process that run Python
    turns: int = 0  # how often it got a CPU
    natives: int = 0  # computed meanwhile by threads that run no Python
    for_threads: float | None = None  # of the time blocked, the share in which it waited for other threads, if known

    @property
    def for_gil(self) -> int:
        """For how long it waited for the GIL, at most; 0 where that is unknown."""
        return max(min(self.turns * gil_turn_ns(), self.blocked, self.rivals), 0)


class Descriptor:
    """One thread's schedstat, which is open as long as this object lives."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.number = UNKNOWN
        self.place = UNKNOWN  # among the threads whose waits are sampled
        self._file: tuple[int, int] | None = None
        python_threads.add(thread)
        with _opening:
            if _open_now[0] >= MAX_DESCRIPTORS or not _has_schedstat:
                return
            _open_now[0] += 1
        try:
            self.number = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._file = _identity(self.number)
            self.place = claim(thread)
        except OSError:
            self._give_back()

    def forget(self) -> None:
        """Forget the descriptor: its number belongs to another file by now."""
        if self.number != UNKNOWN:
            self._give_back()

    def _give_back(self) -> None:
        self.number = UNKNOWN
        with _opening:
            _open_now[0] -= 1

    def __del__(self) -> None:
        number = self.number
        if None in (_opening, _identity, python_threads):
            return  # the interpreter ends
        python_threads.discard(self.thread)
        release(self.place)
        if number != UNKNOWN:
            self._give_back()
            # A process that closed all descriptors, to become a daemon say, may have another file at this number.
            if _identity(number) == self._file:
                os.close(number)


class GreenletDescriptor(Descriptor):
    """The descriptor of a thread that greenlets share, until the thread switches to another greenlet."""

    def __init__(self, whole: Descriptor) -> None:
        self.thread, self.number, self.place = whole.thread, whole.number, UNKNOWN
        self.whole = whole

    def forget(self) -> None:
        """Forget the descriptor."""
        self.number = UNKNOWN
        self.whole.forget()

    def __del__(self) -> None:
        pass


def _identity(number: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lack() -> str | None:
    return None if hasattr(time, "thread_time_ns") else "this platform has no clock of a thread's CPU time"


def lacks_waiting() -> str | None:
    """Return why a wait for a CPU cannot be distinguished from being blocked; None if it can."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/schedstat", "rb") as file:  # noqa: PTH123
            computed, _, _ = map(int, file.read().split())
    except Exception as error:  # noqa: BLE001 -- as the module is loaded: what refuses files to an event loop, included
        return f"no schedstat here ({error})"
    return None if computed else "this kernel keeps no schedstat"


SOURCE = Source(__name__, "the wait for a CPU", settings.CPU_WAIT, _lack)
_switch = switch(__name__)
_is_used = SOURCE.is_used
_has_schedstat = lacks_waiting() is None
_opening = allocate_lock()  # guards _open_now
_open_now = [0]
_GEVENT: Final = "gevent._hub_local"
_modules = sys.modules
_own = local()


def _begin_anew() -> None:
    """Forget the parent's descriptors, in a forked child: they are those of the parent's threads."""
    global _own, _opening  # noqa: PLW0603
    _opening = allocate_lock()
    _own = local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def read_sample() -> CpuSample:
    """Return a CPU sample of the calling thread. Raise OSError where other code closed its descriptor."""
    try:
        own: Descriptor = _own.descriptor
    except AttributeError:
        own = _own.descriptor = Descriptor(threading.get_native_id())
    number = own.number
    if number == UNKNOWN:
        return own, time.time_ns(), time.thread_time_ns(), None, time.process_time_ns(), None, 0
    try:
        at, computed, schedstat, process, took = read_account(number)
    except OSError:
        own.forget()
        raise
    if took >= SLOW_NS:
        SOURCE.took(took)
    return own, at, computed, schedstat, process, snapshot(), touch(own.place)


def _tell_greenlets_apart() -> bool:
    """Begin a new descriptor when another greenlet gets the thread; return False where that cannot be seen."""
    gevent = _modules.get(_GEVENT)
    if gevent is None:
        return False  # eventlet
    hub = gevent.get_hub_if_exists()
    if hub is None:
        return True
    if getattr(_own, "is_watched", False):
        # The callback may be late, where much waits for the hub; then the loop's iteration has changed.
        if hub.loop.iteration != _own.iteration:
            _switch_greenlets()
        else:
            return True
    _own.is_watched, _own.iteration = True, hub.loop.iteration
    hub.loop.run_callback(_switch_greenlets)  # before any greenlet that waits from now on
    return True


def _switch_greenlets() -> None:
    descriptor: Descriptor | None = getattr(_own, "descriptor", None)
    if descriptor is not None:
        _own.descriptor = GreenletDescriptor(
            descriptor.whole if isinstance(descriptor, GreenletDescriptor) else descriptor
        )
    _own.last = _own.latest = None
    _own.is_watched = False


def _read_account(number: int) -> tuple[int, int, bytes, int, int]:
    """Return the time, the thread's CPU time, its schedstat, the process's CPU time, how long a try took.

    The shortest: a thread that lacks CPUs loses its own within one now and then, and a kernel that hangs does so in
    each. Raises OSError.
    The CPU time that schedstat has is of the last tick, up to 4 ms ago. `native/kernel.c` is the same without letting
    go of the GIL, for which others that compute make it wait.
    """
    least = sys.maxsize
    for _ in range(TRIES):
        tried = time.perf_counter_ns()
        at, computed = time.time_ns(), time.thread_time_ns()
        schedstat = os.pread(number, 64, 0)
        least = min(least, time.perf_counter_ns() - tried)
        if least < AT_ONCE_NS:
            break  # else the thread lost the CPU between them, and they do not belong together
    return at, computed, schedstat, time.process_time_ns(), least


# --- What a blocked thread waits for: another thread of this process, or something outside the process.
#
# The kernel keeps no record of that. So a native thread asks it, every few milliseconds, in which system call each
# thread is that may serve a request: a thread that waits for the GIL, a lock or a queue is in `futex`. It never takes
# the GIL and sleeps while no request runs. Without the part in C (`native/blocked_threads.c`) there is none, and
# nothing is seen.

_native = native("kernel")
read_account = _read_account if _native is None else _native.read_account


def sample(now: int | None = None, is_end: bool = False) -> CpuSample | None:
    """Return a CPU sample of the calling thread, None where it cannot be taken; never raises.

    With `now`, the time, the last schedstat is used again while the thread has been off a CPU for less than RECENT_NS
    since it was read: to read it takes a service 6 to 9 us, since caches are cold, and clocks a third of that. Where a
    section begins, and does not end, a sample that was taken less than RECENT_NS ago is used as it is.
    """
    if not _is_used or _switch.off or (SOURCE.paused_until and SOURCE.is_paused()):
        return None
    try:
        if (_GEVENT in _modules or _thread.start_new_thread is not start_new_thread) and not _tell_greenlets_apart():
            return None
        if now is not None:
            last: CpuSample | None = getattr(_own, "last", None)
            if last is not None and 0 <= (age := now - last[AT]) < NEAR_NS:
                if age < RECENT_NS and not is_end:
                    touch(last[0].place)  # the section that begins is sampled
                    return last
                computed = time.thread_time_ns()
                if age - (computed - last[COMPUTED]) < RECENT_NS:
                    seen = touch(last[0].place)
                    taken = last[0], now, computed, last[SCHEDSTAT], time.process_time_ns(), last[NATIVES], seen
                    if is_end:
                        _own.latest = taken
                    return taken
        _own.last = _own.latest = taken = read_sample()
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        SOURCE.failed(error)
        return None
    else:
        return taken


def sample_since(first: CpuSample) -> CpuSample | None:
    """Return a CPU sample of the calling thread at the end of a section that began with `first`; None as `sample`."""
    last = sample(time.time_ns(), True)  # noqa: FBT003
    return None if last is None else with_native_threads(first, last)


def with_native_threads(first: CpuSample, last: CpuSample) -> CpuSample:
    """Return the sample `last`, taken just now, with what native threads have computed since `first`.

    They are read only if other threads have computed while this one did not.
    """
    wall, computed = last[AT] - first[AT], last[COMPUTED] - first[COMPUTED]
    if (
        last[SCHEDSTAT] is None
        or wall - computed < DIVIDED_NS
        or last[PROCESS] - first[PROCESS] - computed < DIVIDED_NS
    ):
        return last
    return *last[:5], snapshot(wall // 8), last[WAIT_SAMPLES]


def last_sample() -> CpuSample | None:
    """Return the CPU sample of the calling thread that was last taken as a section ended, or read; None if none was."""
    latest: CpuSample | None = getattr(_own, "latest", None)
    return latest


def is_of_this_thread(taken: CpuSample) -> bool:
    """Return whether a CPU sample is of the calling thread, or greenlet."""
    return taken[0] is getattr(_own, "descriptor", None)


def become_idle(now: int) -> None:
    """Record that the calling thread, one of a pool, has nothing to do from now on."""
    own = _own
    own.idle_since = now
    descriptor: Descriptor | None = getattr(own, "descriptor", None)
    if descriptor is not None:
        leave(descriptor.place)


def end_section() -> None:
    """Record that an outermost section of the calling thread has ended."""
    own: Descriptor | None = getattr(_own, "descriptor", None)
    if own is not None:
        leave(own.place)


def idle_since() -> int:
    """Return since when the calling thread, one of a pool, was idle before its present task; 0 for a new one."""
    since: int = getattr(_own, "idle_since", 0)
    return since


def waited_for_cpu(previous: CpuSample | None, now: CpuSample) -> int:
    """Return for how long a thread has waited for a CPU since a sample of it, or its begin; may be UNKNOWN."""
    if previous is not None and previous[0] is now[0]:
        share = between(previous, now)
        return UNKNOWN if share is None else share.waited
    schedstat = now[SCHEDSTAT]
    return UNKNOWN if schedstat is None or isinstance(now[0], GreenletDescriptor) else int(schedstat.split()[1])


def between(first: CpuSample, last: CpuSample) -> Share | None:
    """Return how the time between two samples of one thread divides; None of two threads, or where it is unknown."""
    own, since, computed_before, before, process_before, natives_before, seen_before = first
    other, until, computed_after, after, process_after, natives_after, seen_after = last
    if own is not other or (before is None) != (after is None):
        return None  # of two threads, or its descriptor was lost in between
    wall = max(until - since, 0)
    computed = max(computed_after - computed_before, 0)
    others = max(process_after - process_before - computed, 0)
    is_same = natives_before is natives_after
    natives = 0 if is_same else int(others * share_of_natives(natives_before, natives_after, computed))
    rivals = others - natives
    if before is None or after is None:
        return Share(wall, computed, UNKNOWN, UNKNOWN, rivals)
    for_threads = None if seen_before == seen_after else share_for_threads(seen_before, seen_after)
    if before is after:
        return Share(wall, computed, 0, max(wall - computed, 0), rivals, 0, natives, for_threads)
    try:
        _, waited_before, turns_before = map(int, before.split())
        _, waited_after, turns_after = map(int, after.split())
    except ValueError:
        own.forget()  # another file has this number
        return None
    waited = max(waited_after - waited_before, 0)
    blocked, turns = max(wall - computed - waited, 0), turns_after - turns_before
    return Share(wall, computed, waited, blocked, rivals, turns, natives, for_threads)


def gil_turn_ns() -> int:
    """Return how long a thread that waits for the GIL does not run, at most: then it asks for it (CPython, `take_gil`).

    Any other wait needs one turn on a CPU, at its end, however long it is.
    """
    has_gil = getattr(sys, "_is_gil_enabled", None)
    return int(sys.getswitchinterval() * 1e9) if has_gil is None or has_gil() else 0


ENOUGH: Final = 2  # samples
_in_c = native("blocked_threads")

claim: Callable[[int], int] = getattr(_in_c, "claim_place", lambda _: -1)
touch: Callable[[int], int] = getattr(_in_c, "touch_place", lambda _: 0)
leave: Callable[[int], None] = getattr(_in_c, "leave_place", lambda _: None)
release: Callable[[int], None] = getattr(_in_c, "release_place", lambda _: None)

if hasattr(_in_c, "forget_places"):
    os.register_at_fork(after_in_child=_in_c.forget_places)


def share_for_threads(before: int, after: int) -> float | None:
    """Return in which share of the samples between two `touch`es a blocked thread waited for another; None if few."""
    locks = (after >> 32) - (before >> 32) & 0xFFFFFFFF
    others = after - before & 0xFFFFFFFF
    return locks / (locks + others) if locks + others >= ENOUGH else None
