"""CPU time of this process's native threads: those of BLAS, OpenMP, XGBoost and the like, which run no Python.

They compute for the call that has started them, and keep no thread of Python out.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

from stagetrace.native import native

if TYPE_CHECKING:
    from collections.abc import Callable

TASKS: Final = "/proc/self/task"
LISTED_NS: Final = 1_000_000_000  # after so long threads are listed again, though there are as many
MOST: Final = 256  # native threads that are read
PRICE: Final = 1_000  # a look is good for so many times as long as it took

# What native threads had computed at one time: when that was, by the clock of `time.monotonic_ns`, the CPU time of the
# process, that of each native thread by its number.
Look = tuple[int, int, dict[int, int]]

running_python: set[int] = set()  # threads that have run requests: also some that Python has not started
_clock: Callable[[int], int] = getattr(time, "clock_gettime_ns", lambda _: 0)  # not on Windows
_kernel = native("stagetrace.sources._kernel")
# In Python both let go of the GIL, for which others that compute make the caller wait.
_list_threads = getattr(_kernel, "list_threads", None) or (lambda: [int(name) for name in os.listdir(TASKS)])  # noqa: PTH208
_count_threads = getattr(_kernel, "count_threads", None) or (lambda: 0)
_last: Look | None = None
_good_for = 0
_listed: tuple[int, int, list[int]] = (0, -1, [])  # when, how many threads there were, the native ones
_lacks = False


def look(within: int | None = None) -> Look | None:
    """Return what native threads have computed, as of `within` nanoseconds ago at most; None where it is not to be had.

    Without `within` it may be as old as its price allows: a thousandth of a CPU is spent on it at most.
    """
    global _last, _good_for, _lacks  # noqa: PLW0603
    if _lacks:
        return None
    now, last = time.monotonic_ns(), _last
    if last is not None and 0 <= now - last[0] < (_good_for if within is None else within):
        return last
    try:
        _last = taken = now, time.process_time_ns(), _computed(now)
    except OSError:  # no such files here
        _lacks = True
        return None
    _good_for = PRICE * (time.monotonic_ns() - now)
    return taken


def _computed(now: int) -> dict[int, int]:
    global _listed  # noqa: PLW0603
    count = _count_threads()
    if count != _listed[1] or now - _listed[0] >= LISTED_NS:
        started = list(getattr(threading, "_active", {}).values())  # `enumerate` waits for a lock
        ours = running_python | {getattr(one, "native_id", None) for one in started}
        found = [thread for thread in _list_threads() if thread not in ours]
        # One that begins at this moment is not known as Python's yet: then they are listed again the next time.
        _listed = now, -1 if getattr(threading, "_limbo", None) else count, found[:MOST]
    computed = {}
    for thread in _listed[2]:
        if thread not in running_python:
            try:
                computed[thread] = _clock((~thread << 3) | 6)  # the kernel's MAKE_THREAD_CPUCLOCK
            except OSError:
                continue  # it has ended
    return computed


def share(first: Look | None, last: Look | None, alone: int) -> float:
    """Return how much of what this process computed between two looks native threads did, 0 to 1.

    `alone` is the CPU time of the one thread that asks, which is left out. What those that have ended had computed is
    not known, and counted as Python's.
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
    running_python.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
