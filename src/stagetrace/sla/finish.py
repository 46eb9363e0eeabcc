"""Finish a request that was judged: tile, explain, encode. This module counts, learns and sends nothing.

`Judge.judge` and `conclude` count and learn, each with a result that is complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.guard import guarded, report
from stagetrace.policy.objective import BREACH, EXCLUDED
from stagetrace.policy.verdict import GOOD, UNKNOWN, over_budget
from stagetrace.request import serving_process
from stagetrace.request.in_flight import in_flight
from stagetrace.request.request import NO_STAGES
from stagetrace.request.stages import Segment
from stagetrace.semconv import (
    CPU_TIME_MS,
    CPU_WAIT_MS,
    INFERENCE,
    SLA_BREACH_CAUSE,
    SLA_BREACH_CODE,
    SLA_BREACH_EVIDENCE,
    SLA_BREACH_NO_CODE,
    SLA_BREACH_STAGE,
    SLA_OVER_BUDGET,
    STAGETRACE_DROPPED_STALLS,
    STAGETRACE_SKIPPED_STALLS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from stagetrace.causes.baseline import Baselines
    from stagetrace.causes.cause import Breakdown
    from stagetrace.otlp.encode import Block
    from stagetrace.policy.verdict import Missed, Verdict
    from stagetrace.request.exchange import RemoteSection
    from stagetrace.request.request import Request
    from stagetrace.request.stages import Stages
    from stagetrace.sla.decision import Decided
    from stagetrace.sources.thread_cpu import CpuSample, Share
    from stagetrace.tracing.span import Event

NO_CULPRITS: Final[Mapping[str, tuple[str | None, str]]] = {}


class Finished(NamedTuple):
    """A request with its spans, its stages, and what is to be counted and learned of it."""

    spans: Any  # what `encode` returned; Python 3.10 has no generic NamedTuple
    breakdown: Breakdown | None  # of a good request from which a baseline is to learn
    stages: Stages
    # Of a breach: the stage to blame and the cause by the objective that was missed.
    culprits: Mapping[str, tuple[str | None, str]] = NO_CULPRITS


def finish(
    request: Request,
    judged: Decided | None,
    learned: Baselines,
    known: Mapping[str, Any],
    encode: Callable[[Stages, Block | None, Mapping[str, Any], Sequence[Event]], Any],
) -> Finished:
    """Return the request's spans, and what is to be counted and learned of it.

    `known` are attributes of its entry span. `encode` makes the spans from the stages, the block of a verdict that is
    no breach, further attributes, and the events of a breach.
    """
    stages = NO_STAGES
    if request.bound:
        try:
            stages = request.close(request.started, request.end)
        except Exception as error:  # noqa: BLE001 -- without them, the entry span goes with its verdict
            report("stagetrace.request.request.Request.close", error)
    if judged is None:
        return Finished(encode(stages, None, {}, ()), None, stages)
    if judged.word != BREACH:
        learns = judged.word == GOOD and learned.wants((request.method, request.route), request.end)
        breakdown = _breakdown(request, stages) if learns else None
        block, more = judged.block(), _over_budget(judged, stages) if judged.objective.stages else None
        if block is None:
            more = {**judged.attributes(), **(more or {})}
        return Finished(encode(stages, block, more or {}, ()), breakdown, stages)
    breakdown = _breakdown(request, stages)
    found = _explained(request, judged, stages, learned, breakdown, known) or {}
    events = _placed(request, judged.missed, stages, found) or () if request.bound else ()
    cause = found.get(SLA_BREACH_CAUSE, UNKNOWN)
    culprits = {judged.objective.name: (found.get(SLA_BREACH_STAGE), cause)}
    for one in judged.each:
        if one.word == BREACH and one.objective.name not in culprits:
            of_this = _explained(request, one, stages, learned, breakdown, known) or {}
            culprits[one.objective.name] = of_this.get(SLA_BREACH_STAGE), of_this.get(SLA_BREACH_CAUSE, UNKNOWN)
    return Finished(encode(stages, None, found, events), None, stages, culprits)


@guarded
def _over_budget(judged: Decided, stages: Stages) -> dict[str, str]:
    """Return, of a judged request, the stages that exceeded their budget, the one with most excess first."""
    if not judged.objective.stages or judged.word == EXCLUDED:
        return {}
    over = over_budget(judged.objective, stages.totals())
    return {SLA_OVER_BUDGET: ", ".join(over)} if over else {}


@guarded
def _breakdown(request: Request, stages: Stages, missed: Missed | None = None) -> Breakdown | None:
    """Return the breakdown of a request, or of that part of it in which a bound was missed."""
    if not request.bound:
        return None
    from stagetrace.causes.breakdown import breakdown_of

    segments = stages.segments()
    if missed is None or missed.end_ns is None:
        return breakdown_of(segments, request, stages.model)
    within = request.started + missed.start_ns, request.started + missed.end_ns
    # What is known of the model is of its first call.
    model = {} if missed.start_ns else stages.model
    return breakdown_of(clipped(segments, *within), Within(request, *within), model, within)


@guarded
def _explained(
    request: Request,
    judged: Decided,
    stages: Stages,
    learned: Baselines,
    breakdown: Breakdown | None,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the entry span of a breach carries of its verdict and its cause, were this its only objective."""
    verdict = _with_culprit(request, judged, stages, learned) or judged.without_culprit()
    found = {**verdict.attributes(), **judged.besides(), **(_over_budget(judged, stages) or {})}
    if judged.missed is not None and judged.missed.end_ns is not None:
        breakdown = _breakdown(request, stages, judged.missed)
    if breakdown is not None:
        found.update(_cause(request, verdict, breakdown, learned, {**known, **found}) or {})
    return found


