"""CPU time of this process, of its native threads, and of those that run Python."""

from __future__ import annotations

import os
import threading
import time
from time import process_time_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded
from stagetrace.semconv import STAGETRACE_PROCESS_CPU_MS
from stagetrace.system.native import native
from stagetrace.system.threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# --- CPU time of the process, on some of its requests: what all its threads have computed since the request before.
#
# The readings add up, whatever attributes of the process the spans have, and whichever requests a sampler drops: only a
# request that is kept carries a reading, and the reading counts from the one before it.

INTERVAL_NS: Final = 250_000_000  # of the service's time between two readings, each of which is a system call


class ProcessCpu:
    """What the process has computed until the last reading, which was `at_ns`. `_lock` guards the fields."""

    def __init__(self) -> None:
        self.begin_again()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.begin_again)

    def begin_again(self) -> None:
        """Count from the next request on: the CPU time before that belongs to no request."""
        self._lock = allocate_lock()
        self.at_ns = 0
        self._computed_ns: int | None = None

    @guarded
    def add_to(self, attributes: dict[str, Any], now_ns: int) -> None:
        """Add the CPU time since the last reading to a request that ended at `now_ns`, if that is long ago."""
        if 0 <= now_ns - self.at_ns < INTERVAL_NS or not self._lock.acquire(blocking=False):
            return
        try:
            computed, before = process_time_ns(), self._computed_ns
            self.at_ns, self._computed_ns = now_ns, computed
        finally:
            self._lock.release()
        if before is not None:
            attributes[STAGETRACE_PROCESS_CPU_MS] = (computed - before) / 1e6


process_cpu: Final = ProcessCpu()


# --- CPU time of this process's native threads: those of BLAS, OpenMP, XGBoost and the like, which run no Python.
#
# They compute for the call that started them, and never hold the GIL.

TASKS: Final = "/proc/self/task"
LISTED_NS: Final = 1_000_000_000  # after so long threads are listed again, though there are as many
MOST_NATIVE: Final = 256  # native threads that are read
COST: Final = 1_000  # a snapshot that took t is used for this many times t

# What native threads had computed at one time: when that was, by the clock of `time.monotonic_ns`, the CPU time of the
# process, that of each native thread by its number.
Snapshot = tuple[int, int, dict[int, int]]

python_threads: set[int] = set()  # threads that have run requests: also some that Python has not started
_clock: Callable[[int], int] = getattr(time, "clock_gettime_ns", lambda _: 0)  # not on Windows
_kernel = native("kernel")
# In Python both release the GIL, and the caller waits for it again where other threads compute.
_list_threads = getattr(_kernel, "list_threads", None) or (lambda: [int(name) for name in os.listdir(TASKS)])  # noqa: PTH208
_count_threads = getattr(_kernel, "count_threads", None) or (lambda: 0)
_last: Snapshot | None = None
_used_for = 0
_listed: tuple[int, int, list[int]] = (0, -1, [])  # when, how many threads there were, the native ones
_lacks = False


def snapshot(within: int | None = None) -> Snapshot | None:
    """Return what native threads have computed, as of `within` nanoseconds ago at most; None where that is unknown.

    Without `within` its age depends on its cost: at most a thousandth of a CPU is spent on snapshots.
    """
    global _last, _used_for, _lacks  # noqa: PLW0603
    if _lacks:
        return None
    now, last = time.monotonic_ns(), _last
    if last is not None and 0 <= now - last[0] < (_used_for if within is None else within):
        return last
    try:
        _last = taken = now, time.process_time_ns(), _computed(now)
    except OSError:  # no such files here
        _lacks = True
        return None
    _used_for = COST * (time.monotonic_ns() - now)
    return taken


def _computed(now: int) -> dict[int, int]:
    global _listed  # noqa: PLW0603
    count = _count_threads()
    if count != _listed[1] or now - _listed[0] >= LISTED_NS:
        started = list(getattr(threading, "_active", {}).values())  # `enumerate` waits for a lock
        ours = python_threads | {getattr(one, "native_id", None) for one in started}
        found = [thread for thread in _list_threads() if thread not in ours]
        # A Python thread that starts at this moment is not known as one yet: then list them again the next time.
        _listed = now, -1 if getattr(threading, "_limbo", None) else count, found[:MOST_NATIVE]
    computed = {}
    for thread in _listed[2]:
        if thread not in python_threads:
            try:
                computed[thread] = computed_ns(thread)
            except OSError:
                continue  # it has ended
    return computed


def computed_ns(thread: int) -> int:
    """Return the CPU time of a thread of this process, by its number. Raise OSError where that has ended."""
    return _clock((~thread << 3) | 6)  # the kernel's MAKE_THREAD_CPUCLOCK


def share(first: Snapshot | None, last: Snapshot | None, alone: int) -> float:
    """Return how much of what this process computed between two snapshots native threads did, 0 to 1.

    `alone` is the CPU time of the calling thread, which is excluded. The CPU time of native threads that have ended is
    unknown, and counted as Python's.
    """
    if first is None or last is None or first is last:
        return 0.0
    computed = sum(took - first[2].get(thread, 0) for thread, took in last[2].items())
    whole = last[1] - first[1] - alone
    return min(max(computed / whole, 0.0), 1.0) if whole > 0 else 0.0


def _begin_anew() -> None:
    """Forget the parent's threads, in a forked child."""
    global _last, _listed
    _last, _listed = None, (0, -1, [])
    python_threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


# --- Which threads that run Python computed between two moments: their CPU clocks, read from another thread.
#
# A reading opens no file and does not let go of the GIL.

MOST: Final = 256  # threads that are read


def read() -> dict[int, int]:
    """Return the CPU time of each thread that Python knows, in nanoseconds by its ident; empty where there is none."""
    clocks = {}
    for ident, thread in _threads():
        try:
            clocks[ident] = computed_ns(thread.native_id)
        except (OSError, TypeError):  # noqa: PERF203 -- it has ended, or not begun; a function for it takes as long again
            continue
    return clocks


def by_ident(clocks: Mapping[int, int]) -> dict[int, int]:
    """Return the CPU times of threads by their numbers as those of the threads that Python knows, by their ident."""
    return {ident: clocks[thread.native_id] for ident, thread in _threads() if thread.native_id in clocks}


def _threads() -> list[tuple[int, Any]]:
    return list(getattr(threading, "_active", {}).items())[:MOST]  # `enumerate` waits for a lock


def computed(first: Mapping[int, int], last: Mapping[int, int]) -> dict[int, int]:
    """Return for how long each thread computed between two readings that both have it."""
    return {thread: now - first[thread] for thread, now in last.items() if now > first.get(thread, now)}
