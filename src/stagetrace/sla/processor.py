"""The span processor that tiles, judges and hands on: it wraps the exporting one, since ended spans are frozen."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from stagetrace import log, semconv
from stagetrace.guard import guarded
from stagetrace.recording.context import current, entries
from stagetrace.recording.spans import FinishedSpan, sampled, stage_span
from stagetrace.recording.timeline import Timeline
from stagetrace.sla.policy import Policy
from stagetrace.sla.sampling import HeldSpans, dropped
from stagetrace.sla.verdict import judge

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from stagetrace.sla.verdict import Verdict

SAY_UNMATCHED_AFTER = 100
MAX_ROUTES_SHOWN = 5


class VerdictCounter:
    """Exact count of judged requests by objective and verdict, taken before any sampling."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._counts: dict[tuple[str, str], int] = {}
        self.unmatched = 0
        self._routes: dict[str, None] = {}  # of unmatched requests, the first few

    def add(self, verdict: Verdict | None, label: str) -> None:
        """Count one ended entry span; `label` is its method and route."""
        with self._lock:
            if verdict is not None:
                key = (verdict.objective.name, verdict.word)
                self._counts[key] = self._counts.get(key, 0) + 1
                return
            self.unmatched += 1
            if len(self._routes) < MAX_ROUTES_SHOWN:
                self._routes[label] = None

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of requests by (objective, verdict)."""
        with self._lock:
            return dict(self._counts)

    def say_unmatched(self, policy: Policy) -> None:
        """Warn, once, if requests came and the policy judged none of them."""
        with self._lock:
            if self._counts or not self.unmatched:
                return
            rules = "; ".join(objective.name for objective in policy.objectives)
            message = (
                f"STAGETRACE_SLA {rules!r} matched none of {self.unmatched} requests: nothing is judged.\n"
                f"They were {', '.join(self._routes)}. Use such a method and route, or `*` for all."
            )
        log.once("policy matches nothing", message)


class SLASpanProcessor(SpanProcessor):
    """Tile each ended entry span with its stages, judge it by `policy`, and hand all on to `processor`.

    Works in any SDK set-up: `provider.add_span_processor(SLASpanProcessor(policy, BatchSpanProcessor(exporter)))`.
    `policy` may be an inline text; None records stages without a verdict. To judge what a head sampler drops, make
    the provider's sampler `KeepBreaches(sampler)`.

    Raises:
        PolicyError: if `policy` is a text that cannot be read.
    """

    def __init__(
        self, policy: Policy | str | None, processor: SpanProcessor, *, counter: VerdictCounter | None = None
    ) -> None:
        self.policy = Policy.parse(policy) if isinstance(policy, str) else policy
        self.counter = counter or VerdictCounter()
        self._next = processor
        self._lock = threading.Lock()  # guards _held
        self._held = HeldSpans()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Bind the request's timeline to its entry span."""
        if not self._open(span):
            self._start_next(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Hand on the span, an entry span with its stages before it and its verdict on it."""
        finished = self._end(span)
        for one in finished if finished is not None else [span]:  # None: our own failure, it goes on as it came
            self._hand_on(one)

    @guarded
    def _start_next(self, span: Span, parent_context: Context | None) -> None:
        self._next.on_start(span, parent_context)

    @guarded
    def _hand_on(self, span: ReadableSpan) -> None:
        self._next.on_end(span)

    @guarded
    def _open(self, span: Span) -> bool:
        """Return whether the span is to be kept from the wrapped processor, since the head sampler dropped it."""
        out = dropped(span)
        context = span.get_span_context()
        if context is None or not _is_entry(span) or context.span_id in entries:  # a second processor of ours
            return out
        timeline = current.get()
        if timeline is None or timeline.entry is not None:
            timeline = Timeline()
        timeline.bind(context, span.start_time or 0)
        entries[context.span_id] = timeline
        if out:
            with self._lock:
                self._held.open(context.trace_id)
        return out

    @guarded
    def _end(self, span: ReadableSpan) -> list[ReadableSpan]:
        if _is_entry(span):
            return self._finish(span)
        return self._hold(span) if dropped(span) else [span]

    def _finish(self, span: ReadableSpan) -> list[ReadableSpan]:
        start, end = span.start_time or 0, span.end_time or 0
        timeline = entries.pop(span.context.span_id, None)
        segments = timeline.close(start, end) if timeline is not None else []
        totals: dict[str, int] = {}
        for segment in segments:
            totals[segment.stage] = totals.get(segment.stage, 0) + segment.end - segment.start
        attributes: dict[str, Any] = {semconv.stage_total_ms(stage): ns / 1e6 for stage, ns in totals.items()}
        if timeline is not None:
            attributes.update(timeline.model)
        verdict = self._judge(span, end - start, totals)
        if verdict is not None:
            attributes.update(verdict.attributes())
        if dropped(span):
            return self._decide(span, segments, attributes, keep=verdict is not None and verdict.breached)
        return [*(stage_span(segment, span, {}) for segment in segments), FinishedSpan(span, attributes)]

    @guarded
    def _judge(self, span: ReadableSpan, duration_ns: int, totals: dict[str, int]) -> Verdict | None:
        attributes = span.attributes or {}
        if self.policy is None or semconv.SLA_VERDICT in attributes or _is_websocket(attributes):
            return None
        method, route = request_of(span)
        verdict = judge(self.policy, method, route, duration_ns, totals)
        self.counter.add(verdict, f"{method or ''} {route or '(no route)'}".strip())
        if self.counter.unmatched == SAY_UNMATCHED_AFTER:
            self.counter.say_unmatched(self.policy)
        return verdict

    def _decide(
        self, span: ReadableSpan, segments: list[Any], attributes: dict[str, Any], *, keep: bool
    ) -> list[ReadableSpan]:
        with self._lock:
            held = self._held.close(span.context.trace_id, keep=keep)
        if not keep:
            return []
        mark = {semconv.SLA_UPGRADED: True}
        spans = [*held, *(stage_span(segment, span, mark) for segment in segments), FinishedSpan(span, attributes)]
        return [FinishedSpan(one, {}, sampled(one.context)) for one in spans]

    def _hold(self, span: ReadableSpan) -> list[ReadableSpan]:
        with self._lock:
            send_now = self._held.add(span.context.trace_id, span)
        return [FinishedSpan(span, {}, sampled(span.context))] if send_now else []

    def add_span_processor(self, processor: SpanProcessor) -> None:
        """Add to the wrapped processor, where that is a provider's composite one."""
        self._next.add_span_processor(processor)  # type: ignore[attr-defined]

    def shutdown(self) -> None:
        """Shut the wrapped processor down."""
        self._next.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped processor."""
        return self._next.force_flush(timeout_millis)


def _is_entry(span: ReadableSpan) -> bool:
    return span.kind is SpanKind.SERVER and (span.parent is None or span.parent.is_remote)


def _is_websocket(attributes: Any) -> bool:
    # One span a connection: its length says nothing about latency.
    return (attributes.get("url.scheme") or attributes.get("http.scheme")) in ("ws", "wss")


def request_of(span: ReadableSpan) -> tuple[str | None, str]:
    """Return method and route as the policy names them, from HTTP (stable or old names) or RPC attributes."""
    attributes: Any = span.attributes or {}
    if "rpc.method" in attributes:
        method = str(attributes["rpc.method"])
        return None, method if "/" in method else f"{attributes.get('rpc.service', '')}/{method}"
    method = attributes.get("http.request.method") or attributes.get("http.method")
    return (str(method).upper() if method else None), str(attributes.get("http.route", ""))