@guarded
def _placed(request: Request, missed: Missed | None, stages: Stages, found: dict[str, Any]) -> Sequence[Event]:
    """Add to a breach's attributes the line of code at which it stood; return an event for each stack."""
    from stagetrace.causes import code, in_the_way, stall_sampler
    from stagetrace.causes.cause import CAUSES, GC

    in_flight.look_back(request)
    segments, word = stages.segments(), found.get(SLA_BREACH_CAUSE, UNKNOWN)
    since, end = request.started, request.end
    bounds = in_flight.bounds_of(request)
    late_at = None if bounds is None else bounds.start + bounds.late
    if missed is not None and missed.end_ns is not None:  # late only in that interval
        since, end = request.started + missed.start_ns, request.started + missed.end_ns
        late_at = since + missed.threshold_ns
    stalls = [one for one in (*in_the_way.waited_behind(request, segments), *request.stalls) if since <= one.at <= end]
    runs = in_the_way.collected_in(request, since, end) if word == GC else []
    events, dropped = code.events_of([*stalls, *runs])
    if dropped:
        found[STAGETRACE_DROPPED_STALLS] = dropped
    stage = found.get(SLA_BREACH_STAGE)
    line = code.code_of_collections(runs)
    if line is None and stage is not None:
        line = code.code_of(stalls, segments, stage, word, end)
    if line is not None:
        found[SLA_BREACH_CODE] = line.line
        found[SLA_BREACH_EVIDENCE] += code.evidence(line)
    else:
        is_over = code.is_over(stalls, segments, stage, word)
        none = stall_sampler.why(request, stalls, late_at, end, is_over=is_over)
        found[SLA_BREACH_NO_CODE] = none.word
        found[SLA_BREACH_EVIDENCE] = found.get(SLA_BREACH_EVIDENCE, "") + CAUSES[word].advice + none.evidence
    if request.skipped_stalls:
        found[STAGETRACE_SKIPPED_STALLS] = request.skipped_stalls
    return events


