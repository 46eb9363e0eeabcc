"""Encode each span as it ends, and send the bytes from a thread, through the official exporter.

Spans that wait as objects outlive the young generations of the garbage collector, whose full collections stop the
process. Bytes are nothing to it (docs/decisions/009, also for what this did not solve).
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor

from stagetrace import log
from stagetrace.guard import guarded, report
from stagetrace.otlp.encoder import EncodedSpans, encode_span, resource_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

MAX_QUEUED_SPANS = 16_384
MAX_QUEUED_BYTES = 16 << 20
MAX_BATCH_SPANS = 512
DELAY_MS = 1_000  # small and frequent sends disturb less than big and rare ones


class _Group:
    """Encoded spans of one resource and scope. It holds both, so that their identities stay theirs."""

    def __init__(self, resource: Resource, scope: InstrumentationScope | None) -> None:
        self.resource = resource
        self.scope = scope
        self.spans: list[bytes] = []


class EncodingSpanProcessor(SpanProcessor):
    """Send sampled spans to an official OTLP exporter in batches, with the meaning of the OTEL_BSP_* variables.

    At most `max_spans` and `max_bytes` wait; what comes beyond is dropped, counted in `dropped` and said once a minute.
    """

    def __init__(
        self, exporter: SpanExporter, *, max_spans: int | None = None, max_bytes: int = MAX_QUEUED_BYTES
    ) -> None:
        self._exporter = exporter
        self._max_spans = max_spans or _number("OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUED_SPANS)
        self._max_bytes = max_bytes
        self._batch = min(_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", MAX_BATCH_SPANS), self._max_spans)
        self._delay_s = _number("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS) / 1000
        self.dropped = 0
        self._said_at = 0.0
        self._ended = False
        self._reset()
        if hasattr(os, "register_at_fork"):
            reset = weakref.WeakMethod(self._reset)
            os.register_at_fork(after_in_child=lambda: (method := reset()) and method())

    def _reset(self) -> None:
        """Begin empty and without a thread: at first, and in a forked child, whose parent sends what was queued."""
        self._lock = threading.Lock()  # guards the groups, both sums, `dropped` and the thread's start
        self._changed = threading.Condition(self._lock)
        self._groups: dict[tuple[int, int], _Group] = {}
        self._spans = 0
        self._bytes = 0
        self._sending = False
        self._flush_asked = False
        self._thread: threading.Thread | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Encode and queue one sampled span. Never raises."""
        self._queue(span)

    @guarded
    def _queue(self, span: ReadableSpan) -> None:
        context = span.context
        if self._ended or context is None or not context.trace_flags.sampled:
            return
        resource, scope = span.resource, span.instrumentation_scope
        encoded = _encode(span)
        with self._lock:
            if self._spans >= self._max_spans or self._bytes + len(encoded) > self._max_bytes:
                self.dropped += 1
                self._say_dropped()
                return
            group = self._groups.get((id(resource), id(scope)))
            if group is None:
                group = self._groups[id(resource), id(scope)] = _Group(resource, scope)
            group.spans.append(encoded)
            self._spans += 1
            self._bytes += len(encoded)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stagetrace-export", daemon=True)
                self._thread.start()
            elif self._spans == self._batch:
                self._changed.notify_all()

    def _say_dropped(self) -> None:
        now = time.monotonic()
        if not self._said_at or now - self._said_at > 60:  # noqa: PLR2004 -- a minute
            self._said_at = now
            log.error(
                f"{self.dropped} spans were dropped so far: {self._spans} wait to be sent and are not taken in time.\n"
                "Give the Collector more room, or raise OTEL_BSP_MAX_QUEUE_SIZE; the service itself is not affected."
            )

    def _run(self) -> None:
        while not self._ended:
            with self._lock:
                if self._spans < self._batch and not self._flush_asked:
                    self._changed.wait(self._delay_s)
                groups = self._take()
            self._send(groups)

    def _take(self) -> list[_Group]:
        groups = [group for group in self._groups.values() if group.spans]
        self._groups = {}
        self._spans = 0
        self._bytes = 0
        self._sending = bool(groups)
        return groups

    def _send(self, groups: list[_Group]) -> None:
        try:
            with suppress_instrumentation():
                for group in groups:
                    for start in range(0, len(group.spans), self._batch):
                        spans = group.spans[start : start + self._batch]
                        request = EncodedSpans(resource_spans(group.resource, {group.scope: spans}), len(spans))
                        self._exporter.export(cast("Sequence[ReadableSpan]", request))
        except Exception as error:  # noqa: BLE001 -- the thread must go on
            report("stagetrace.otlp.processor", error)
        with self._lock:
            self._sending = False
            self._flush_asked = self._flush_asked and self._spans > 0
            self._changed.notify_all()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued; return whether all was handed to the exporter in time."""
        with self._lock:
            if self._thread is None:
                return True
            self._flush_asked = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._spans and not self._sending, timeout_millis / 1000)

    def shutdown(self) -> None:
        """Flush, then end the thread and the exporter; what ends later is not recorded."""
        self.force_flush()
        self._ended = True
        with self._lock:
            self._changed.notify_all()
        self._exporter.shutdown()


def _encode(span: ReadableSpan) -> bytes:
    try:
        return encode_span(span)
    except Exception as error:  # noqa: BLE001 -- as in instrumentation/otlp_exporter.py
        report("stagetrace.otlp.encoder", error)
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
        from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

        request: Any = encode_spans([span])
        return ScopeSpans(spans=request.resource_spans[0].scope_spans[0].spans).SerializeToString()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if text.isdigit() and int(text):
        return int(text)
    log.once(name, f"{name}={text} is not a whole number from 1 on; using {default}.")
    return default
