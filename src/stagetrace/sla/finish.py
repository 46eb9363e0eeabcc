"""What becomes of a request that has ended: judge, tile, explain, encode. Nothing here counts, learns or sends.

`SLASpanProcessor.judge` and `conclude` count and learn, each with a result that is complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from stagetrace.bounded_cache import BoundedCache
from stagetrace.guard import guarded, report
from stagetrace.otlp.encode.span_encoder import Block
from stagetrace.recording.details import detail_span, placed_details
from stagetrace.recording.record import NO_STAGES
from stagetrace.recording.segments import coalesced
from stagetrace.recording.spans import FinishedSpan, sampled, stage_span
from stagetrace.semconv import (
    SLA_BREACH_CAUSE,
    SLA_BREACH_CODE,
    SLA_BREACH_EVIDENCE,
    SLA_BREACH_STAGE,
    SLA_UPGRADED,
    STAGETRACE_DROPPED_STALLS,
    STAGETRACE_SKIPPED_STALLS,
    stage_total_ms,
)
from stagetrace.sla.breakdown import breakdown_of
from stagetrace.sla.cause import GC, NEXT, UNKNOWN
from stagetrace.sla.objective import BREACH
from stagetrace.sla.verdict import GOOD, Streamed, Tokens, Verdict, decide, fallback, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.trace import Event, ReadableSpan

    from stagetrace.recording.chunk_times import Stream
    from stagetrace.recording.generation import Generation
    from stagetrace.recording.record import RequestRecord
    from stagetrace.recording.stages import Stages
    from stagetrace.sla.baseline import Baselines
    from stagetrace.sla.cause import Breakdown
    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy
    from stagetrace.sla.verdict import Missed

T = TypeVar("T")
# Objective, verdict and fallback -> what the entry span carries of them, where that is no breach: the same for all.
_blocks: BoundedCache[tuple[str, str, str | None], Block] = BoundedCache(1_024)


class Request(NamedTuple):
    """A request that has ended. Times in nanoseconds since the epoch; method and route as the policy names them."""

    start: int
    end: int
    method: str | None
    route: str
    record: RequestRecord | None  # None: nothing is known of it but its entry span


class Decided(NamedTuple):
    """The verdict on a request, and the objective that it is by."""

    objective: Objective
    word: str
    missed: Missed | None
    fallback: str | None = None  # how bounds on tokens were judged, where these were not known

    def block(self) -> Block:
        """Return what the entry span carries of a verdict that is no breach."""
        key = (self.objective.name, self.word, self.fallback)
        block = _blocks.get(key)
        if block is None:
            block = _blocks[key] = Block(self.without_culprit().attributes())
        return block

    def without_culprit(self) -> Verdict:
        """Return the verdict alone."""
        return judge(self.objective, self.word, self.missed, {}, fallback=self.fallback)

    def with_culprit(self, request: Request, stages: Stages) -> Verdict:
        """Return the verdict with the guilty stage."""
        totals = stages.totals()
        visits = [(segment.stage, segment.start, segment.end) for segment in stages.segments()]
        missed = self.missed
        if missed is not None and missed.end_ns is not None:  # the part of the request in which it was missed
            since, until = request.start + missed.start_ns, request.start + missed.end_ns
            visits = [(stage, max(begin, since), min(end, until)) for stage, begin, end in visits]
            visits = [(stage, begin, end) for stage, begin, end in visits if begin < end]
            totals = {}
            for stage, begin, end in visits:
                totals[stage] = totals.get(stage, 0) + end - begin
        record = request.record
        if record is None:
            return judge(self.objective, self.word, missed, totals, visits, fallback=self.fallback)
        reports = record.reports
        return judge(self.objective, self.word, missed, totals, visits, record.calls, self.fallback, reports)


class Finished(NamedTuple, Generic[T]):
    """A request with everything that is to be said of it."""

    spans: T
    cause: str | None  # of a breach
    breakdown: Breakdown | None  # of a good request from which a baseline is to learn


def decided(policy: Policy, request: Request) -> Decided | None:
    """Return the verdict on a request, for which two times suffice; None where no objective matches."""
    objective = policy.objective(request.method, request.route)
    if objective is None:
        return None
    streamed, tokens, is_disconnected, record = None, None, False, request.record
    if record is not None:
        is_disconnected = record.disconnect is not None
        streamed = None if record.stream is None else streamed_in(record.stream, request.start)
        tokens = None if record.generation is None else tokens_in(record.generation, request.start)
    word, missed = decide(objective, request.end - request.start, streamed, tokens, disconnected=is_disconnected)
    if objective.first_token_ns is None and objective.per_token_ns is None:
        return Decided(objective, word, missed)
    return Decided(objective, word, missed, fallback(objective, streamed, tokens))


def streamed_in(stream: Stream, start: int) -> Streamed | None:
    """Return what a response can miss besides its duration, of a request that began at `start`; None if it is one."""
    if not stream.is_stream:
        return None
    since, until = stream.widest
    return Streamed(max(stream.first - start, 0), (since - start, until - start))


def tokens_in(generation: Generation, start: int) -> Tokens:
    """Return what is known of the tokens of a request that began at `start`."""
    first, last = generation.first, generation.last
    first_ns = None if first is None else max(first - start, 0)
    return Tokens(first_ns, max(last - start, 0), generation.following, generation.following_ns)


def finish(
    request: Request,
    judged: Decided | None,
    learned: Baselines,
    known: Mapping[str, Any],
    encode: Callable[[Stages, Block | None, Mapping[str, Any], Sequence[Event]], T],
) -> Finished[T]:
    """Return the request's spans, and what is to be counted and learned of it.

    `known` are attributes of its entry span. `encode` makes the spans from the stages, the block of a verdict that is
    no breach, and the attributes and events of a breach.
    """
    stages, record = NO_STAGES, request.record
    if record is not None:
        try:
            stages = record.close(request.start, request.end)
        except Exception as error:  # noqa: BLE001 -- without them, the entry span goes with its verdict
            report("stagetrace.recording.record.RequestRecord.close", error)
    if judged is None:
        return Finished(encode(stages, None, {}, ()), None, None)
    if judged.word != BREACH:
        learns = judged.word == GOOD and learned.wants((request.method, request.route), request.end)
        return Finished(encode(stages, judged.block(), {}, ()), None, _breakdown(request, stages) if learns else None)
    found = _explained(request, judged, stages, learned, known) or {}
    events = _placed(record, request, judged.missed, stages, found) or () if record is not None else ()
    cause = found.get(SLA_BREACH_CAUSE, UNKNOWN)
    if cause in NEXT and SLA_BREACH_CODE not in found:
        found[SLA_BREACH_EVIDENCE] += NEXT[cause]
    return Finished(encode(stages, None, found, events), cause, None)


def request_spans(
    span: ReadableSpan,
    stages: Stages,
    record: RequestRecord | None,
    known: Mapping[str, Any],
    verdict: Mapping[str, Any],
    events: Sequence[Event] = (),
    *,
    upgraded: bool,
) -> list[ReadableSpan]:
    """Return a request as spans of the SDK's, its entry span last: `span`, which has ended, with more attributes.

    So with more `events`.

    `upgraded`: the head sampler dropped it, and it is a breach.
    """
    details = placed_details(record, stages, span.context)
    attributes = {stage_total_ms(stage): took / 1e6 for stage, took in stages.totals().items()}
    own = span.attributes or {}  # which the request's code may have set: that wins
    attributes.update({key: value for key, value in stages.model.items() if key not in own})
    attributes.update(known)
    attributes.update(verdict)
    mark = {SLA_UPGRADED: True} if upgraded else {}
    segments = coalesced(stages.segments(), () if record is None else record.cuts)
    spans: list[ReadableSpan] = [
        *(detail_span(detail, span.resource, mark) for detail in details),
        *(stage_span(segment, span, mark) for segment in segments),
        FinishedSpan(span, attributes, events=[*span.events, *events] if events else None),
    ]
    return [FinishedSpan(one, {}, sampled(one.context)) for one in spans] if upgraded else spans


@guarded
def _breakdown(request: Request, stages: Stages) -> Breakdown | None:
    return None if request.record is None else breakdown_of(stages.segments(), request.record, stages.model)


@guarded
def _explained(
    request: Request, judged: Decided, stages: Stages, learned: Baselines, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the entry span of a breach carries of its verdict and its cause."""
    verdict = _with_culprit(request, judged, stages) or judged.without_culprit()
    found = verdict.attributes()
    found.update(_cause(request, verdict, stages, learned, {**known, **found}) or {})
    return found


