"""Encode each span as it ends, queue the bytes, and leave the rest to threads of our own.

Spans that are queued as objects outlive the young generations of the garbage collector, whose full collections stop
the process. It does not look at bytes (docs/decisions/009, also for what this did not solve).
"""

from __future__ import annotations

import functools
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log, settings
from stagetrace.guard import guarded, report
from stagetrace.otlp.encode import encode_span
from stagetrace.otlp.export.client import ExportClient, require
from stagetrace.otlp.export.queue import SpanQueue
from stagetrace.otlp.export.sender import Sender
from stagetrace.semconv import METRIC_SPANS, METRIC_SPANS_OUTCOME, SLA_VERDICT
from stagetrace.system.setting_problems import whole_number
from stagetrace.system.threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stagetrace.otlp.export.response import Trouble
    from stagetrace.otlp.export.spool import Spool
    from stagetrace.otlp.export.transport import Transport

MAX_QUEUED_BYTES: Final = 16 << 20
_LONGEST_DELAY_MS: Final = 86_400_000  # a number that means "never" may be too large for a clock
_WAKE_AT: Final = 64  # items: look whether a batch is complete
_SORT_AT: Final = 128  # items that a sending thread, kept from its work, has left unsorted
_BIG: Final = 64 << 10  # bytes of an item that is not left unsorted with others


class EncodingSpanProcessor:
    """Send sampled spans by OTLP in batches, with the meaning of the OTEL_BSP_* variables.

    It has the methods of OpenTelemetry's SpanProcessor, and so is one.

    At most `max_spans` and `max_bytes` are queued. When the queue is full, the oldest good spans are dropped, breaches
    last of all, and counted (`counts`). With `spool`, what cannot be delivered goes there and is delivered later, by
    this process or another.
    """

    def __init__(
        self,
        client: ExportClient,
        *,
        max_spans: int | None = None,
        max_bytes: int = MAX_QUEUED_BYTES,
        spool: Spool | None = None,
    ) -> None:
        self._client = client
        self._spool = spool
        self._max_spans = max_spans or whole_number(settings.QUEUE_SIZE)
        self._max_bytes = max_bytes
        self._batch = min(whole_number(settings.BATCH_SIZE), self._max_spans)
        self._delay_s = min(whole_number(settings.SCHEDULE_DELAY), _LONGEST_DELAY_MS) / 1000
        self._wake_at = min(_WAKE_AT, self._batch)
        self._begin()
        if spool is not None:
            self._start()  # an earlier process may have left something, which needs no span of this one
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_weakly(self._before_fork),
                after_in_parent=_weakly(self._after_fork),
                after_in_child=_weakly(self._begin_again),
            )

    def _begin(self) -> None:
        self._queue = SpanQueue(self._max_spans, self._max_bytes)
        self._sender = Sender(self._queue, self._client, self._spool, batch=self._batch, delay_s=self._delay_s)
        self._starting = allocate_lock()
        self._started = False

    @guarded
    def _before_fork(self) -> None:
        self._client.before_fork()

    @guarded
    def _after_fork(self) -> None:
        self._client.after_fork()

    @guarded
    def _begin_again(self) -> None:
        """Begin empty and without threads in a forked child, whose parent sends what was queued."""
        self._client.begin_again()
        if self._spool is not None:
            self._spool.release()
            self._spool = self._spool.anew()
        self._begin()

    def _start(self) -> None:
        if not self._started and self._starting.acquire(blocking=False):  # else another thread does it
            self._started = True
            self._sender.start()

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Do nothing."""

    def _on_ending(self, span: Any) -> None:
        """Do nothing."""

    @guarded
    def on_end(self, span: Any) -> None:
        """Encode and queue one sampled span. Never raises."""
        self.put_spans((span,), breach=_is_breach(span))

    @guarded
    def put_spans(self, spans: Sequence[Any], *, breach: bool) -> None:
        """Encode and queue the sampled ones of `spans`. Never raises."""
        for span in spans:
            context = span.context
            if context is not None and context.trace_flags.sampled:
                try:
                    encoded = encode_span(span)
                except Exception as error:  # noqa: BLE001 -- it is lost, the others are not
                    report("stagetrace.otlp.encode", error)
                    self.add_lost()
                    continue
                self.put(span.resource, span.instrumentation_scope, encoded, 1, breach=breach)

    def put(self, resource: Any, scope: Any, encoded: bytes, spans: int, *, breach: bool) -> None:
        """Queue what `encode_span` returned for `spans` spans of one resource and scope, joined. Never raises.

        Takes about a microsecond, waits for nothing, and may come from a finalizer.
        """
        try:
            unsorted = self._queue.add(resource, scope, encoded, spans, breach=breach)
            if not self._started or unsorted >= self._wake_at or len(encoded) > _BIG:
                self.was_put(unsorted, len(encoded))
        except Exception as error:  # noqa: BLE001 -- `guarded`, without its price
            report("stagetrace.otlp.export.batch_processor", error)

    def add_lost(self) -> None:
        """Count a span that could not be encoded."""
        self._sender.add_lost()

    def was_put(self, unsorted: int, size: int) -> None:
        """Let the sending thread look at what was added, if it is time: so many items, the last of `size` bytes."""
        if not self._started:
            self._start()
        if unsorted >= self._wake_at or size > _BIG:
            sender = self._sender
            if not sender.woken:
                sender.wake()
            if unsorted >= _SORT_AT or size > _BIG:
                self._queue.sort_in(wait=False)

    def counts(self) -> dict[str, int]:
        """Return in spans what became of those that this process received: see `Sender.counts`."""
        return self._sender.counts()

    def trouble(self) -> Trouble | None:
        """Return why the last batch was not delivered whole; None if it was, or there was none."""
        return self._sender.trouble

    def load(self) -> None:
        """Load the transport now, not with the first batch. Never raises."""
        self._client.load()

    def deliver_immediately(self) -> None:
        """Send without delay from now on, since the process is about to end."""
        self._sender.deliver_immediately()

    def report_lost(self) -> None:
        """Log what was lost and not logged yet, at the end of the process."""
        self._sender.log.final()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued; return whether all was delivered, or is safe in the spool, in time."""
        if self._queue.empty() and not self._started:
            return True
        self._start()
        return self._sender.flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Flush within a bound, then end the threads and the connection; what ends later is dropped, and counted so."""
        self._sender.shutdown()


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return a callback that calls a method and does not keep its object alive."""
    weak = weakref.WeakMethod(method)
    return lambda: (there := weak()) and there()


