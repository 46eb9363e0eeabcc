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
from typing import Final, NamedTuple

from stagetrace import config
from stagetrace.guard import switch
from stagetrace.native import native
from stagetrace.real_threads import allocate_lock, local, start_new_thread
from stagetrace.sources import waits
from stagetrace.sources.base import SLOW_NS, Source
from stagetrace.sources.native_threads import Look, look, running_python
from stagetrace.sources.native_threads import share as share_of_natives

MAX_DESCRIPTORS: Final = 256
UNKNOWN: Final = -1
DIVIDED_NS: Final = 1_000_000  # how long a section must be for its time to be divided


# One thread's account at one time: whose it is; when, by the clock of the stages; its CPU time; what the kernel said of
# it, None where it does not; the CPU time of all threads of the process; what native threads had computed, at that time
# or before; what was seen of its waits. It is worked out for few of them.
Reading = tuple["Descriptor", int, int, "bytes | None", int, "Look | None", int]
AT: Final = 1
COMPUTED: Final = 2
SAID: Final = 3
PROCESS: Final = 4
SEEN: Final = 6
RECENT_NS: Final = 200_000  # of waiting for a CPU that may be counted as a section's though it came before
NEAR_NS: Final = 10_000_000  # after so long the kernel is asked again anyway
AT_ONCE_NS: Final = 50_000
TRIES: Final = 3


class Share(NamedTuple):
    """How a thread's time between two readings divides, in nanoseconds."""

    wall: int
    computed: int
    waited: int  # for a CPU; UNKNOWN where the kernel does not tell
    blocked: int  # UNKNOWN with it
    rivals: int  # computed meanwhile by other threads of this process that run Python
    turns: int = 0  # how often it was given a CPU
    natives: int = 0  # computed meanwhile by threads that run no Python
    for_threads: float | None = None  # of the time blocked, the share in which it waited for other threads, if known


class Descriptor:
    """One thread's schedstat, which is open as long as this object lives."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.number = UNKNOWN
        self.place = UNKNOWN  # among those whose waits are looked at
        self._file: tuple[int, int] | None = None
        running_python.add(thread)
        with _opening:
            if _open_now[0] >= MAX_DESCRIPTORS or not _has_schedstat:
                return
            _open_now[0] += 1
        try:
            self.number = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._file = _identity(self.number)
            self.place = waits.claim(thread)
        except OSError:
            self._give_back()

    def forget(self) -> None:
        """Read it no more, since it is somebody else's by now."""
        if self.number != UNKNOWN:
            self._give_back()

    def _give_back(self) -> None:
        self.number = UNKNOWN
        with _opening:
            _open_now[0] -= 1

    def __del__(self) -> None:
        number = self.number
        if None in (_opening, _identity, running_python):
            return  # the interpreter ends
        running_python.discard(self.thread)
        waits.release(self.place)
        if number != UNKNOWN:
            self._give_back()
            # Whoever closed all descriptors, to become a daemon say, may have another file at this number by now.
            if _identity(number) == self._file:
                os.close(number)


class Turn(Descriptor):
    """That of a thread that greenlets share, until another one of them has the thread."""

    def __init__(self, whole: Descriptor) -> None:
        self.thread, self.number, self.place = whole.thread, whole.number, UNKNOWN
        self.whole = whole

    def forget(self) -> None:
        """Read it no more."""
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
    """Return why it cannot be told from being blocked that a thread waits for a CPU; None if it can."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/schedstat", "rb") as file:  # noqa: PTH123
            computed, _, _ = map(int, file.read().split())
    except Exception as error:  # noqa: BLE001 -- as the module is loaded: what refuses files to an event loop, included
        return f"no schedstat here ({error})"
    return None if computed else "this kernel keeps no schedstat"


SOURCE = Source(__name__, "the wait for a CPU", config.CPU_WAIT, _lack)
_switch = switch(__name__)
_is_used = SOURCE.is_used
_has_schedstat = lacks_waiting() is None
_opening = allocate_lock()  # guards _open_now
_open_now = [0]
_GEVENT: Final = "gevent._hub_local"
_modules = sys.modules
_own = local()


def _begin_anew() -> None:
    """Forget the parent's descriptors, in a forked child: they tell of the parent's threads."""
    global _own, _opening  # noqa: PLW0603
    _opening = allocate_lock()
    _own = local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def reading() -> Reading:
    """Return the calling thread's account as it is now; raises OSError where its descriptor was closed by others."""
    try:
        own: Descriptor = _own.descriptor
    except AttributeError:
        own = _own.descriptor = Descriptor(threading.get_native_id())
    number = own.number
    if number == UNKNOWN:
        return own, time.time_ns(), time.thread_time_ns(), None, time.process_time_ns(), None, 0
    try:
        at, computed, said, process, took = read_account(number)
    except OSError:
        own.forget()
        raise
    if took >= SLOW_NS:
        SOURCE.took(took)
    return own, at, computed, said, process, look(), waits.touch(own.place)


def _tell_greenlets_apart() -> bool:
    """Let the thread's account begin anew when another greenlet has it; return False where that cannot be seen."""
    gevent = _modules.get(_GEVENT)
    if gevent is None:
        return False  # but eventlet
    hub = gevent.get_hub_if_exists()
    if hub is None:
        return True
    if getattr(_own, "is_watched", False):
        # It may be late, where much waits for the hub; then the loop has gone round.
        if hub.loop.iteration != _own.iteration:
            _switch_greenlets()
        else:
            return True
    _own.is_watched, _own.iteration = True, hub.loop.iteration
    hub.loop.run_callback(_switch_greenlets)  # before whoever waits from now on goes on
    return True


