"""The span processor that tiles, judges and passes on the spans of an SDK. It wraps that of the exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import baggage
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from stagetrace import log, semconv
from stagetrace.bridge import opentelemetry as _  # noqa: F401 -- requests are in its context from now on
from stagetrace.bridge import spans as sdk
from stagetrace.bridge.contexts import get_current
from stagetrace.guard import guarded
from stagetrace.policy.entry_span import request_of
from stagetrace.policy.objective import BREACH
from stagetrace.request.current import current, entries
from stagetrace.request.limits import bounded
from stagetrace.request.request import Request
from stagetrace.request.spans import SCOPE, sampled
from stagetrace.request.working import task_here
from stagetrace.sla.finish import finish
from stagetrace.sla.processor import Judge, mark_breach, note_call
from stagetrace.sla.sampling import dropped
from stagetrace.sources.process_cpu import process_cpu
from stagetrace.tracing.span import ChangedSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context

    from stagetrace.otlp.encode import Block
    from stagetrace.policy.policy import Policy
    from stagetrace.request.stages import Stages
    from stagetrace.sla.decision import Decided
    from stagetrace.sla.finish import Finished
    from stagetrace.sla.verdict_counter import VerdictCounter
    from stagetrace.tracing.span import Event


class SLASpanProcessor(Judge, SpanProcessor):
    """Tile each ended entry span with its stages, judge it by `policy`, and hand all on to `processor`.

    Works in any SDK set-up: `provider.add_span_processor(SLASpanProcessor(policy, BatchSpanProcessor(exporter)))`.
    `policy` may be an inline text, or the path of a policy file, which is read once; None records stages without a
    verdict. To judge what a head sampler drops, make the provider's sampler `KeepBreaches(sampler)`.

    Raises:
        PolicyError: if `policy` is a text that cannot be read.
    """

    def __init__(
        self, policy: Policy | str | None, processor: SpanProcessor, *, counter: VerdictCounter | None = None
    ) -> None:
        super().__init__(policy, counter=counter)
        self._next = processor
        self.is_bounded = False  # whether this package's limits hold: it has set the provider
        self.has_others = True
        # Of the process's provider: the senders of its spans while the wrapped processor sends none.
        self.standby: Sequence[Any] | None = None

    @property
    def sends(self) -> bool:
        """Whether what ends here goes where it can be looked at, so that it is judged: else ours does not give way."""
        return self.standby is not None or exports(self._next)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Bind the request to its entry span."""
        if not self._is_dropped(span):
            _show(self._next.on_start, span, parent_context)
        self._open(span, parent_context)

    def _on_ending(self, span: Span) -> None:
        """Pass on a call that is still private in the SDK."""
        if not self._is_dropped(span):
            _show(self._next._on_ending, span)  # noqa: SLF001

    def on_end(self, span: ReadableSpan) -> None:
        """Hand on the span, an entry span with its stages before it and its verdict on it."""
        note_call(span)
        finished = self._end(span)
        if finished is None:  # stagetrace failed: the span is passed on unchanged
            finished = [span]
        itself = finished.pop() if finished and not self._is_dropped(span) else None
        for one in finished:
            self.hand_on(one)
        if itself is not None:
            self._send(itself)
            shown = self._bounded(itself) or itself
            _show(self._next.on_end, shown if isinstance(shown, ReadableSpan) else sdk.readable(shown))

    def begin_next(self, request: Request) -> None:
        """Let the wrapped processor see an entry span of ours that starts."""
        if self.has_others:
            self.start_next(request.seen_span, get_current())

    def start_next(self, span: Span, parent_context: Context | None) -> None:
        """Let the wrapped processor see a span of ours that starts."""
        _spare(self._next.on_start, span, parent_context)

    @guarded
    def hand_on(self, span: Any) -> None:
        """Hand a finished span to the wrapped processor."""
        self._send(span)
        _spare(self._next.on_end, sdk.readable(self._bounded(span) or span))

    def hand_on_request(self, request: Request, spans: Any) -> Finished | None:
        """Hand on a request that we record as spans: `spans` makes them of the span that it is to the SDK."""
        made: Finished = spans(sdk.entry(request), sdk.request_spans)
        for one in made.spans:
            self.hand_on(one)
        return made

    @guarded
    def _send(self, span: Any) -> None:
        if self.standby and not exports(self._next):
            for one in self.standby:
                one.on_end(bounded(span))

    @guarded
    def _bounded(self, span: Any) -> Any:
        return bounded(span) if self.is_bounded else span

    @guarded
    def _is_dropped(self, span: ReadableSpan) -> bool:
        """Return whether the span is to be kept from the wrapped processor, since the head sampler dropped it."""
        return dropped(span)

    @guarded
    def _open(self, span: Span, parent_context: Context | None) -> None:
        context: Any = span.get_span_context()
        parent: Any = span.parent
        if context is None or not _is_entry(span) or context.span_id in entries:  # a second processor of ours
            return
        request = current.get()
        if not self.sends:
            if request is not None:
                request.take_ids(context, parent)
            return
        if request is None or not request.gives_way(parent):
            request = Request()
            request.work = task_here()
        request.bind(context, span.start_time or 0)
        request.adopted = span
        entries[context.span_id] = request
        if dropped(span):
            self.hold(context.trace_id)
        if self.policy is not None and self.policy.reads_baggage:
            request.baggage = baggage.get_all(parent_context)

    @guarded
    def _end(self, span: ReadableSpan) -> list[Any]:
        if _is_entry(span) and self.sends:
            return self._finish(span)
        return (self._to_send(span) or []) if dropped(span) else [span]

    def _finish(self, span: ReadableSpan) -> list[Any]:
        request = entries.pop(span.context.span_id, None) or Request(start=span.start_time or 0)
        request.adopted, request.started, request.end = span, span.start_time or 0, span.end_time or 0
        request.method, request.route = request_of(span.attributes or {})
        request.failed = span.status.status_code is StatusCode.ERROR
        if task_here() is None:  # the thread's own section ends later, as the application returns
            request.divide_rest()
        is_judged = semconv.SLA_VERDICT in (span.attributes or {})  # by a second processor of ours
        judged = None if is_judged else self.judge(request)
        breached = judged is not None and judged.word == BREACH
        finished: Finished | None = None
        try:
            finished, held = self._finished(span, request, judged, breached=breached)
        finally:
            is_kept = span.context.trace_flags.sampled or (breached and dropped(span))
            self.conclude(request, judged, finished, span.context if is_kept else None)
        request.abandon()
        if dropped(span) and not breached:
            return []
        spans = [*(ChangedSpan(one, {}, sampled(one.context)) for one in held), *finished.spans]
        if breached:
            mark_breach(spans)
        return spans

    def _finished(
        self, span: ReadableSpan, request: Request, judged: Decided | None, *, breached: bool
    ) -> tuple[Finished, list[Any]]:
        """Return a request as spans, and the spans that were held for it."""
        known = request.transfer_attributes(request.started)
        if self.is_of_interest(request, judged):
            known.update(request.connection_attributes())
        held: list[Any] = []
        upgraded = dropped(span)
        if breached or not upgraded:
            process_cpu.add_to(known, request.end)
        if upgraded:
            held, lost = self.release(span.context.trace_id, keep=breached)
            if lost:
                known[semconv.STAGETRACE_DROPPED_SPANS] = lost

        def encode(stages: Stages, block: Block | None, more: Mapping[str, Any], events: Sequence[Event]) -> list[Any]:
            verdict = more if block is None else {**block.attributes, **more}
            return sdk.request_spans(span, stages, request, known, verdict, events, upgraded=upgraded)

        return finish(request, judged, self.learned, known, encode), held

    def add_span_processor(self, processor: SpanProcessor) -> None:
        """Add to the wrapped processor, where that is a provider's composite one."""
        self._stand_back(processor)
        self.has_others = True
        self._next.add_span_processor(processor)  # type: ignore[attr-defined]

    @guarded
    def _stand_back(self, processor: SpanProcessor) -> None:
        if self.standby and exports(processor) and not exports(self._next):
            log.info("the tracer provider of this service has an exporter from now on: its spans go there alone.")

    def shutdown(self) -> None:
        """Shut the wrapped processor down."""
        self.stop()
        self._next.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped processor, and what has sent in its place."""
        flushed = [one.force_flush(timeout_millis) for one in (*(self.standby or ()), self._next)]
        return all(flushed)


def exports(processor: Any) -> bool:
    """Return whether a span processor may send ended spans; False where it, or each of its parts, certainly does not.

    A processor that ignores ended spans (it adds baggage, or trace ids to logs) sends none.
    """
    parts = getattr(processor, "_span_processors", None)  # of the SDK's composite ones
    if parts is not None:
        return any(map(exports, parts))
    return getattr(getattr(processor, "on_end", None), "__func__", None) is not SpanProcessor.on_end


def _show(method: Callable[..., None], span: ReadableSpan, *besides: Any) -> None:
    """Pass a span to the wrapped processor, whose errors reach the code that starts or ends it, unless it is ours."""
    scope = span.instrumentation_scope
    if scope is not None and scope.name == SCOPE.name:
        _spare(method, span, *besides)
    else:
        method(span, *besides)


def _spare(method: Callable[..., None], *arguments: Any) -> None:
    """Pass a span of ours, which is not there without stagetrace, to the wrapped processor; log its errors."""
    try:
        method(*arguments)
    except Exception as error:  # noqa: BLE001
        _blame(method, error)


@guarded
def _blame(method: Any, error: Exception) -> None:
    """Log once for each class of span processors that it failed on spans of ours."""
    name = f"{(kind := _failed(error) or type(method.__self__)).__module__}.{kind.__qualname__}"
    log.once(
        f"processor {name}",
        f"the span processor {name}, which this service has added, failed on a span of stagetrace's "
        f"({type(error).__name__}: {str(error)[:200]}).\nThe request is unaffected; others may lack that span.",
    )


def _failed(error: Exception) -> type | None:
    """Return the class of the processor that raised an error, which may have passed through the SDK's composite one."""
    at = error.__traceback__
    while at is not None:
        owner = at.tb_frame.f_locals.get("self")
        if isinstance(owner, SpanProcessor) and type(owner).__module__ != SpanProcessor.__module__:
            return type(owner)
        at = at.tb_next
    return None


def _is_entry(span: ReadableSpan) -> bool:
    return span.kind is SpanKind.SERVER and (span.parent is None or span.parent.is_remote)
