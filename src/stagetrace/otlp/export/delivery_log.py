"""Log how the delivery of spans goes: one line a minute while something is wrong, and the rest at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REPORT_AGAIN_AFTER_S: Final = 60.0


class DeliveryLog:
    """The log of one sender: `counts` are its counts, `target` names the receiver, `folder` is its spool's."""

    def __init__(self, target: str, counts: Callable[[], dict[str, int]], folder: Path | None) -> None:
        self._target = target
        self._counts = counts
        self._folder = folder
        self._at = 0.0
        self._dropped = self._lost = 0
        self.ending = False  # our own end cuts off what is under way, which is no problem

    @guarded
    def problem(self, what: str, remedy: str) -> None:
        """Log what is wrong, what that has cost so far, and what a person may do about it."""
        now = time.monotonic()
        if self.ending or (self._at and now - self._at < REPORT_AGAIN_AFTER_S):
            return
        self._at = now
        log.error(f"{what}; {self._numbers()}.\n{remedy}; the service itself is not affected.")

    @guarded
    def dropped(self, spans: int) -> None:
        """Log that so many spans were dropped so far, if that is more than were logged."""
        if spans > self._dropped:
            self._dropped = spans
            remedy = "Give it more to run on, or sample with OTEL_TRACES_SAMPLER"
            remedy += ", or set STAGETRACE_SPOOL" if self._folder is None else ""
            self.problem(f"{spans} spans were dropped so far, since {self._target} takes them too slowly", remedy)

    def spool_fails(self, error: Exception) -> None:
        """Log, once, that the spool cannot be used."""
        log.once(
            "spool",
            f"STAGETRACE_SPOOL={self._folder or ''} cannot be used ({type(error).__name__}: {error}); "
            "spans wait in memory.\nGive it room and the right to write there; it is tried again.",
        )

    @guarded
    def recovered(self) -> None:
        """Log that spans are delivered again, if it was logged that they are not."""
        if self._at:
            self._at = 0.0
            log.info(f"delivering to {self._target} again; {self._numbers()}")

    @guarded
    def final(self, late: int = 0) -> None:
        """Log that so many spans were too late, and how many were lost in all if that is more than were logged."""
        if late:
            log.error(f"{late} spans are lost: they could not be delivered to {self._target} in time.")
        before, self._lost = self._lost, _lost(self._counts())
        if self._lost > before + late:
            log.error(f"{self._lost} spans were lost in all: {self._target} did not take them.")

    def _numbers(self) -> str:
        counts = self._counts()
        self._lost = _lost(counts)
        if self._folder is not None:
            return f"{self._lost} lost so far, {counts['spooled']} went to {self._folder}"
        return f"{self._lost} lost so far, {counts['waiting']} wait"


def _lost(counts: dict[str, int]) -> int:
    return sum(counts[key] for key in ("dropped", "dropped_breaches", "refused", "rejected", "lost", "spool_full"))
