"""Begin and end the entry spans that we record ourselves: sampled, tiled, judged, encoded, in one go as they end."""

from __future__ import annotations

from random import getrandbits
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span
from opentelemetry.trace.span import DEFAULT_TRACE_STATE

from stagetrace import semconv
from stagetrace.guard import guarded, report
from stagetrace.otlp.encode.request_encoder import encoded, request, tiled
from stagetrace.otlp.encode.span_encoder import Block, encode_entry, encode_notes, entry_rest, stage_head
from stagetrace.recording.limits import bounded
from stagetrace.recording.own_span import Identity
from stagetrace.recording.segments import coalesced
from stagetrace.recording.spans import SCOPE, UNSET, FinishedSpan, sampled, stage_span
from stagetrace.sla.policy import BREACH
from stagetrace.sla.processor import totals_of
from stagetrace.sla.sampling import Chances, is_own
from stagetrace.sla.verdict import GOOD, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.recording.own_span import OwnSpan
    from stagetrace.recording.segments import Segment
    from stagetrace.sla.processor import Decided, SLASpanProcessor

# By whether the span is sampled (1) and its trace id random (2).
_FLAGS = [TraceFlags(flags) for flags in range(4)]
NO_BLOCK = Block({})
MAX_RESTS = 16_384
UPGRADED = Block({semconv.SLA_UPGRADED: True})
_tuple: Any = tuple.__new__  # what the named tuples' own calls, with nothing left to check


