"""Count and report what becomes of spans that go out through an exporter of somebody else's, by the SDK's interface."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stagetrace import log
from stagetrace.otlp.export.delivery_log import REPORT_AGAIN_AFTER_S
from stagetrace.system.threads import allocate_lock, aside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan


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
