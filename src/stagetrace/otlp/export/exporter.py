"""What becomes of a batch that goes out through an exporter: delivered, rejected, to be tried again, or lost."""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import TYPE_CHECKING, Final, cast

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stagetrace import log
from stagetrace.otlp.encode.span_encoder import EncodedSpans
from stagetrace.otlp.export.delivery_log import SAY_AGAIN_AFTER_S
from stagetrace.otlp.export.process_limits import NoRoomError
from stagetrace.otlp.export.response import Answer
from stagetrace.real_threads import RLock, allocate_lock, aside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from stagetrace.otlp.export.response_tap import Watch

# A pause between the parts of sending a batch, so that a thread of the service that wants to run does not wait for all
# of them. Who gives the interpreter away for less has it back before another thread has woken up.
BREATH_S: Final = 0.0001
_FORK_WAITS_FOR_BATCH_S: Final = 0.1
_FORK_WAITS_FOR_LOADING_S: Final = 5.0  # the child would wait for ever


class CountingExporter(SpanExporter):
    """Export through `exporter`; say what was lost at most once a minute, and when delivery works again.

    `target` is how messages name the place that the spans go to. `make` makes the exporter as the first batch is sent,
    since what it imports takes longer than all the rest of a service's start, and anew in a forked child, where
    connections of its parent are of no use.
    """

    def __init__(
        self, exporter: SpanExporter | None, target: str, make: Callable[[], SpanExporter] | None = None
    ) -> None:
        self.target = target
        self._exporter = exporter
        self._make = make
        self._stale = exporter is None
        self._unmade = ""  # why there is none
        self._is_short = False  # of descriptors or threads: it can be made later
        self._at_work = RLock()  # held while the exporter is made or sends: see `before_fork`
        self._forking: int | None = None  # the thread that holds it for a fork
        self._hangs = False  # a fork has waited in vain for what is under way
        self._is_watched = False
        self._watch: Watch | None = None
        self._reason = _LastReason()
        self._lock = allocate_lock()  # guards the counts below
        self._failing_since: float | None = None
        self._said_at = 0.0
        self.delivered = 0
        self.lost = 0

    def watch(self) -> None:
        """See the receiver's own answers, where the exporter is an official one of a kind that is known."""
        from stagetrace.otlp.export.response_tap import watch

        self._is_watched = True
        self._watch = watch(self._exporter) if self._exporter is not None else None

    def before_fork(self) -> None:
        """Wait for the batch that is under way, once and for a bounded time; then `after_fork` or `begin_again` follow.

        gRPC does not work in a child of a process that was just calling into it, and a module whose import is under way
        is never there.
        """
        if self._hangs:
            return
        if self._at_work.acquire(timeout=_FORK_WAITS_FOR_LOADING_S if self._stale else _FORK_WAITS_FOR_BATCH_S):
            self._forking = threading.get_ident()
        else:
            self._hangs = True

    def after_fork(self) -> None:
        """Go on, in the parent."""
        if self._forking == threading.get_ident():
            self._forking = None
            self._at_work.release()

    def begin_again(self) -> None:
        """Forget the parent's connections, in a forked child."""
        self._stale = self._make is not None
        self._at_work = RLock()
        self._forking = None
        self._hangs = False
        self._reason = _LastReason()
        self._lock = allocate_lock()

    def send(self, request: bytes, spans: int) -> Answer:
        """Export a serialized request of `spans` spans, once; return what became of it. Never raises.

        Without `watch`, the exporter tries again by itself, and what it logs has to tell whether that could help.
        """
        with self._at_work:
            self._hangs = False
            return self._send(request, spans)

    def _send(self, request: bytes, spans: int) -> Answer:
        if not self.load():
            short = self._is_short
            return Answer(delivered=False, again=short, misdirected=not short, reason=self._unmade)
        if self._watch is not None:
            self._watch.begin()
        make = self._watch.encoded if self._watch is not None else EncodedSpans
        result, reason = self._export(cast("Sequence[ReadableSpan]", make(request, spans)))
        answer = self._watch.answer if self._watch is not None else None
        if answer is not None:
            return answer
        ok = result is SpanExportResult.SUCCESS
        return Answer(ok, again=not ok and _RETRYABLE.search(reason) is not None, reason="" if ok else reason)

    def load(self) -> bool:
        """Make the exporter, unless it is made; return whether there is one. Never raises."""
        if self._stale:
            with self._at_work:
                if self._stale and self._make is not None and (self._is_short or not self._unmade):
                    try:
                        self._exporter = self._make()
                        if self._is_watched:
                            self.watch()
                        self._stale = False
                    except NoRoomError as error:
                        self._is_short, self._unmade = True, f"the exporter cannot be loaded yet: {error}"
                    except Exception as error:  # noqa: BLE001 -- the exporter may be anybody's
                        self._is_short = False
                        self._unmade = f"the exporter cannot be loaded: {type(error).__name__}: {error}"
        return not self._stale

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export one batch of somebody else's processor; never raises."""
        result: SpanExportResult
        result, reason = aside(self._export)(spans)
        self._note(len(spans), reason, ok=result is SpanExportResult.SUCCESS)
        return result

    def _export(self, spans: Sequence[ReadableSpan]) -> tuple[SpanExportResult, str]:
        with self._reason:
            self._reason.text = ""
            try:
                result = self._exporter.export(spans)  # type: ignore[union-attr]  # there is one by now
            except Exception as error:  # noqa: BLE001 -- the exporter may be anybody's
                return SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        return result, self._reason.text

    def _note(self, spans: int, reason: str, *, ok: bool) -> None:
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
            log.info(f"delivering to {self.target} again; {lost} spans were lost")
        elif say:
            log.error(
                f"cannot deliver spans to {self.target} ({reason or 'no reason given'}); {lost} lost so far.\n"
                "Start a Collector there, or set OTEL_EXPORTER_OTLP_ENDPOINT; the service itself is not affected."
            )

    def shutdown(self) -> None:
        """Shut the exporter down; an export that is under way ends."""
        if self._exporter is not None:
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the exporter."""
        return self._exporter is None or self._exporter.force_flush(timeout_millis)


# What the official exporters log where sending once more could help.
_RETRYABLE: Final = re.compile(
    r"StatusCode\.(CANCELLED|DEADLINE_EXCEEDED|ABORTED|OUT_OF_RANGE|UNAVAILABLE|DATA_LOSS)"
    r"|due to timeout, max retries or shutdown|Shutdown in progress|already shutdown|closed channel"
)


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
            logging.getLogger(name).filters.insert(0, self)  # before theirs, which drops what was said before

    def __exit__(self, *_: object) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.thread != self._thread:
            return True
        self.text = record.getMessage().partition("\n")[0][:200]
        return False
