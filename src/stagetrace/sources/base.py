"""The contract of a source: one thing that the kernel or the interpreter reports, and whether it is in use here.

A source is a module with a `SOURCE` and functions that read. A read takes about a microsecond; what it raises goes to
`SOURCE.failed`; where the platform lacks the source, the value is absent, never guessed. A source is switched off by
its variable, or by failing ten times. One that is dear to read pauses, and is then tried again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from stagetrace import log, settings
from stagetrace.guard import report, switch

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

SLOW_NS: Final = 20_000_000
SLOW_READINGS: Final = 3
WITHIN_S: Final = 60.0
HUNG_NS: Final = 1_000_000_000  # a read of this length is slow itself, and not only delayed by the scheduler
FIRST_PAUSE_S: Final = 1.0  # each further pause is twice as long
LONGEST_PAUSE_S: Final = 60.0
# The cost of a read itself: the wall clock would add waits for a CPU and the GIL.
_cost_ns: Callable[[], int] = getattr(time, "thread_time_ns", time.perf_counter_ns)


class Source:
    """One source. `lack` returns what is missing here, None if nothing is; it is called once, at the first use."""

    def __init__(self, module: str, title: str, setting: settings.Switch, lack: Callable[[], str | None]) -> None:
        self.title = title
        self.variable = setting.name
        self.is_wanted = setting.read()
        self._lack = lack
        self._lacks: str | None = None
        self._looked = False
        self._switch = switch(module)
        self._slow: list[float] = []  # when reads were slow
        self.pauses = 0
        self.paused_until = 0.0  # by the monotonic clock; 0: it is not paused
        self._pause_s = self._resumed_at = 0.0  # of the latest pause: how long it was, and when it ended, or will
        self.silent: str | None = None  # what it was asked for here and could not read, though it reads other things

    @property
    def lacks(self) -> str | None:
        """What the platform lacks; None if nothing."""
        if not self._looked:
            self._looked = True
            try:
                self._lacks = self._lack()
            except Exception as error:  # noqa: BLE001 -- whatever it is, it cannot be read here
                self._lacks = f"{type(error).__name__}: {error}"
        return self._lacks

    @property
    def is_used(self) -> bool:
        """Whether it is read at all."""
        return self.is_wanted and not self._switch.off and self.lacks is None

    def failed(self, error: BaseException) -> None:
        """Count a failure; the tenth switches it off."""
        report(self._switch.name, error)

    def read(self, function: Callable[[], R]) -> R | None:
        """Return what `function` reads, None if it fails or the source is not used. For rare readings."""
        if not self.is_used or self.is_paused():
            return None
        began, cost = time.perf_counter_ns(), _cost_ns()
        try:
            return function()
        except Exception as error:  # noqa: BLE001
            self.failed(error)
            return None
        finally:
            cost = _cost_ns() - cost
            took = time.perf_counter_ns() - began
            self.took(took if took >= HUNG_NS else cost)

    def is_paused(self) -> bool:
        """Return whether the source is paused, since its readings were slow; a pause that is over ends here."""
        if self.paused_until and time.monotonic() >= self.paused_until:
            self.paused_until = 0.0
        return self.paused_until > 0

    def took(self, nanoseconds: int) -> None:
        """Record what a read has cost: SLOW_READINGS slow ones within WITHIN_S pause it, then a single one does.

        One may be slow because its thread lost the CPU in the middle; so many, where a read takes a microsecond, hang.
        """
        if nanoseconds < SLOW_NS or self.paused_until:
            return
        now = time.monotonic()
        self._slow = [*(at for at in self._slow if now - at < WITHIN_S), now]
        was_paused = self.pauses > 0 and now - self._resumed_at < WITHIN_S
        if was_paused or len(self._slow) >= SLOW_READINGS:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if was_paused else FIRST_PAUSE_S
            self.paused_until = self._resumed_at = now + self._pause_s
            self.pauses += 1
            log.once(
                f"pause {self.title}",
                f"{self.title} took {nanoseconds / 1e6:.0f} ms to read, again: it is not read for {self._pause_s:.0f} s"
                f", then tried again, after longer pauses of up to {LONGEST_PAUSE_S:.0f} s where that recurs.\n"
                f"`stagetrace doctor` counts the pauses; {self.variable}=0 switches it off.",
            )

    def why_paused(self) -> str | None:
        """Return how often it has paused, and for how long it still does; None where it never has."""
        if not self.pauses:
            return None
        times = "once" if self.pauses == 1 else f"{self.pauses} times"
        left = self.paused_until - time.monotonic()
        now = f", now for another {left:.0f} s" if left > 0 else ""
        return f"too slow to read, paused {times}{now}"
