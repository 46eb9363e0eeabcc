"""Begin and end the entry spans that we record ourselves: sampled, tiled, judged, encoded, in one go as they end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from stagetrace import semconv
from stagetrace.guard import guarded, report
from stagetrace.otlp.encode import Block, encode_details, encode_events, encode_notes, encode_request, entry_rest
from stagetrace.policy.objective import BREACH
from stagetrace.request.context import here
from stagetrace.request.details import placed_details
from stagetrace.request.limits import bounded, span_limits
from stagetrace.request.spans import SCOPE, sampled
from stagetrace.sla.finish import finish
from stagetrace.sla.plan import Plans
from stagetrace.sla.processor import mark_breach
from stagetrace.sla.provider import head_sampler_of
from stagetrace.sources.process_cpu import process_cpu
from stagetrace.system.bounded import BoundedCache
from stagetrace.tracing.span import ChangedSpan, Span, SpanKind, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.request.own_span import Identity
    from stagetrace.request.request import Request
    from stagetrace.request.stages import Stages
    from stagetrace.sla.decision import Decided
    from stagetrace.sla.finish import Finished
    from stagetrace.sla.processor import Judge
    from stagetrace.sla.provider import Provider
    from stagetrace.tracing.span import Event, Link
    from stagetrace.tracing.span_context import SpanContext

NO_BLOCK = Block({})
MAX_RESTS = 16_384
UPGRADED = Block({semconv.SLA_UPGRADED: True})


class Given(NamedTuple):
    """What an entry span has besides its stages, its verdict and what was set on it."""

    blocks: list[Block]  # of which there are few combinations in a service
    client: Block
    attributes: dict[str, Any]


class EntryRecorder:
    """Records entry spans for the provider that this package has set, or for none.

    If no span processor of others wants to see them, a request goes to `senders` as bytes; else it goes to all as
    spans of the SDK.
    """

    def __init__(self, provider: Provider, processor: Judge, senders: Sequence[EncodingSpanProcessor]) -> None:
        self._provider = provider
        self.processor = processor
        self._senders = senders
        self._head = head_sampler_of(provider)
        self._rests: BoundedCache[tuple[Any, ...], bytes] = BoundedCache(MAX_RESTS)
        self._plans = Plans(provider, processor, senders, self._head)

    @property
    def resource(self) -> Any:
        """The resource of the spans: another one after a fork."""
        return self._provider.resource

    @property
    def sampler_text(self) -> str:
        """The head sampler, as OpenTelemetry describes it."""
        return self._head.sampler.get_description()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what has ended; return whether all was delivered, or is safe in a spool, in time."""
        flushed = [sender.force_flush(timeout_millis) for sender in self._senders]
        return all(flushed)

    def shutdown(self) -> None:
        """Judge no more, and end the senders, which flush within a bound."""
        self.processor.stop()
        for sender in self._senders:
            sender.shutdown()

    def span_in(self, context: Mapping[str, Any]) -> SpanContext | None:
        """Return the span in a context that a request has brought along."""
        return here.span_in(context)

    def begin(self, request: Request) -> None:
        """Let other processors know that an entry span begins."""
        self.processor.begin_next(request)

    def identify(self, request: Request) -> Identity:
        """Draw the ids of an entry span and ask the sampler whether to keep it."""
        identity = self._head.identify(request)
        if request.held:
            self.processor.hold(identity.context.trace_id)
        return identity

    def start_span(
        self,
        name: str,
        parent: SpanContext | None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        *,
        links: Iterable[Link] = (),
        start: int | None = None,
        scope: Any = SCOPE,
    ) -> Span:
        """Start a span that is no entry span; it is sent as it ends."""
        context = self._head.begin(parent)
        return Span(
            name,
            context,
            parent if parent is not None and parent.is_valid else None,
            attributes={**(attributes or {}), **_held(context)},
            kind=kind,
            links=links,
            start_time=start,
            scope=scope,
            limits=span_limits(),
            on_end=self.add_span,
        )

    @guarded
    def add_span(self, span: Span) -> None:
        """Send a span that has ended, and is no entry span."""
        span.resource = self._provider.resource
        self.processor.on_end(span)

    def add_call(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext,
        attributes: dict[str, Any],
        times: tuple[int, int],
    ) -> None:
        """Record a call to another service, which has ended; an `error.type` among its attributes is its status."""
        attributes.update(_held(context))
        start, end = times
        span = Span(name, context, parent, attributes=attributes, kind=SpanKind.CLIENT, start_time=start, scope=SCOPE)
        if "error.type" in attributes:
            span.set_status(StatusCode.ERROR)
        span.end(end)
        self.add_span(span)

    def end(self, request: Request) -> None:
        """End a request: judge it, and send it with its stages, unless it was not sampled and is no breach."""
        request.end = max(request.end, request.started)  # the wall clock stepped back
        if self._plans.end(request):
            return
        processor = self.processor
        if self._head.reads_attributes:
            request.identity  # noqa: B018 -- asks the sampler, which now sees the route, if no child has asked before
        judged = processor.judge(request)
        breached = judged is not None and judged.word == BREACH
        finished: Finished | None = None
        try:
            if self._drops(request, breached=breached):
                request.is_over = True
                request.abandon()
                return
            finished, held = self._finish(request, judged, breached=breached)
        finally:
            processor.conclude(request, judged, finished, None if finished is None else request.identity.context)
        if judged is not None:
            self._plans.make(request, judged)
        request.abandon()
        for span in held:
            processor.hand_on(ChangedSpan(span, {}, sampled(span.context)))

    def _finish(
        self, request: Request, judged: Decided | None, *, breached: bool
    ) -> tuple[Finished | None, Sequence[Any]]:
        """Send a request; return what is to be counted and learned of it, and the spans that were held for it."""
        processor = self.processor
        given = _given(request, request.connection_attributes() if processor.is_of_interest(request, judged) else {})
        process_cpu.add_to(given.attributes, request.end)
        request.is_over = True
        held: Sequence[Any] = () if request.identity.is_sampled else self._upgrade(request, given)
        finished = None if processor.has_others else self._send(request, judged, given, breached=breached)
        if finished is None:
            finished = self._hand_on(request, judged, given, breached=breached)
        return finished, held

    def _drops(self, request: Request, *, breached: bool) -> bool:
        """Return whether the head sampler drops a request that is no breach; if not, it has an identity."""
        head = self._head
        if head.draws and not request.parent_context and request.ids is None:
            return not head.draw(request, keep=breached)
        if breached or request.identity.is_sampled:
            return False
        if request.held:
            self.processor.release(request.identity.context.trace_id, keep=False)
        return True

    def _upgrade(self, request: Request, given: Given) -> list[Any]:
        """Mark a breach that the head sampler dropped; return the spans that were held for it."""
        given.blocks.append(UPGRADED)
        trace_id = request.identity.context.trace_id
        held, lost = self.processor.release(trace_id, keep=True) if request.held else ([], 0)
        if lost:
            given.attributes[semconv.STAGETRACE_DROPPED_SPANS] = lost
        return held

    def _send(self, request: Request, judged: Decided | None, given: Given, *, breached: bool) -> Finished | None:
        """Send the request as bytes; return None if that could not be done."""
        try:
            encode = partial(self._encoded, request, given)
            finished = finish(request, judged, self.processor.learned, given.attributes, encode)
        except Exception as error:  # noqa: BLE001 -- it is lost, and counted so
            report("stagetrace.otlp.encode", error)
            return None
        resource = self._provider.resource  # another one after a fork
        for sender in self._senders:
            sender.put(resource, SCOPE, *finished.spans, breach=breached)
        return finished

    def _encoded(
        self,
        request: Request,
        given: Given,
        stages: Stages,
        block: Block | None,
        more: Mapping[str, Any],
        events: Sequence[Event],
    ) -> tuple[bytes, int]:
        """Return the request's spans as bytes, and how many they are."""
        blocks, client, attributes = given
        identity = request.identity
        details = placed_details(request, stages, identity.context)
        if block is not None:
            blocks = [*blocks, block]
        if more:
            attributes = {**attributes, **more}
        rest, model, notes = self._rest(request, blocks) + client.encoded, stages.model, request.notes
        if notes is not None:
            model = _without(model, notes)
            totals = {semconv.stage_total_ms(stage) for stage in stages.totals()}
            rest += encode_notes(notes, totals.union(attributes, *(one.attributes for one in blocks)))
        if events:
            rest += encode_events(events)
        mark = b"" if identity.is_sampled else UPGRADED.encoded
        times = request.started, request.end
        spans, count = encode_request(stages, identity, times, mark, rest, attributes, model, request.cuts)
        return (encode_details(details, mark) + spans, count + len(details)) if details else (spans, count)

    def _rest(self, request: Request, blocks: list[Block]) -> bytes:
        key = (request.name, request.failed, *blocks)
        rest = self._rests.get(key)
        if rest is None:
            rest = self._rests[key] = entry_rest(request.name, SpanKind.SERVER.value, blocks, failed=request.failed)
        return rest

    @guarded
    def _hand_on(self, request: Request, judged: Decided | None, given: Given, *, breached: bool) -> Finished | None:
        """Hand the request on as the spans that the SDK's processors know; where there are none, it is lost."""
        known = {key: value for block in (*given.blocks, given.client) for key, value in block.attributes.items()}
        known.update(given.attributes)

        def spans(span: Any, request_spans: Callable[..., list[Any]]) -> Finished:
            def encode(
                stages: Stages, block: Block | None, more: Mapping[str, Any], events: Sequence[Event]
            ) -> list[Any]:
                verdict = more if block is None else {**block.attributes, **more}
                is_upgraded = not request.identity.is_sampled
                return request_spans(span, stages, request, known, verdict, events, upgraded=is_upgraded)

            finished = finish(request, judged, self.processor.learned, given.attributes, encode)
            if breached:
                mark_breach(finished.spans)
            return finished

        return self.processor.hand_on_request(request, spans)


