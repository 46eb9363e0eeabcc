"""CPU time of the process, on some of its requests: what all its threads have computed since the request before.

The readings add up, whatever attributes of the process the spans have, and whichever requests a sampler drops: only
a request that is kept carries a reading, and the reading counts from the one before it.
"""

from __future__ import annotations

import os
from time import process_time_ns
from typing import TYPE_CHECKING, Final

from stagetrace.guard import guarded
from stagetrace.real_threads import allocate_lock
from stagetrace.semconv import STAGETRACE_PROCESS_CPU_MS

if TYPE_CHECKING:
    from typing import Any

INTERVAL_NS: Final = 250_000_000  # of the service's time between two readings, each of which is a system call


class ProcessCpu:
    """What the process has computed until the last reading. `_lock` guards the fields."""

    def __init__(self) -> None:
        self.begin_again()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.begin_again)

    def begin_again(self) -> None:
        """Count from the next request on: the CPU time before that belongs to no request."""
        self._lock = allocate_lock()
        self._at_ns = 0
        self._computed_ns: int | None = None

    @guarded
    def add_to(self, attributes: dict[str, Any], now_ns: int) -> None:
        """Add the CPU time since the last reading to a request that ended at `now_ns`, if that is long ago."""
        if 0 <= now_ns - self._at_ns < INTERVAL_NS or not self._lock.acquire(blocking=False):
            return
        try:
            computed, before = process_time_ns(), self._computed_ns
            self._at_ns, self._computed_ns = now_ns, computed
        finally:
            self._lock.release()
        if before is not None:
            attributes[STAGETRACE_PROCESS_CPU_MS] = (computed - before) / 1e6


process_cpu: Final = ProcessCpu()
