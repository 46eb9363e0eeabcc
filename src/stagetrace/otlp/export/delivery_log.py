"""Log how the delivery of spans goes: one line a minute while something is wrong, and the rest at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stagetrace import log
from stagetrace.guard import guarded
from stagetrace.system.threads import allocate_lock, aside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

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


# --- Count and report what becomes of spans that go out through an exporter of somebody else's, by the SDK's interface.


class CountingExporter(SpanExporter):
    """Export through `exporter`; report losses at most once a minute, and when delivery works again.

    `target` is how messages name the place that the spans go to.
    """

    def __init__(self, exporter: SpanExporter, target: str) -> None:
        self._target = target
        self._exporter = exporter
        self._lock = allocate_lock()  # guards all below
        self._failing = False
        self._reported_at = 0.0
        self.delivered = 0
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export one batch; never raises."""
        reason = "no reason given"
        try:
            result: SpanExportResult = aside(self._exporter.export)(spans)
        except Exception as error:  # noqa: BLE001 -- the exporter may be anybody's
            result, reason = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        self._count(len(spans), reason, ok=result is SpanExportResult.SUCCESS)
        return result

    def _count(self, spans: int, reason: str, *, ok: bool) -> None:
        now = time.monotonic()
        with self._lock:
            was_failing, self._failing = self._failing, not ok
            if ok:
                self.delivered += spans
                reports = was_failing
            else:
                self.lost += spans
                reports = not self._reported_at or now - self._reported_at >= REPORT_AGAIN_AFTER_S
                self._reported_at = now if reports else self._reported_at
            lost = self.lost
        if reports and ok:
            log.info(f"delivering to {self._target} again; {lost} spans were lost")
        elif reports:
            log.error(
                f"cannot deliver spans to {self._target} ({reason}); {lost} lost so far.\n"
                "Its own messages may name the cause; the service itself is not affected."
            )

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)