class EntryRecorder:
    """Records entry spans for the provider that this package has set.

    Where nobody else has added a processor to that provider, a request goes to `senders` as bytes; otherwise as the
    spans that the SDK's processors know.
    """

    def __init__(
        self, provider: TracerProvider, processor: SLASpanProcessor, senders: Sequence[EncodingSpanProcessor]
    ) -> None:
        self._provider = provider
        self._ids = provider.id_generator
        self._processor = processor
        self._senders = senders
        self._sampler = getattr(provider.sampler, "root", provider.sampler)
        self._sampler_reads_attributes = is_own(self._sampler)  # the SDK's do not look at any
        # OpenTelemetry's own samplers, which most services have, decide by the parent, else by the trace id: known here
        # without a call into them.
        own = self._sampler_reads_attributes
        self._by_parent = not own and _like(self._sampler, DEFAULT_ON)
        self._chances = Chances(self._sampler)
        self._bound = None if own or not self._chances.is_by_parent else self._chances.bound
        self._probability = self._chances.of_root
        # Nor are the ids of its own generator drawn by a call into that, where nobody has asked for them before.
        self._draws = type(self._ids) is RandomIdGenerator and (self._by_parent or self._bound is not None)
        self._unbroken: dict[tuple[str, str], Block] = {}
        self._rests: dict[tuple[Any, ...], bytes] = {}

    @property
    def has_others(self) -> bool:
        """Whether other processors are to know that a span begins."""
        return self._processor.has_others

    def begin(self, entry: OwnSpan, parent_context: Context) -> None:
        """Let other processors know that a span begins."""
        self._processor.start_next(entry, parent_context)  # type: ignore[arg-type]  # a span to all who look

    def identify(self, entry: OwnSpan, parent_context: Context) -> Identity:
        """Draw the ids of a span and ask the sampler whether to keep it."""
        ids = self._ids
        parent = get_current_span(parent_context).get_span_context() if parent_context else None
        if parent is None or not parent.is_valid:
            parent, trace_id, random, state = (
                None,
                entry.drawn or ids.generate_trace_id(),
                ids.is_trace_id_random(),
                None,
            )
        else:
            trace_id, random, state = parent.trace_id, parent.trace_flags.random_trace_id, parent.trace_state
        if self._by_parent:
            is_sampled = is_recording = parent is None or parent.trace_flags.sampled
        elif self._bound is not None:
            by_id = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
            is_sampled = is_recording = by_id if parent is None else parent.trace_flags.sampled
            if parent is None and is_sampled:
                state = self._chances.state_of(trace_id)
        else:
            given = entry.adapter.known_attributes() if self._sampler_reads_attributes and entry.adapter else {}
            result = self._sampler.should_sample(parent_context, trace_id, entry.name, SpanKind.SERVER, given)
            is_sampled, is_recording = result.decision.is_sampled(), result.decision.is_recording()
            state = result.trace_state
            if result.attributes:
                entry.added = {key: value for key, value in result.attributes.items() if key not in given}
        entry.probability = self._chances.of(parent, state, is_sampled=is_sampled)
        flags = _FLAGS[(1 if is_sampled else 0) + (2 if random else 0)]
        context = SpanContext(trace_id, ids.generate_span_id(), False, flags, state)  # noqa: FBT003
        if not is_recording and entry.end_time is None:
            entry.held = True
            self._processor.hold(trace_id)
        return Identity(context, parent, is_sampled)

    def add_call(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext,
        attributes: dict[str, Any],
        times: tuple[int, int],
    ) -> None:
        """Record a call to another service, which has ended; an `error.type` among its attributes is its status."""
        if not context.trace_flags.sampled:
            attributes[semconv.SLA_UPGRADED] = True  # held, for a breach to take along
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._provider.resource,
                attributes,
                kind=SpanKind.CLIENT,
                status=Status(StatusCode.ERROR) if "error.type" in attributes else UNSET,
                start_time=times[0],
                end_time=times[1],
                instrumentation_scope=SCOPE,
            )
        )

    def end(self, entry: OwnSpan, end_time: int, method: str | None, route: str) -> None:
        """End the span: judge it by `method` and `route`, and send it with its stages, unless it was not sampled."""
        record = entry.record
        start = record._start  # noqa: SLF001 -- as `started`, on the path of each request
        if end_time < start:  # noqa: PLR1730 -- a third of the time of max()
            end_time = start  # the wall clock stepped back
        if self._sampler_reads_attributes:
            entry.identity  # noqa: B018 -- asks the sampler, which now sees the route, if no child has asked before
        decided = self._processor.decided(method, route, start, end_time, record)
        breached = decided is not None and decided.word == BREACH
        if self._drops(entry, breached=breached):
            entry.end_time = end_time
            record.abandon()
            return
        entry.served = (method, route)
        blocks, client, attributes = _described(entry)
        if entry.notes is not None:
            blocks, client, attributes = _give_way(entry, entry.notes, blocks, client, attributes)
        entry.end_time = end_time
        mark = NO_BLOCK
        if not entry.identity.is_sampled:
            mark = UPGRADED
            blocks.append(mark)
            held, lost = self._processor.release(entry.context.trace_id, keep=True) if entry.held else ([], 0)
            if lost:
                attributes[semconv.STAGETRACE_DROPPED_SPANS] = lost
            for span in held:
                self._processor.hand_on(FinishedSpan(span, {}, sampled(span.context)))
        if self._processor.has_others or not self._send(
            entry, decided, blocks, client, attributes, mark, breached=breached
        ):
            self._hand_on(entry, decided, [*blocks, client], attributes, mark)

    def _drops(self, entry: OwnSpan, *, breached: bool) -> bool:
        """Return whether the head sampler drops a request that kept its promise; if not, it has an identity."""
        if self._draws and not entry.has_identity and not entry.parent_context:
            # As `identify`, for a span that nobody has asked for its ids, which are most.
            trace_id = getrandbits(128) or 1
            is_sampled = self._bound is None or trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
            if not is_sampled and not breached:
                return True
            if self._probability is not None:
                entry.probability = self._probability
            flags = _FLAGS[3 if is_sampled else 2]
            parts = (trace_id, getrandbits(64) or 1, False, flags, DEFAULT_TRACE_STATE, True)
            entry.identify_as(_tuple(Identity, (_tuple(SpanContext, parts), None, is_sampled)))
        elif not breached and not entry.identity.is_sampled:
            if entry.held:
                self._processor.release(entry.context.trace_id, keep=False)
            return True
        return False

    def _send(
        self,
        entry: OwnSpan,
        decided: Decided | None,
        blocks: list[Block],
        client: Block,
        attributes: dict[str, Any],
        mark: Block,
        *,
        breached: bool,
    ) -> bool:
        """Send the request as bytes; return whether that could be done."""
        try:
            record = entry.record
            start, end, identity = record._start, entry.end_time or 0, entry.identity  # noqa: SLF001 -- as in `end`
            learned = self._processor.learned
            learns = decided is not None and decided.word == GOOD and learned.wants(entry.served, end)
            # The stages themselves show what took long, and what usually does.
            events = None if breached or learns else record.noted()
            segments: list[Segment] = []
            if events is not None and entry.notes is None and not breached:
                if decided is not None:
                    blocks.append(self._block(decided))
                rest = self._rest(entry, blocks) + client.encoded
                ids = _ids(len(events))
                spans, count = request(events, start, end, identity, ids, mark.encoded, rest, attributes, record.cuts)
                record.abandon()
                self._put(spans, count, breach=False)
                return True
            head = stage_head(identity.context)
            if events is not None:
                stages = tiled(events, start, end, end, head, _ids(len(events)), mark.encoded, record.cuts)
            else:
                segments = record.close(start, end, few=not (breached or learns))
                few = coalesced(segments, record.cuts)
                stages = encoded(few, record.model, head, _ids(len(few)), mark.encoded)
            spans, count, totals, model = stages
            attributes = attributes.copy()  # the slow way begins with what came in
            self._add_verdict(decided, entry, totals, segments, blocks, attributes)
            rest = self._rest(entry, blocks) + client.encoded
            if entry.notes is not None:
                taken = {semconv.stage_total_ms(stage) for stage in totals}.union(
                    attributes, *(block.attributes for block in blocks)
                )
                model = _model(entry, model)
                rest += encode_notes(entry.notes, taken)
            spans += encode_entry(identity, (start, end), rest, attributes, totals, model)
        except Exception as error:  # noqa: BLE001 -- the slow way is left
            report("stagetrace.otlp.encode.span_encoder", error)
            return False
        record.abandon()
        self._put(spans, count + 1, breach=breached)
        return True

    def _put(self, spans: bytes, count: int, *, breach: bool) -> None:
        resource = self._provider.resource  # another one after a fork
        for sender in self._senders:
            sender.put(resource, SCOPE, spans, count, breach=breach)

    def _rest(self, entry: OwnSpan, blocks: list[Block]) -> bytes:
        key = (entry.name, entry.failed, *blocks)
        rest = self._rests.get(key)
        if rest is None:
            if len(self._rests) >= MAX_RESTS:
                self._rests.clear()
            rest = self._rests[key] = entry_rest(entry.name, entry.kind.value, blocks, failed=entry.failed)
        return rest

    @guarded
    def _add_verdict(
        self,
        decided: Decided | None,
        entry: OwnSpan,
        totals: dict[str, int],
        segments: list[Segment],
        blocks: list[Block],
        attributes: dict[str, Any],
    ) -> None:
        if decided is None:
            return
        if decided.word == BREACH:
            verdict = decided.verdict(totals, segments, entry.start_time, entry.record.calls)
            attributes.update(verdict.attributes())
            attributes.update(self._processor.explain(entry.served, verdict, segments, entry.record, attributes) or {})
            if entry.cause is None:  # else it is counted already: sending as bytes has failed since
                entry.cause = attributes[semconv.SLA_BREACH_CAUSE]
                self._processor.counter.add_cause(decided.objective.name, entry.cause)
        else:
            blocks.append(self._block(decided))
            if segments and decided.word == GOOD:
                self._processor.learn(entry.served, segments, entry.record)

    def _block(self, decided: Decided) -> Block:
        """Return what a verdict that is no breach says, the same for all requests."""
        key = (decided.objective.name, decided.word)
        block = self._unbroken.get(key)
        if block is None:
            block = self._unbroken[key] = Block(judge(*decided, {}).attributes())
        return block

    @guarded
    def _hand_on(
        self,
        entry: OwnSpan,
        decided: Decided | None,
        blocks: list[Block],
        attributes: dict[str, Any],
        mark: Block,
    ) -> None:
        """Hand the request on as the spans that the SDK's processors know."""
        segments = self._segments(entry)
        totals = totals_of(segments)
        for stage, total in totals.items():
            attributes[semconv.stage_total_ms(stage)] = total / 1e6
        attributes.update(_model(entry, entry.record.model))
        self._add_verdict(decided, entry, totals, segments, blocks, attributes)
        together = {key: value for block in blocks for key, value in block.attributes.items()} | attributes
        span = entry.readable(together, self._provider.resource)
        stages = (stage_span(segment, span, mark.attributes) for segment in coalesced(segments, entry.record.cuts))
        spans: list[ReadableSpan] = [*stages, span]
        for one in spans:
            self._processor.hand_on(FinishedSpan(one, {}, sampled(one.context)) if mark is UPGRADED else one)

    def _segments(self, entry: OwnSpan) -> list[Segment]:
        try:
            return entry.record.close(entry.start_time, entry.end_time or 0)
        except Exception as error:  # noqa: BLE001 -- the entry span and its verdict go without stages
            report("stagetrace.recording.record", error)
            return []


