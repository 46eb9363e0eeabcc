"""Judge requests, count and learn from them, and hold the spans of those that the head sampler dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace import semconv
from stagetrace.causes.baseline import Baselines
from stagetrace.causes.stall_sampler import stall_sampler
from stagetrace.guard import guarded, report
from stagetrace.policy.objective import BREACH, WEBSOCKET
from stagetrace.policy.policy import Policy
from stagetrace.policy.verdict import GOOD, UNKNOWN, report_in
from stagetrace.request.current import recording
from stagetrace.request.limits import bounded
from stagetrace.request.request import NO_STAGES
from stagetrace.request.spans import sampled
from stagetrace.sla.decision import Segments, decided
from stagetrace.sla.finish import NO_CULPRITS
from stagetrace.sla.sampling import HeldSpans, dropped
from stagetrace.sla.verdict_counter import VerdictCounter
from stagetrace.system.threads import allocate_lock
from stagetrace.tracing.span import ChangedSpan, SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.request.request import Request
    from stagetrace.sla.decision import Decided
    from stagetrace.sla.finish import Finished
    from stagetrace.tracing.span_context import SpanContext

SAY_UNMATCHED_AFTER = 100


class Judge:
    """Judges requests by `policy`, and passes on spans that are no entry spans to `senders`.

    `policy` may be an inline text, or the path of a policy file, which is read once; None: there are no verdicts.

    Raises:
        PolicyError: if `policy` is a text that cannot be read.
    """

    has_others = False  # whether span processors of others are to see the spans

    def __init__(
        self,
        policy: Policy | str | None,
        senders: Sequence[EncodingSpanProcessor] = (),
        *,
        counter: VerdictCounter | None = None,
    ) -> None:
        self.policy = Policy.load(policy) if isinstance(policy, str) else policy
        self.counter = counter or VerdictCounter()
        self.learned = Baselines()
        self.segments = Segments()
        if self.policy is not None:
            stall_sampler.add(self.policy, self.learned)
        self._senders = senders
        self._is_shut_down = False
        self._lock = allocate_lock()  # guards _held
        self._held = HeldSpans()

    def replace_policy(self, policy: Policy) -> None:
        """Judge spans that end from now on by another policy; counts and baselines stay."""
        self.policy = policy
        if not self._is_shut_down:
            stall_sampler.replace(policy, self.learned)

    def on_end(self, span: Any) -> None:
        """Pass on a span of ours that is no entry span, or hold it: a breach takes along what the sampler dropped."""
        note_call(span)
        for one in (self._to_send(span) or ()) if dropped(span) else (span,):
            self.hand_on(one)

    def hand_on(self, span: Any) -> None:
        """Send a span."""
        for sender in self._senders:
            sender.on_end(bounded(span))

    def hand_on_request(self, _request: Request, _spans: Any) -> Finished | None:
        """Hand on a request as spans to processors of others; here are none, so one that came here is lost."""
        for sender in self._senders:
            sender.add_lost()
        return None

    def begin_next(self, request: Request) -> None:
        """Let those who want to see spans know that an entry span begins."""

    def stop(self) -> None:
        """Judge no more."""
        self._is_shut_down = True
        stall_sampler.remove(self.learned)

    def hold(self, trace_id: int) -> None:
        """Begin to hold the spans of a trace that the head sampler dropped."""
        with self._lock:
            self._held.open(trace_id)

    def release(self, trace_id: int, *, keep: bool) -> tuple[list[Any], int]:
        """End one entry span of such a trace; return the spans to send now, and how many there was no room for."""
        with self._lock:
            return self._held.close(trace_id, keep=keep)

    @guarded
    def _to_send(self, span: Any) -> list[Any]:
        """Hold a span that the head sampler dropped; return it if its trace is kept already."""
        with self._lock:
            send_now = self._held.add(span.context.trace_id, span)
        return [ChangedSpan(span, {}, sampled(span.context))] if send_now else []

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
            report("stagetrace.sla.processor.Judge.judge", error)
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
            report("stagetrace.sla.processor.Judge.conclude", error)

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
def note_call(span: Any) -> None:
    """Note on the request that this code serves that it has called another service."""
    attributes = span.attributes or {}
    request = recording() if span.kind.value == SpanKind.CLIENT.value else None
    if request is not None and not semconv.is_embedded(attributes):
        peer = semconv.peer(attributes) or span.name
        request.called(peer, span.start_time or 0, span.end_time or 0, report_in(attributes))


@guarded
def _conclude_generation(request: Request) -> None:
    """Note on the entry span what a request's models have generated, and measure it."""
    from stagetrace.sla.generation_metrics import conclude

    generation = request.generation
    if generation is not None and generation.calls:
        request.besides = {**request.besides, **generation.attributes(request.started, request.end)}
        conclude(generation, request.started, request.end)


@guarded
def mark_breach(spans: list[Any]) -> None:
    """Mark spans as those of a breach: our sender sends them before others, and drops them after others."""
    for span in spans:
        span.of_breach = True