def _is_breach(span: Any) -> bool:
    """Return whether a span is a breach, or belongs to one: SLASpanProcessor marks its stages so."""
    return getattr(span, "of_breach", False) or (span.attributes or {}).get(SLA_VERDICT) == "breach"


# --- Make the processor that sends spans by OTLP, with its transport and its spool, as the environment says.

_processors: weakref.WeakSet[EncodingSpanProcessor] = weakref.WeakSet()
# The counts that are no final outcome; `from_spool` and `refused_from_spool` were `spooled` before, maybe elsewhere.
_STATES = ("received", "waiting", "in_hand")


def otlp_processor(name: str, target: str) -> EncodingSpanProcessor:
    """Return a processor that sends as an exporter of `OTLP_EXPORTERS` would, with a spool if STAGETRACE_SPOOL is set.

    `target` is how messages name the receiver.
    """
    client = ExportClient(functools.partial(open_transport, name), target)
    processor = EncodingSpanProcessor(client, spool=_spool(target))
    _processors.add(processor)
    return processor


def open_transport(name: str, signal: str = "TRACES") -> Transport:
    """Open the transport in place of one of `OTLP_EXPORTERS`; raise where a setting, a package or room is missing.

    `signal`: what it sends, TRACES or METRICS.
    """
    require(grpc=name == "otlp_proto_grpc")
    from stagetrace.otlp.export.transport import TRANSPORTS

    return TRANSPORTS[name](signal)


def _spool(target: str) -> Spool | None:
    folder = settings.SPOOL.read()
    if not folder:
        return None
    from stagetrace.otlp.export.spool import Spool, supported

    if not supported():
        log.once("spool", "STAGETRACE_SPOOL needs file locks, which this system has not; spans wait in memory alone.")
        return None
    if len(_processors):
        log.once("spool", f"STAGETRACE_SPOOL is for one exporter alone; what {target} does not take waits in memory.")
        return None
    size = whole_number(settings.SPOOL_MAX_BYTES)
    try:
        return Spool(Path(folder).expanduser().absolute(), size)
    except RuntimeError:
        log.once("spool", f"STAGETRACE_SPOOL={folder} is in nobody's home folder here; spans wait in memory alone.")
        return None


def processors() -> list[EncodingSpanProcessor]:
    """Return those of this process."""
    return list(_processors)


def deliver_immediately() -> None:
    """Let all processors send without delay from now on."""
    for processor in processors():
        processor.deliver_immediately()


def report_lost() -> None:
    """Let all processors log what was lost and not logged yet."""
    for processor in processors():
        processor.report_lost()


def offer_counts(meter: Any, observation: Any) -> None:
    """Offer what became of spans as an observable counter by outcome; `observation` makes those of OpenTelemetry."""

    def observe(_options: Any) -> Iterable[Any]:
        totals: dict[str, int] = {}
        for processor in processors():
            for outcome, spans in processor.counts().items():
                totals[outcome] = totals.get(outcome, 0) + spans
        return [
            observation(spans, {METRIC_SPANS_OUTCOME: outcome})
            for outcome, spans in totals.items()
            if outcome not in _STATES
        ]

    meter.create_observable_counter(METRIC_SPANS, [observe], unit="{span}", description="Spans by what became of them.")