@guarded
def _placed(
    record: RequestRecord, request: Request, missed: Missed | None, stages: Stages, found: dict[str, Any]
) -> Sequence[Event]:
    """Add to a breach's attributes the line of code at which it stood; return an event for each stack."""
    from stagetrace.sla import code, in_the_way

    segments, word = stages.segments(), found.get(SLA_BREACH_CAUSE, UNKNOWN)
    since, end = request.start, request.end
    if missed is not None and missed.end_ns is not None:  # only then it was late
        since, end = request.start + missed.start_ns, request.start + missed.end_ns
    stalls = [one for one in (*in_the_way.waited_behind(record, segments), *record.stalls) if since <= one.at <= end]
    runs = in_the_way.collected_in(record, since, end) if word == GC else []
    events, dropped = code.events_of([*stalls, *runs])
    if dropped:
        found[STAGETRACE_DROPPED_STALLS] = dropped
    if record.skipped_stalls:
        found[STAGETRACE_SKIPPED_STALLS] = record.skipped_stalls
    stage = found.get(SLA_BREACH_STAGE)
    line = code.code_of_collections(runs)
    if line is None and stage is not None:
        line = code.code_of(stalls, segments, stage, word, end)
    if line is not None:
        found[SLA_BREACH_CODE] = line.line
        found[SLA_BREACH_EVIDENCE] += code.evidence(line)
    return events


@guarded
def _with_culprit(request: Request, judged: Decided, stages: Stages) -> Verdict:
    return judged.with_culprit(request, stages)


@guarded
def _cause(
    request: Request, verdict: Verdict, stages: Stages, learned: Baselines, known: Mapping[str, Any]
) -> dict[str, Any]:
    breakdown = _breakdown(request, stages)
    route = (request.method, request.route)
    return {} if breakdown is None else learned.explain(route, verdict, breakdown, known)
