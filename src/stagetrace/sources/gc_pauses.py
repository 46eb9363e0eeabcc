"""When the garbage collector paused this process: each of its longer runs, in which no other thread gets the GIL."""

from __future__ import annotations

import gc
import time
from collections import deque
from typing import Any, Final

from stagetrace import config
from stagetrace.recent import copied
from stagetrace.sources.base import Source

LEAST_NS: Final = 100_000  # shorter runs are not kept: a request's worth of them is no cause of anything
MAX_KEPT: Final = 1_024

SOURCE = Source(
    __name__,
    "the pauses of the garbage collector",
    config.GC_PAUSE,
    lambda: None if hasattr(gc, "callbacks") else "this Python has no gc.callbacks",
)
recent_pauses: deque[tuple[int, int]] = deque(maxlen=MAX_KEPT)  # [start, end), the latest last
_began = 0  # when the collection began that runs, of which there is one at a time; 0: none does


def record(phase: str, _info: Any) -> None:
    """Record a run of the collector; an entry of gc.callbacks."""
    global _began  # noqa: PLW0603
    try:
        now = time.time_ns()
        if phase == "start":
            _began = now
        else:
            began, _began = _began, 0
            if began and now - began >= LEAST_NS:
                recent_pauses.append((began, now))
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


def paused_ns(start: int, end: int) -> int:
    """Return for how many nanoseconds of [start, end), since the epoch, the garbage collector ran."""
    # A thread that waits for the GIL may get it between a collection's end and the record of that.
    running = _began
    paused = max(end - max(running, start), 0) if running else 0
    for begin, until in reversed(copied(recent_pauses)):
        if until <= start:
            break
        paused += max(min(until, end) - max(begin, start), 0)
    return paused