def _held(context: SpanContext) -> dict[str, Any]:
    """Return what marks a span that the head sampler dropped: it is held, for a breach to take along."""
    return {} if context.trace_flags.sampled else {semconv.SLA_UPGRADED: True}


def _given(request: Request, connection: Mapping[str, Any]) -> Given:
    """Return what the request itself and the head sampler say of it, without what its code has set itself."""
    given = Given(*(request.description or request.describe()))
    given.attributes.update(connection)
    if request.probability is not None:
        given.attributes[semconv.SLA_SAMPLING_PROBABILITY] = request.probability
    if request.added:
        given.attributes.update(request.added)
    return given if request.notes is None else _give_way(request, request.notes, *given)


def _give_way(request: Request, notes: Any, blocks: list[Block], client: Block, attributes: dict[str, Any]) -> Given:
    """Bound what the request's code has set itself, which wins; return the rest without that."""
    if request.failed:
        request.note("set_status", request.status)
    request.notes = bounded(notes, attributes.pop(semconv.STAGETRACE_TRUNCATED_ATTRIBUTES, 0))
    own = request.notes.attributes or {}
    clashing = [block for block in (*blocks, client) if not own.keys().isdisjoint(block.attributes)]
    if clashing:
        blocks = [block for block in blocks if block not in clashing]
        client = NO_BLOCK if client in clashing else client
        for block in clashing:
            attributes.update(block.attributes)
    return Given(blocks, client, _without(attributes, request.notes))


def _without(attributes: Mapping[str, Any], notes: Any) -> dict[str, Any]:
    """Return the attributes that the request's code has not set itself."""
    own = notes.attributes or {}
    return {key: value for key, value in attributes.items() if key not in own}
