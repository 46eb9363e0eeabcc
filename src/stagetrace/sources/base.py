"""The contract of a source: one thing that the kernel or the interpreter reports, and whether it is in use here.

A source is a module with a `SOURCE` and functions that read. A read takes about a microsecond; what it raises goes to
`SOURCE.failed`; where the platform lacks the source, the value is absent, never guessed. A source is switched off by
its variable, by failing ten times, or by hanging.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from stagetrace import config, log
from stagetrace.guard import report, switch

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

SLOW_NS: Final = 20_000_000
SLOW_READINGS: Final = 3
WITHIN_S: Final = 60.0


class Source:
    """One source. `lack` returns what is missing here, None if nothing is; it is called once, at the first use."""

    def __init__(self, module: str, title: str, setting: config.Switch, lack: Callable[[], str | None]) -> None:
        self.title = title
        self.variable = setting.name
        self.is_wanted = setting.read()
        self._lack = lack
        self._lacks: str | None = None
        self._looked = False
        self._switch = switch(module)
        self._slow: list[float] = []  # when reads were slow
        self.silent: str | None = None  # what it was asked for here and cannot read, whatever it reads of others

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
        """Return what `function` reads, None if it fails or the source is not used: for what is read now and then."""
        if not self.is_used:
            return None
        began = time.perf_counter_ns()
        try:
            return function()
        except Exception as error:  # noqa: BLE001
            self.failed(error)
            return None
        finally:
            self.took(time.perf_counter_ns() - began)

    def took(self, nanoseconds: int) -> None:
        """Record how long a read took: SLOW_READINGS slow ones within WITHIN_S switch it off.

        One may be slow because its thread lost the CPU in the middle; so many, where a read takes a microsecond, hang.
        """
        if nanoseconds < SLOW_NS:
            return
        now = time.monotonic()
        self._slow = [*(at for at in self._slow if now - at < WITHIN_S), now]
        if len(self._slow) >= SLOW_READINGS and not self._switch.off:
            self._switch.off = True
            log.error(
                f"{self.title} took {nanoseconds / 1e6:.0f} ms to read, again: it is switched off in this process, all "
                f"else goes on. {self.variable}=0 switches it off from the start."
            )
