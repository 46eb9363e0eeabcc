"""A timer that one thread waits for and any thread sets.

Two implementations, chosen once at import. `KernelTimer` is a timerfd: to set it later, or clear it, wakes no thread.
`PythonTimer`, for builds without C, sleeps until the moment that it was set to as the wait began: one that is always
set later wakes its thread once in that distance.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from stagetrace.native import native
from stagetrace.real_threads import allocate_lock
from stagetrace.sources.stacks import NamedCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.sources.stacks import Place

    # As C gives a place: file, name, qualified name, flags, line, the frame's address.
    Raw = tuple[str, str, str, int, int, int]

_NEVER: Final = 2**63 - 1
_LONGEST_S: Final = 3_600.0  # of one wait
_DECADES_NS: Final = 2**61
NO_CLOCKS: Final[Mapping[int, int]] = {}


class Holder(NamedTuple):
    """The thread that had the GIL as a timer ended, and where it stood: seen by a thread that had not."""

    ago_ns: int
    thread: int  # its ident
    raw: tuple[Raw, ...]  # the innermost place first; none of a thread that ran Python

    def places(self) -> list[Place]:
        """Return its places, the innermost first."""
        return [(NamedCode(file, name, qualified, flags), line) for file, name, qualified, flags, line, _ in self.raw]

    def index_of(self, thing: Any) -> int | None:
        """Return which of its places is the frame of a coroutine, which lies in the object itself; None if none is."""
        begin, end = id(thing), id(thing) + thing.__sizeof__()
        return next((at for at, one in enumerate(self.raw) if begin <= one[5] < end), None)


class Late(NamedTuple):
    """How long a timer had ended when its thread ran again: the wait for a CPU, then for the GIL, in nanoseconds."""

    cpu_ns: int
    gil_ns: int
    computed: Mapping[int, int] = NO_CLOCKS  # before a wait for the GIL of 5 ms and more, by the numbers of threads
    holder: Holder | None = None


class Timer(Protocol):
    """Ends once, at the time that was set last."""

    def set(self, after_ns: int) -> None:
        """Let it end after so many nanoseconds. Raise OSError where it is no longer there."""

    def clear(self) -> None:
        """Let it not end. Raise OSError where it is no longer there."""

    def wait(self) -> Late:
        """Wait for its end, and clear it. Raise OSError where it is no longer there."""

    def close(self) -> None:
        """Close what it has open, in a forked child too; it is not used any more."""


class PythonTimer:
    """A `Timer` in Python. It cannot separate waits for a CPU from those for the GIL: all count as the former."""

    def __init__(self) -> None:
        self._woken = allocate_lock()  # released to wake the thread that waits
        self._woken.acquire()
        self._due = _NEVER  # by the clock of time.monotonic_ns
        self._until = _NEVER  # when the thread that waits will look by itself

    def set(self, after_ns: int) -> None:
        """As `Timer` says; so below."""
        self._due = time.monotonic_ns() + after_ns
        if self._due < self._until:
            with suppress(RuntimeError):  # woken already
                self._woken.release()

    def clear(self) -> None:
        self._due = _NEVER

    def wait(self) -> Late:
        while True:
            due = self._due
            left = due - time.monotonic_ns()
            if left <= 0:
                self.clear()
                return Late(-left, 0)
            self._until = due
            self._woken.acquire(timeout=min(left / 1e9, _LONGEST_S))
            self._until = _NEVER  # who sets it from now on wakes

    def close(self) -> None:
        pass


class KernelTimer:
    """A `Timer` of Linux (native/timer.c)."""

    def __init__(self) -> None:
        self._interval = _DECADES_NS + int.from_bytes(os.urandom(7), "little")  # by which it is known again
        self._number: int = _native.make_timer(self._interval)

    def set(self, after_ns: int) -> None:
        """As `Timer` says; so below."""
        _native.set_timer(self._number, self._interval, max(after_ns, 1))

    def clear(self) -> None:
        _native.set_timer(self._number, self._interval, 0)

    def wait(self) -> Late:
        cpu_ns, gil_ns, computed, seen = _native.wait_for_timer(self._number, self._interval)
        return Late(cpu_ns, gil_ns, computed, None if seen is None else Holder(*seen))

    def close(self) -> None:
        _native.close_timer(self._number, self._interval)


_native = native("timer")
HAS_KERNEL_TIMERS: Final = hasattr(_native, "make_timer")
SEES_HOLDER: Final[bool] = HAS_KERNEL_TIMERS and _native.sees_holder()  # of the GIL: so in CPython 3.11


def holder_meanwhile() -> Holder | None:
    """Return where a thread stood that had the GIL as a timer ended, while the timer's thread waits for it still."""
    seen = _native.seen_meanwhile() if SEES_HOLDER else None
    return None if seen is None else Holder(*seen)


def thread_state(number: int) -> str:
    """Return the kernel's letter for what a thread does, by its number; "" where that is unknown."""
    state: str = _native.thread_state(number) if HAS_KERNEL_TIMERS else ""
    return state


def make() -> Timer:
    """Return a new timer, which is not set."""
    if HAS_KERNEL_TIMERS:
        with suppress(OSError):  # no descriptor is left, or a sandbox allows none
            return KernelTimer()
    return PythonTimer()