@guarded
def _with_culprit(request: Request, judged: Decided, stages: Stages, learned: Baselines) -> Verdict:
    return judged.with_culprit(request, stages, learned.stages((request.method, request.route)))


@guarded
def _cause(
    request: Request, verdict: Verdict, breakdown: Breakdown, learned: Baselines, known: Mapping[str, Any]
) -> dict[str, Any]:
    found = learned.explain((request.method, request.route), verdict, breakdown, known)
    if SLA_BREACH_EVIDENCE in found and INFERENCE not in breakdown.stages:
        found[SLA_BREACH_EVIDENCE] += serving_process.evidence_of(request.started, request.end)
    return found


# --- The part of a request in which a bound of its response was missed: its stages, and what was measured in it.


class Within:
    """What a request has measured within [start, end), in nanoseconds since the epoch."""

    def __init__(self, request: Request, start: int, end: int) -> None:
        self._request = request
        self.bounds = start, end
        stream = request.stream
        self._noted = () if stream is None or stream.widest != self.bounds else stream.of_widest
        # Of these sections, parts may lie outside.
        self.cpu_samples: Sequence[tuple[CpuSample, CpuSample]] = self._all("cpu_samples")
        self.remote_sections: Sequence[RemoteSection] = request.remote_sections
        self.computed: Sequence[tuple[int, int, int, int]] = [
            part for one in request.computed if (part := self._part(*one)) is not None
        ]
        self.wakeups: Sequence[tuple[int, int, int]] = [
            (*self._clip(*at), lacked) for *at, lacked in self._all("wakeups")
        ]
        self.calls: Sequence[tuple[str, int, int]] = [(peer, *self._clip(*at)) for peer, *at in self._all("calls")]
        self.behind: Sequence[tuple[int, int, str]] = [(*self._clip(*at), by) for *at, by in self._all("behind")]
        self.socket_waits: Sequence[tuple[int, int, bool]] = [
            (*self._clip(begin, until), known) for begin, until, known in request.socket_waits
        ]
        waits = None if request.peer_waits is None else self._all("peer_waits")
        self.peer_waits: Sequence[tuple[int, int]] | None = None if waits is None else [self._clip(*at) for at in waits]

    def _all(self, name: str) -> list[Any]:
        kept = list(getattr(self._request, name) or ())
        known = {id(one) for one in kept}
        return kept + [what for of, what in self._noted if of == name and id(what) not in known]

    def _part(self, begin: int, until: int, computed: int, thread: int) -> tuple[int, int, int, int] | None:
        since, end = self._clip(begin, until)
        return (since, end, computed * (end - since) // (until - begin), thread) if since < end else None

    def _clip(self, begin: int, until: int) -> tuple[int, int]:
        start, end = self.bounds
        begin = min(max(begin, start), end)
        return begin, max(min(until, end), begin)

    def fits_buffer(self, activity: str) -> bool:
        """Return what the request does."""
        return self._request.fits_buffer(activity)

    def loop_shares(self, start: int, end: int) -> Sequence[tuple[int, int, Share]]:
        """Return what the thread of the event loop has done, as it was read at the time or is still known."""
        stream = self._request.stream
        kept = None if stream is None else stream.loop_shares(*self.bounds)
        if kept is None:
            return self._request.loop_shares(start, end)
        return [one for one in kept if one[0] < end and start < one[1]]


def clipped(segments: Iterable[Segment], start: int, end: int) -> list[Segment]:
    """Return what of these stages lies within [start, end)."""
    found = []
    for one in segments:
        since, until = max(one.start, start), min(one.end, end)
        if since >= until:
            continue
        part = Segment(one.stage, since)
        share = (until - since) / (one.end - one.start)
        part.end, part.link = until, one.link
        part.attributes = {
            name: value * share if name in (CPU_TIME_MS, CPU_WAIT_MS) else value
            for name, value in one.attributes.items()
        }
        found.append(part)
    return found