def _switch_greenlets() -> None:
    descriptor: Descriptor | None = getattr(_own, "descriptor", None)
    if descriptor is not None:
        _own.descriptor = Turn(descriptor.whole if isinstance(descriptor, Turn) else descriptor)
    _own.last, _own.is_watched = None, False


def _read_account(number: int) -> tuple[int, int, bytes, int, int]:
    """Return the time, the thread's CPU time, its schedstat, the process's CPU time, how long a try took.

    The shortest: a thread that lacks CPUs loses its own within one now and then, and a kernel that hangs does so in
    each. Raises OSError.
    The CPU time that schedstat has is of the last tick, up to 4 ms ago. `_kernel.c` is the same without letting go of
    the GIL, for which others that compute make it wait.
    """
    least = sys.maxsize
    for _ in range(TRIES):
        tried = time.perf_counter_ns()
        at, computed = time.time_ns(), time.thread_time_ns()
        said = os.pread(number, 64, 0)
        least = min(least, time.perf_counter_ns() - tried)
        if least < AT_ONCE_NS:
            break  # else the thread lost the CPU between them, and they do not belong together
    return at, computed, said, time.process_time_ns(), least


_native = native("stagetrace.sources._kernel")
read_account = _read_account if _native is None else _native.read_account


def account(now: int | None = None) -> Reading | None:
    """Return the calling thread's account, None where it is not to be had; never raises.

    With `now`, the time, what the kernel said will do while the thread has been off a CPU for less than RECENT_NS since
    then: to ask takes a service 6 to 9 us, since caches are cold, and clocks a third of that.
    """
    if not _is_used or _switch.off:
        return None
    try:
        if (_GEVENT in _modules or _thread.start_new_thread is not start_new_thread) and not _tell_greenlets_apart():
            return None
        if now is not None:
            last: Reading | None = getattr(_own, "last", None)
            if last is not None and 0 <= (age := now - last[AT]) < NEAR_NS:
                if age < RECENT_NS:
                    return last
                computed = time.thread_time_ns()
                if age - (computed - last[COMPUTED]) < RECENT_NS:
                    seen = waits.touch(last[0].place)
                    return last[0], now, computed, last[SAID], time.process_time_ns(), look(), seen
        _own.last = taken = reading()
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        SOURCE.failed(error)
        return None
    else:
        return taken


def account_since(first: Reading) -> Reading | None:
    """Return the calling thread's account as a section ends that began with `first`; None if it is not to be had."""
    last = account()
    return None if last is None else looked(first, last)


def looked(first: Reading, last: Reading) -> Reading:
    """Return the account `last`, taken just now, with what native threads have computed since `first`.

    They are looked at where that matters: where other threads have computed, while this one did not.
    """
    wall, computed = last[AT] - first[AT], last[COMPUTED] - first[COMPUTED]
    if last[SAID] is None or wall - computed < DIVIDED_NS or last[PROCESS] - first[PROCESS] - computed < DIVIDED_NS:
        return last
    return *last[:5], look(wall // 8), last[SEEN]


def before() -> Reading | None:
    """Return the calling thread's account that was taken last, None if none was."""
    last: Reading | None = getattr(_own, "last", None)
    return last


def leave(now: int) -> None:
    """Note that the calling thread, one of a pool, has nothing to do from now on."""
    _own.left = now
    end()


def end() -> None:
    """Note that a section of the calling thread has ended, around which there is none."""
    own: Descriptor | None = getattr(_own, "descriptor", None)
    if own is not None:
        waits.leave(own.place)


def left() -> int:
    """Return since when the calling thread, one of a pool, had nothing to do when it took this up; 0 for a new one."""
    since: int = getattr(_own, "left", 0)
    return since


def waited(previous: Reading | None, now: Reading) -> int:
    """Return for how long a thread has waited for a CPU since an account of it, or since it began; UNKNOWN included."""
    if previous is not None and previous[0] is now[0]:
        share = between(previous, now)
        return UNKNOWN if share is None else share.waited
    said = now[SAID]
    return UNKNOWN if said is None or isinstance(now[0], Turn) else int(said.split()[1])


def between(first: Reading, last: Reading) -> Share | None:
    """Return how the time between two readings of one thread divides; None of two threads, or where it is unknown."""
    own, since, computed_before, before, process_before, looked_before, seen_before = first
    other, until, computed_after, after, process_after, looked_after, seen_after = last
    if own is not other or (before is None) != (after is None):
        return None  # of two threads, or its descriptor was lost in between
    wall = max(until - since, 0)
    computed = max(computed_after - computed_before, 0)
    others = max(process_after - process_before - computed, 0)
    natives = int(others * share_of_natives(looked_before, looked_after, computed))
    rivals = others - natives
    if before is None or after is None:
        return Share(wall, computed, UNKNOWN, UNKNOWN, rivals)
    try:
        _, waited_before, turns_before = map(int, before.split())
        _, waited_after, turns_after = map(int, after.split())
    except ValueError:
        own.forget()  # somebody has another file at this number
        return None
    waited = max(waited_after - waited_before, 0)
    blocked, turns = max(wall - computed - waited, 0), turns_after - turns_before
    return Share(wall, computed, waited, blocked, rivals, turns, natives, waits.for_threads(seen_before, seen_after))


def gil_turn_ns() -> int:
    """Return how long a thread that waits for the GIL does not run, at most: then it asks for it (CPython, `take_gil`).

    Any other wait needs one turn on a CPU, at its end, however long it is.
    """
    has_gil = getattr(sys, "_is_gil_enabled", None)
    return int(sys.getswitchinterval() * 1e9) if has_gil is None or has_gil() else 0
