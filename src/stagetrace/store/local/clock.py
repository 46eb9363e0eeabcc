"""The store's own clock, by which spans grow old: what senders write, and a system clock that is set, do not count.

It begins as the system's clock, runs on with the time that really passes while the store is open, and over the time for
which the store was closed it trusts the system's clock up to `MOST_CLOSED`.
"""

from __future__ import annotations

import time
from typing import Final

from stagetrace.store.local.delta import now_ms
from stagetrace.store.local.snapshot import ClockReading, Snapshot

AHEAD_NS: Final = 3600 * 10**9  # by which a sender's clock may be ahead
MOST_CLOSED: Final = 0.5  # of the retention
_CLOSED_MS: Final = 86_400_000  # without a retention
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps


class Clock:
    """The clock of an open store. Safe for several threads: nothing of it changes."""

    def __init__(self, table: Snapshot, retention_s: float | None) -> None:
        """Go on from the time that the table was written at, or start with the system's time."""
        system = now_ms()
        last = table.clock or ClockReading(system, system)
        most = _CLOSED_MS if retention_s is None else int(retention_s * 1000 * MOST_CLOSED)
        self._begin = last.store + min(max(0, system - last.system), most)
        self._opened = _elapsed_ms()

    def now(self) -> int:
        """Return the store's time in ms."""
        return self._begin + _elapsed_ms() - self._opened

    def reading(self) -> ClockReading:
        """Return what goes into a commit."""
        return ClockReading(self.now(), now_ms())

    def latest_start_ns(self) -> int:
        """Return the latest start of a span that is accepted, by whichever clock is ahead: neither need be right."""
        return max(self.now(), now_ms()) * 1_000_000 + AHEAD_NS


def _elapsed_ms() -> int:
    return time.clock_gettime_ns(_ELAPSED) // 1_000_000
