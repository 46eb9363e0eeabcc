"""How late the event loops of this process ran what was due, since it began to count."""

from __future__ import annotations

import os
from typing import Any, Final

from stagetrace.sla.latency_histogram import Collected, Histogram


class LoopLags:
    """The histogram of this process; a forked child has another one."""

    def __init__(self) -> None:
        self._histogram: Any = Histogram()

    def begin_again(self) -> None:
        """Begin anew, in a forked child."""
        self._histogram = Histogram()

    def add(self, took_ns: int) -> None:
        """Take one measurement."""
        self._histogram.add(took_ns, None, False)  # noqa: FBT003 -- of C, takes no names

    def collected(self) -> Collected:
        """Return all measurements."""
        return Collected(*self._histogram.collect())


loop_lags: Final = LoopLags()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=loop_lags.begin_again)
