"""Count and say what could not be delivered, in place of the official exporter's own lines."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stagetrace import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

SAY_AGAIN_AFTER_S = 60.0


class CountingExporter(SpanExporter):
    """Export through `exporter`; say what was lost at most once a minute, and when delivery works again.

    `target` is how messages name the place that the spans go to.
    """

    def __init__(self, exporter: SpanExporter, target: str) -> None:
        self._exporter = exporter
        self._target = target
        self._reason = _LastReason()
        self._lock = threading.Lock()  # guards the counts below
        self._failing_since: float | None = None
        self._said_at = 0.0
        self.delivered = 0
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export one batch; never raises."""
        with self._reason:
            try:
                result = self._exporter.export(spans)
            except Exception as error:  # noqa: BLE001 -- the exporter may be anybody's
                self._reason.text = f"{type(error).__name__}: {error}"
                result = SpanExportResult.FAILURE
        self._note(len(spans), ok=result is SpanExportResult.SUCCESS)
        return result

    def _note(self, spans: int, *, ok: bool) -> None:
        now = time.monotonic()
        with self._lock:
            if ok:
                self.delivered += spans
                recovered = self._failing_since is not None
                self._failing_since = None
                say = recovered
            else:
                self.lost += spans
                self._failing_since = self._failing_since or now
                say = not self._said_at or now - self._said_at >= SAY_AGAIN_AFTER_S
                self._said_at = now if say else self._said_at
            lost = self.lost
        if say and ok:
            log.info(f"delivering to {self._target} again; {lost} spans were lost")
        elif say:
            log.error(
                f"cannot deliver spans to {self._target} "
                f"({self._reason.text or 'no reason given'}); {lost} lost so far.\n"
                "Start a Collector there, or set OTEL_EXPORTER_OTLP_ENDPOINT; the service itself is not affected."
            )

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)


class _LastReason(logging.Filter):
    """Within its block, in its thread, keeps the official exporter's last complaint in place of a line for each retry.

    Other exporters of the process, for metrics or logs, share these loggers and go on speaking for themselves.
    """

    LOGGERS = (
        "opentelemetry.exporter.otlp.proto.grpc.exporter",
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    )

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._thread: int | None = None

    def __enter__(self) -> None:
        self._thread = threading.get_ident()
        for name in self.LOGGERS:
            logging.getLogger(name).addFilter(self)

    def __exit__(self, *_: object) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.thread != self._thread:
            return True
        self.text = record.getMessage().partition("\n")[0][:200]
        return False