def _ids(count: int) -> bytes:
    """Return ids of so many spans, and one more: as the SDK's unique, not secret."""
    size = 8 * count + 8
    return getrandbits(8 * size).to_bytes(size, "little")


def _described(entry: OwnSpan) -> tuple[list[Block], Block, dict[str, Any]]:
    """Return what `describe` does, with what the head sampler adds."""
    blocks, client, attributes = entry.adapter.describe() if entry.adapter else ([], NO_BLOCK, {})
    if entry.probability is not None:
        attributes[semconv.SLA_SAMPLING_PROBABILITY] = entry.probability
    if entry.added:
        attributes.update(entry.added)
    return blocks, client, attributes


def _give_way(
    entry: OwnSpan, notes: ReadableSpan, blocks: list[Block], client: Block, attributes: dict[str, Any]
) -> tuple[list[Block], Block, dict[str, Any]]:
    """Bound what the request's code has set itself, which wins; return blocks, client and attributes without that."""
    if entry.failed:
        entry.set_status(entry.status)
    entry.notes = bounded(notes, attributes.pop(semconv.STAGETRACE_TRUNCATED_ATTRIBUTES, 0))
    own = entry.notes.attributes or {}
    clashing = [block for block in (*blocks, client) if not own.keys().isdisjoint(block.attributes)]
    if clashing:
        blocks = [block for block in blocks if block not in clashing]
        client = NO_BLOCK if client in clashing else client
        for block in clashing:
            attributes.update(block.attributes)
    return blocks, client, {key: value for key, value in attributes.items() if key not in own}


def _model(entry: OwnSpan, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what of a model's attributes the request's code has not set itself."""
    own = (entry.notes.attributes if entry.notes is not None else None) or {}
    return {key: value for key, value in model.items() if key not in own}


def _like(sampler: Sampler, known: Sampler) -> bool:
    return bool(sampler.get_description() == known.get_description())
