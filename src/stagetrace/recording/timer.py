"""A timer that one thread waits for and any thread sets."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from stagetrace.real_threads import allocate_lock

_NEVER: Final = 2**63 - 1
_LONGEST_S: Final = 3_600.0  # of one wait


class Timer:
    """Ends once, at the time that was set last; to set it later or to clear it wakes nobody."""

    def __init__(self) -> None:
        self._woken = allocate_lock()  # released to wake the thread that waits
        self._woken.acquire()
        self._due = _NEVER  # by the clock of time.monotonic_ns
        self._until = _NEVER  # when the thread that waits will look by itself

    def set(self, after_ns: int) -> None:
        """Let it end after so many nanoseconds."""
        self._due = time.monotonic_ns() + after_ns
        if self._due < self._until:
            with suppress(RuntimeError):  # woken already
                self._woken.release()

    def clear(self) -> None:
        """Let it not end."""
        self._due = _NEVER

    def wait(self) -> int:
        """Wait for its end, clear it, and return by how many nanoseconds that is past."""
        while True:
            due = self._due
            left = due - time.monotonic_ns()
            if left <= 0:
                self.clear()
                return -left
            self._until = due
            self._woken.acquire(timeout=min(left / 1e9, _LONGEST_S))
            self._until = _NEVER
