"""When the garbage collector paused this process: each of its longer runs, in which no other thread gets the GIL."""

from __future__ import annotations

import gc
import sys
import time
from collections import deque
from threading import get_native_id
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import settings
from stagetrace.sources import stacks
from stagetrace.sources.base import Source
from stagetrace.system.bounded import copied

if TYPE_CHECKING:
    from stagetrace.sources.stacks import Stack

LEAST_NS: Final = 100_000  # shorter runs are not kept: all of them in a request make it no breach
MAX_KEPT: Final = 1_024
LONG_NS: Final = 5_000_000  # of runs this long the place is kept
MAX_LONG: Final = 64


Pause = tuple[int, int, int]  # [start, end) in nanoseconds since the epoch, and the thread's number in the kernel


class LongPause(NamedTuple):
    """A longer run of the collector, in nanoseconds since the epoch, and where the thread stood that triggered it."""

    start: int
    end: int
    thread: int  # its number, as the kernel has it
    stack: Stack


SOURCE = Source(
    __name__,
    "the pauses of the garbage collector",
    settings.GC_PAUSE,
    lambda: None if hasattr(gc, "callbacks") else "this Python has no gc.callbacks",
)
long_pauses: deque[LongPause] = deque(maxlen=MAX_LONG)
recent_pauses: deque[Pause] = deque(maxlen=MAX_KEPT)  # the latest last
_began = 0  # when the collection began that runs, of which there is one at a time; 0: none does
_thread = 0  # that runs it


def record(phase: str, _info: Any) -> None:
    """Record a run of the collector; an entry of gc.callbacks."""
    global _began, _thread
    try:
        now = time.time_ns()
        if phase == "start":
            _began, _thread = now, get_native_id()
        else:
            began, _began = _began, 0
            if began and now - began >= LEAST_NS:
                recent_pauses.append((began, now, _thread))
                if now - began >= LONG_NS and stacks.SOURCE.is_used:
                    # There is no frame below where a thread ends.
                    stack = stacks.of_frame(sys._getframe().f_back)  # noqa: SLF001
                    long_pauses.append(LongPause(began, now, _thread, stack))
    except Exception as error:  # noqa: BLE001 -- it runs wherever Python allocates
        SOURCE.failed(error)
        stop()


def start() -> None:
    """Begin to record, once in a process."""
    if SOURCE.is_used and record not in gc.callbacks:
        gc.callbacks.append(record)


def stop() -> None:
    """Stop recording."""
    global _began  # noqa: PLW0603
    _began = 0
    if record in gc.callbacks:
        gc.callbacks.remove(record)


def pauses(start: int, end: int) -> list[Pause]:
    """Return the runs of the garbage collector within [start, end), since the epoch, the latest first."""
    # A thread that waits for the GIL may get it between a collection's end and the record of that.
    running = _began
    found = [(max(running, start), end, _thread)] if 0 < running < end else []
    for begin, until, thread in reversed(copied(recent_pauses)):
        if until <= start:
            break
        if begin < end:
            found.append((max(begin, start), min(until, end), thread))
    return found


def paused_ns(start: int, end: int) -> int:
    """Return for how many nanoseconds of [start, end), since the epoch, the garbage collector ran."""
    return sum(until - begin for begin, until, _ in pauses(start, end))
