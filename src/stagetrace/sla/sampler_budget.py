"""How much CPU the sampler of late requests may use, whatever happens in the service."""

from __future__ import annotations

import time
from typing import Final

from stagetrace.sources import gc_pauses

ONE_OF: Final = 64  # of so many nanoseconds the sampler may use one: 1.6 % of one CPU
SAVED_NS: Final = 30_000_000  # that it may use at once, after it has used none for a while
MOST_OF_LOOK_NS: Final = 2_000_000  # it keeps the GIL meanwhile


class Budget:
    """CPU time of one thread, in nanoseconds: what is not used is saved, up to a bound. Its wake-ups count, too.

    A garbage collection within a look does not count: another thread's next allocation would have triggered it.
    """

    def __init__(self) -> None:
        self._saved = SAVED_NS
        self._counted_at = time.monotonic_ns()
        self._counted: int | None = None  # of the thread's CPU time
        self._began = 0  # the look, by the thread's CPU time
        self._began_at = 0  # nanoseconds since the epoch

    def begin(self) -> None:
        """Begin a look."""
        self._began, self._began_at = time.thread_time_ns(), time.time_ns()
        if self._counted is None:
            self._counted = self._began

    def is_left(self) -> bool:
        """Return whether this look may continue."""
        return time.thread_time_ns() - self._began < MOST_OF_LOOK_NS

    def is_short(self) -> bool:
        """Return whether more than half of what may be saved is used: then what is needed least is left out."""
        return self._saved - (time.thread_time_ns() - self._began) < SAVED_NS // 2

    def end(self) -> int:
        """End the look; return when the next one may begin, by the clock of time.monotonic_ns."""
        now, computed = time.monotonic_ns(), time.thread_time_ns()
        collected = gc_pauses.paused_ns(self._began_at, time.time_ns())
        saved = min(self._saved + (now - self._counted_at) // ONE_OF, SAVED_NS)
        took = computed - (self._counted or self._began)
        self._saved = saved - took + min(collected, computed - self._began)
        self._counted_at, self._counted = now, computed
        return now - min(self._saved, 0) * ONE_OF
