"""The span processor that tiles, judges and passes on spans. It wraps that of the exporter: ended spans are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import baggage
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from stagetrace import log, semconv
from stagetrace.causes.baseline import Baselines
from stagetrace.causes.stall_sampler import stall_sampler
from stagetrace.guard import guarded, report
from stagetrace.policy.entry_span import request_of
from stagetrace.policy.objective import BREACH, WEBSOCKET
from stagetrace.policy.policy import Policy
from stagetrace.policy.verdict import GOOD, UNKNOWN, report_in
from stagetrace.request.current import current, entries, recording
from stagetrace.request.limits import bounded
from stagetrace.request.request import NO_STAGES, Request
from stagetrace.request.spans import SCOPE, FinishedSpan, sampled
from stagetrace.request.working import task_here
from stagetrace.sla.decision import Segments, decided
from stagetrace.sla.finish import NO_CULPRITS, finish, request_spans
from stagetrace.sla.sampling import HeldSpans, dropped
from stagetrace.sla.verdict_counter import VerdictCounter
from stagetrace.sources.process_cpu import process_cpu
from stagetrace.system.threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Event
    from opentelemetry.trace import SpanContext

    from stagetrace.otlp.encode import Block
    from stagetrace.request.stages import Stages
    from stagetrace.sla.decision import Decided
    from stagetrace.sla.finish import Finished

SAY_UNMATCHED_AFTER = 100


class SLASpanProcessor(SpanProcessor):
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
        self.policy = Policy.load(policy) if isinstance(policy, str) else policy
        self.counter = counter or VerdictCounter()
        self.learned = Baselines()
        self.segments = Segments()
        if self.policy is not None:
            stall_sampler.add(self.policy, self.learned)
        self._next = processor
        self._is_shut_down = False
        self._lock = allocate_lock()  # guards _held
        self._held = HeldSpans()
        self.is_bounded = False  # whether this package's limits hold: it has set the provider
        self.has_others = True  # whether other processors than the provider's own are to see the spans
        # Of the process's provider: the senders of its spans while the wrapped processor sends none.
        self.standby: Sequence[SpanProcessor] | None = None

    def replace_policy(self, policy: Policy) -> None:
        """Judge spans that end from now on by another policy; counts and baselines stay."""
        self.policy = policy
        if not self._is_shut_down:
            stall_sampler.replace(policy, self.learned)

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
        if span.kind is SpanKind.CLIENT:
            self._note_call(span)
        finished = self._end(span)
        if finished is None:  # stagetrace failed: the span is passed on unchanged
            finished = [span]
        itself = finished.pop() if finished and not self._is_dropped(span) else None
        for one in finished:
            self.hand_on(one)
        if itself is not None:
            self._send(itself)
            _show(self._next.on_end, self._bounded(itself) or itself)

    def start_next(self, span: Span, parent_context: Context | None) -> None:
        """Let the wrapped processor see a span of ours that starts."""
        _spare(self._next.on_start, span, parent_context)

    def hand_on(self, span: ReadableSpan) -> None:
        """Hand a finished span of ours to the wrapped processor."""
        self._send(span)
        _spare(self._next.on_end, self._bounded(span) or span)

    @guarded
    def _send(self, span: ReadableSpan) -> None:
        if self.standby and not exports(self._next):
            for one in self.standby:
                one.on_end(bounded(span))

    @guarded
    def _bounded(self, span: ReadableSpan) -> ReadableSpan:
        return bounded(span) if self.is_bounded else span

    def hold(self, trace_id: int) -> None:
        """Begin to hold the spans of a trace that the head sampler dropped."""
        with self._lock:
            self._held.open(trace_id)

    def release(self, trace_id: int, *, keep: bool) -> tuple[list[ReadableSpan], int]:
        """End one entry span of such a trace; return the spans to send now, and how many there was no room for."""
        with self._lock:
            return self._held.close(trace_id, keep=keep)

    def is_of_interest(self, request: Request, judged: Decided | None) -> bool:
        """Return whether to read what only explains: of a good request, if it is slow for its route or a sample."""
        if judged is None or judged.word != GOOD:
            return True
        return self.learned.is_of_interest((request.method, request.route), request.started, request.end)

    def judge(self, request: Request) -> Decided | None:
        """Return what is decided on a request; None where no objective matches. `conclude` counts it. Never raises."""
        if request.generation is not None:
            _conclude_generation(request)
        try:
            policy = self.policy
            if policy is None:
                return None
            judged = decided(policy, request, self.segments, self.counter)
            if judged is None and request.method != WEBSOCKET:
                self.counter.add_unmatched(f"{request.method or ''} {request.route or '(no route)'}".strip())
                if self.counter.unmatched == SAY_UNMATCHED_AFTER:
                    self.counter.say_unmatched(policy)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report("stagetrace.sla.processor.SLASpanProcessor.judge", error)
            return None
        return judged

    def conclude(
        self,
        request: Request,
        judged: Decided | None,
        finished: Finished | None = None,
        trace: SpanContext | None = None,
    ) -> None:
        """Count a request and how long it took, and learn from a good one. Never raises.

        `finished` is None where the head sampler dropped it, or it could not be sent; `trace`, where it is not kept.
        """
        if judged is None:
            return
        try:
            self._count(request, judged, finished, trace)
            if judged.word == GOOD and finished is not None:
                self.learned.add((request.method, request.route), request.end, finished.breakdown)
        except Exception as error:  # noqa: BLE001 -- as in `judge`
            report("stagetrace.sla.processor.SLASpanProcessor.conclude", error)

    def _count(self, request: Request, judged: Decided, finished: Finished | None, trace: SpanContext | None) -> None:
        """Count the verdict of each objective, a breach with its culprit and its cause."""
        stages, culprits = (NO_STAGES, NO_CULPRITS) if finished is None else (finished.stages, finished.culprits)
        took_ns, counter = request.end - request.started, self.counter
        for one in judged.each or (judged,):
            name, word = one.objective.name, one.word
            if word == BREACH:
                stage, cause = culprits.get(name, (None, UNKNOWN))
                counter.add(name, word, request.route, stage, one.segment, took_ns, stages, trace)
                counter.add_cause(name, cause)
            else:
                counter.add(name, word, request.route, None, one.segment, took_ns, stages, trace)

    @guarded
    def _is_dropped(self, span: ReadableSpan) -> bool:
        """Return whether the span is to be kept from the wrapped processor, since the head sampler dropped it."""
        return dropped(span)

    @guarded
    def _open(self, span: Span, parent_context: Context | None) -> None:
        context = span.get_span_context()
        if context is None or not _is_entry(span) or context.span_id in entries:  # a second processor of ours
            return
        request = current.get()
        if not self.sends:
            if request is not None:
                request.take_ids(context, span.parent)
            return
        if request is None or not request.gives_way(span.parent):
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
    def _note_call(self, span: ReadableSpan) -> None:
        """Note on the request that this code serves that it has called another service."""
        request, attributes = recording(), span.attributes or {}
        if request is not None and not semconv.is_embedded(attributes):
            peer = semconv.peer(attributes) or span.name
            request.called(peer, span.start_time or 0, span.end_time or 0, report_in(attributes))

    @guarded
    def _end(self, span: ReadableSpan) -> list[ReadableSpan]:
        if _is_entry(span) and self.sends:
            return self._finish(span)
        return self._hold(span) if dropped(span) else [span]

    def _finish(self, span: ReadableSpan) -> list[ReadableSpan]:
        request = entries.pop(span.context.span_id, None) or Request(start=span.start_time or 0)
        request.adopted, request.started, request.end = span, span.start_time or 0, span.end_time or 0
        request.method, request.route = request_of(span)
        request.failed = span.status.status_code is StatusCode.ERROR
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
        spans = [*(FinishedSpan(one, {}, sampled(one.context)) for one in held), *finished.spans]
        if breached:
            mark_breach(spans)
        return spans

    def _finished(
        self, span: ReadableSpan, request: Request, judged: Decided | None, *, breached: bool
    ) -> tuple[Finished, list[ReadableSpan]]:
        """Return a request as spans, and the spans that were held for it."""
        known = request.transfer_attributes(request.started)
        if self.is_of_interest(request, judged):
            known.update(request.connection_attributes())
        held: list[ReadableSpan] = []
        upgraded = dropped(span)
        if breached or not upgraded:
            process_cpu.add_to(known, request.end)
        if upgraded:
            held, lost = self.release(span.context.trace_id, keep=breached)
            if lost:
                known[semconv.STAGETRACE_DROPPED_SPANS] = lost

        def encode(
            stages: Stages, block: Block | None, more: Mapping[str, Any], events: Sequence[Event]
        ) -> list[ReadableSpan]:
            verdict = more if block is None else {**block.attributes, **more}
            return request_spans(span, stages, request, known, verdict, events, upgraded=upgraded)

        return finish(request, judged, self.learned, known, encode), held

    def _hold(self, span: ReadableSpan) -> list[ReadableSpan]:
        with self._lock:
            send_now = self._held.add(span.context.trace_id, span)
        return [FinishedSpan(span, {}, sampled(span.context))] if send_now else []

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
        self._is_shut_down = True
        stall_sampler.remove(self.learned)
        self._next.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped processor, and what has sent in its place."""
        flushed = [one.force_flush(timeout_millis) for one in (*(self.standby or ()), self._next)]
        return all(flushed)


@guarded
def _conclude_generation(request: Request) -> None:
    """Note on the entry span what a request's models have generated, and measure it."""
    from stagetrace.sla.generation_metrics import conclude

    generation = request.generation
    if generation is not None and generation.calls:
        request.besides = {**request.besides, **generation.attributes(request.started, request.end)}
        conclude(generation, request.started, request.end)


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


@guarded
def mark_breach(spans: list[ReadableSpan]) -> None:
    """Mark spans as those of a breach: our sender sends them before others, and drops them after others."""
    for span in spans:
        span.of_breach = True  # type: ignore[attr-defined]


def _is_entry(span: ReadableSpan) -> bool:
    return span.kind is SpanKind.SERVER and (span.parent is None or span.parent.is_remote)
