"""The span processor that tiles, judges and hands on: it wraps the exporting one, since ended spans are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from stagetrace import log, semconv
from stagetrace.guard import guarded, report
from stagetrace.real_threads import allocate_lock
from stagetrace.recording.current_record import current, entries, recording
from stagetrace.recording.limits import bounded
from stagetrace.recording.record import RequestRecord
from stagetrace.recording.segments import coalesced
from stagetrace.recording.spans import SCOPE, FinishedSpan, sampled, stage_span
from stagetrace.sla.baseline import Baselines
from stagetrace.sla.breakdown import breakdown_of
from stagetrace.sla.cause import UNKNOWN
from stagetrace.sla.policy import BREACH, WEBSOCKET, Policy
from stagetrace.sla.sampling import HeldSpans, dropped
from stagetrace.sla.verdict import GOOD, Streamed, decide, judge
from stagetrace.sla.verdict_counter import VerdictCounter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.context import Context

    from stagetrace.recording.chunk_times import Stream
    from stagetrace.recording.segments import Segment
    from stagetrace.sla.baseline import Route
    from stagetrace.sla.policy import Objective
    from stagetrace.sla.verdict import Missed, Verdict

SAY_UNMATCHED_AFTER = 100


class Decided(NamedTuple):
    """The verdict on a request, and the objective that it is by."""

    objective: Objective
    word: str
    broken: Missed | None

    def verdict(
        self, totals: Mapping[str, int], segments: Iterable[Segment], start: int, calls: Iterable[tuple[str, int, int]]
    ) -> Verdict:
        """Return the verdict with the guilty stage, of a request that began at `start`.

        `totals` is the time in each stage. `segments` may be empty where no part of the request is in question and
        nothing else was called.
        """
        visits = [(segment.stage, segment.start, segment.end) for segment in segments]
        broken = self.broken
        if broken is not None and broken.end_ns is not None:
            since, until = start + broken.start_ns, start + broken.end_ns
            visits = [(stage, max(begin, since), min(end, until)) for stage, begin, end in visits]
            visits = [(stage, begin, end) for stage, begin, end in visits if begin < end]
            totals = _sums(visits)
        return judge(*self, totals, visits, calls)


def totals_of(segments: Iterable[Segment]) -> dict[str, int]:
    """Return the time in each stage, in nanoseconds."""
    return _sums((segment.stage, segment.start, segment.end) for segment in segments)


def _sums(visits: Iterable[tuple[str, int, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for stage, begin, end in visits:
        totals[stage] = totals.get(stage, 0) + end - begin
    return totals


def _streamed(stream: Stream, start: int) -> Streamed | None:
    if not stream.is_stream:
        return None
    since, until = stream.widest
    return Streamed(max(stream.first - start, 0), (since - start, until - start))


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
        self.learned = Baselines()
        self._next = processor
        self._lock = allocate_lock()  # guards _held
        self._held = HeldSpans()
        self.is_bounded = False  # whether this package's limits hold: it has set the provider
        self.has_others = True  # whether other processors than the provider's own are to see the spans
        # Of the process's provider: what sends its spans as long as the wrapped processor sends none.
        self.standby: Sequence[SpanProcessor] | None = None

    @property
    def sends(self) -> bool:
        """Whether what ends here goes where it can be looked at, so that it is judged: else ours does not give way."""
        return self.standby is not None or exports(self._next)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Bind the request's timeline to its entry span."""
        if not self._is_dropped(span):
            _show(self._next.on_start, span, parent_context)
        self._open(span)

    def _on_ending(self, span: Span) -> None:
        """Pass on what the SDK does not offer to everybody yet."""
        if not self._is_dropped(span):
            _show(self._next._on_ending, span)  # noqa: SLF001

    def on_end(self, span: ReadableSpan) -> None:
        """Hand on the span, an entry span with its stages before it and its verdict on it."""
        if span.kind is SpanKind.CLIENT:
            self._note_call(span)
        finished = self._end(span)
        if finished is None:  # our own failure: it goes on as it came
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

    @guarded
    def learn(self, route: Route, segments: list[Segment], timeline: RequestRecord) -> None:
        """Learn from a request that has kept its promise what is usual for its route."""
        self.learned.learn(route, breakdown_of(segments, timeline))

    @guarded
    def explain(
        self,
        route: Route,
        verdict: Verdict,
        segments: list[Segment],
        timeline: RequestRecord,
        attributes: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """Return what the entry span of a breach carries of its cause, besides `attributes`."""
        breakdown = breakdown_of(segments, timeline)
        return self.learned.explain(route, verdict, breakdown, attributes)

    def decided(
        self, method: str | None, route: str, start: int, end: int, timeline: RequestRecord | None
    ) -> Decided | None:
        """Return what is decided on a request, and count it; None where no objective matches. Never raises.

        `timeline` says what of the request its duration does not.
        """
        try:
            policy = self.policy
            if policy is None:
                return None
            objective = policy.objective(method, route)
            if objective is not None:
                streamed = disconnect = None
                if timeline is not None:
                    disconnect = timeline.disconnect
                    streamed = None if timeline.stream is None else _streamed(timeline.stream, start)
                word, broken = decide(objective, end - start, streamed, disconnected=disconnect is not None)
                self.counter.add(objective.name, word, route)
                return Decided(objective, word, broken)
            if method == WEBSOCKET:
                return None
            self.counter.add_unmatched(f"{method or ''} {route or '(no route)'}".strip())
            if self.counter.unmatched == SAY_UNMATCHED_AFTER:
                self.counter.say_unmatched(policy)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
            report("stagetrace.sla.processor.SLASpanProcessor.decided", error)
        return None

    @guarded
    def _is_dropped(self, span: ReadableSpan) -> bool:
        """Return whether the span is to be kept from the wrapped processor, since the head sampler dropped it."""
        return dropped(span)

    @guarded
    def _open(self, span: Span) -> None:
        context = span.get_span_context()
        if context is None or not _is_entry(span) or context.span_id in entries:  # a second processor of ours
            return
        timeline = current.get()
        if not self.sends:
            if timeline is not None:
                timeline.take_ids(context, span.parent)
            return
        if timeline is None or not timeline.gives_way(span.parent):
            timeline = RequestRecord()
        timeline.bind(context, span.start_time or 0)
        timeline.adopted = span
        entries[context.span_id] = timeline
        if dropped(span):
            self.hold(context.trace_id)

    @guarded
    def _note_call(self, span: ReadableSpan) -> None:
        """Note on the request that this code serves that it has called another service."""
        timeline = recording()
        if timeline is not None:
            timeline.called(semconv.peer(span.attributes or {}) or span.name, span.start_time or 0, span.end_time or 0)

    @guarded
    def _end(self, span: ReadableSpan) -> list[ReadableSpan]:
        if _is_entry(span) and self.sends:
            return self._finish(span)
        return self._hold(span) if dropped(span) else [span]

    def _finish(self, span: ReadableSpan) -> list[ReadableSpan]:
        start, end = span.start_time or 0, span.end_time or 0
        timeline = entries.pop(span.context.span_id, None)
        segments = timeline.close(start, end) if timeline is not None else []
        totals = totals_of(segments)
        attributes: dict[str, Any] = {semconv.stage_total_ms(stage): ns / 1e6 for stage, ns in totals.items()}
        if timeline is not None:
            own = span.attributes or {}  # which the request's code may have set: that wins
            attributes.update({key: value for key, value in timeline.model.items() if key not in own})
            attributes.update(timeline.transfer_attributes(start))
        decided = None
        if semconv.SLA_VERDICT not in (span.attributes or {}):  # a second processor of ours
            decided = self.decided(*request_of(span), start, end, timeline)
        if decided is not None:
            calls = timeline.calls if timeline is not None else ()
            verdict = decided.verdict(totals, segments, start, calls)
            attributes.update(verdict.attributes())
            if timeline is not None:
                self._add_cause(span, verdict, segments, timeline, attributes)
            if verdict.breached:
                self.counter.add_cause(decided.objective.name, attributes.get(semconv.SLA_BREACH_CAUSE, UNKNOWN))
        breached = decided is not None and decided.word == BREACH
        if timeline is not None:
            segments = coalesced(segments, timeline.cuts)
        if dropped(span):
            return self._decide(span, segments, attributes, keep=breached)
        spans = [*(stage_span(segment, span, {}) for segment in segments), FinishedSpan(span, attributes)]
        if breached:
            _mark(spans)
        return spans

    def _add_cause(
        self,
        span: ReadableSpan,
        verdict: Verdict,
        segments: list[Segment],
        timeline: RequestRecord,
        attributes: dict[str, Any],
    ) -> None:
        route = request_of(span)
        if verdict.breached:
            attributes.update(self.explain(route, verdict, segments, timeline, attributes) or {})
        elif verdict.word == GOOD and self.learned.wants(route, span.end_time or 0):
            self.learn(route, segments, timeline)

    def _decide(
        self, span: ReadableSpan, segments: list[Any], attributes: dict[str, Any], *, keep: bool
    ) -> list[ReadableSpan]:
        held, lost = self.release(span.context.trace_id, keep=keep)
        if lost:
            attributes[semconv.STAGETRACE_DROPPED_SPANS] = lost
        if not keep:
            return []
        mark = {semconv.SLA_UPGRADED: True}
        spans = [*held, *(stage_span(segment, span, mark) for segment in segments), FinishedSpan(span, attributes)]
        kept: list[ReadableSpan] = [FinishedSpan(one, {}, sampled(one.context)) for one in spans]
        _mark(kept)
        return kept

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
        self._next.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped processor, and what has sent in its place."""
        flushed = [one.force_flush(timeout_millis) for one in (*(self.standby or ()), self._next)]
        return all(flushed)


def exports(processor: Any) -> bool:
    """Return whether a span processor may send ended spans; False where it can be told that it, or each part, does not.

    What does not look at ended spans at all (it adds baggage, or trace ids to logs) sends none.
    """
    parts = getattr(processor, "_span_processors", None)  # of the SDK's composite ones
    if parts is not None:
        return any(map(exports, parts))
    return getattr(getattr(processor, "on_end", None), "__func__", None) is not SpanProcessor.on_end


def _show(method: Callable[..., None], span: ReadableSpan, *besides: Any) -> None:
    """Let the wrapped processor see a span: what it raises reaches whoever starts or ends that, unless that is us."""
    scope = span.instrumentation_scope
    if scope is not None and scope.name == SCOPE.name:
        _spare(method, span, *besides)
    else:
        method(span, *besides)


def _spare(method: Callable[..., None], *arguments: Any) -> None:
    """Let the wrapped processor see a span of ours, which untraced would not be there: nobody is to bear its errors."""
    try:
        method(*arguments)
    except Exception as error:  # noqa: BLE001
        _blame(method, error)


@guarded
def _blame(method: Any, error: Exception) -> None:
    """Say once for each class of span processors that one has failed on spans of ours."""
    name = f"{(kind := _failed(error) or type(method.__self__)).__module__}.{kind.__qualname__}"
    log.once(
        f"processor {name}",
        f"the span processor {name}, which this service has added, failed on a span of stagetrace's "
        f"({type(error).__name__}: {str(error)[:200]}).\nThe request goes on; other processors may lack that span.",
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
def _mark(spans: list[ReadableSpan]) -> None:
    """Tell our own sender that these go with a breach: before others, and dropped after them."""
    for span in spans:
        span.of_breach = True  # type: ignore[attr-defined]


def _is_entry(span: ReadableSpan) -> bool:
    return span.kind is SpanKind.SERVER and (span.parent is None or span.parent.is_remote)


def _is_websocket(attributes: Any) -> bool:
    return (attributes.get("url.scheme") or attributes.get("http.scheme")) in ("ws", "wss")


def request_of(span: ReadableSpan) -> tuple[str | None, str]:
    """Return method and route as the policy names them, from HTTP (stable or old names) or RPC attributes."""
    attributes: Any = span.attributes or {}
    if "rpc.method" in attributes:
        method = str(attributes["rpc.method"])
        return None, method if "/" in method else f"{attributes.get('rpc.service', '')}/{method}"
    if _is_websocket(attributes):
        return WEBSOCKET, str(attributes.get("http.route", ""))
    method = attributes.get("http.request.method") or attributes.get("http.method")
    route = str(attributes.get("http.route", ""))
    if route and not route.startswith("/"):  # Django's, by OpenTelemetry's instrumentation
        route = f"/{route}"
    return (str(method).upper() if method else None), route
