"""The verdicts on a request that has ended: of each objective that judges it, and which one its entry span shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import log
from stagetrace.bounded_cache import BoundedCache
from stagetrace.guard import guarded, report
from stagetrace.otlp.encode.span_encoder import Block
from stagetrace.semconv import SLA_DEADLINE_SOURCE, SLA_EXCLUDED_REASON, SLA_SEGMENT, SLA_VERDICTS
from stagetrace.sla import verdict_list
from stagetrace.sla.cause import DISCONNECT
from stagetrace.sla.deadlines import deadlines
from stagetrace.sla.objective import BREACH, EXCLUDED, OF_FIRST_TOKEN
from stagetrace.sla.policy import absent
from stagetrace.sla.request_values import Values
from stagetrace.sla.serving import serving
from stagetrace.sla.verdict import (
    FIRST_CHUNK,
    FIRST_TOKEN,
    Called,
    Streamed,
    Tokens,
    Verdict,
    decide,
    fallback,
    judge,
    why_excluded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stagetrace.recording.chunk_times import Stream
    from stagetrace.recording.generation import Generation
    from stagetrace.recording.record import RequestRecord
    from stagetrace.recording.stages import Stages
    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy
    from stagetrace.sla.request import Request
    from stagetrace.sla.segments import Segments
    from stagetrace.sla.verdict import Missed
    from stagetrace.sla.verdict_counter import VerdictCounter

    _Facts = tuple[Streamed | None, Tokens | None, bool]
    # The facts of a request that an objective judges, and what the verdict may use.
    _Asked = tuple[Request, _Facts, Callable[[str], str | None], Segments | None, VerdictCounter | None]

NO_DEADLINES: Final[Mapping[str, int]] = {}
# Encoded attributes of verdicts that are no breach, which many requests share.
_blocks: BoundedCache[tuple[str | None, ...], tuple[Objective, Block]] = BoundedCache(1_024)
_blocks_of_several: BoundedCache[tuple[Any, ...], Block] = BoundedCache(256)
_tuple: Any = tuple.__new__  # what a named tuple's own call does, with nothing left to check
# Of a request whose response is in one chunk, without generated tokens, and whose client has it.
_NO_FACTS: Final[_Facts] = (None, None, False)


class Decided(NamedTuple):
    """The verdict of one objective on a request."""

    objective: Objective  # with the bounds that the request has brought along
    word: str
    missed: Missed | None
    fallback: str | None = None  # how bounds on tokens were judged, where these were not known
    reason: str | None = None  # why it was excluded
    segment: str | None = None
    deadlines: Mapping[str, int] = NO_DEADLINES  # those that bound it, in nanoseconds by their source
    each: tuple[Decided, ...] = ()  # the verdicts of all objectives in the policy's order, where there are several

    @property
    def all(self) -> tuple[Decided, ...]:
        """The verdicts of all objectives that judge the request, in the policy's order."""
        return self.each or (self,)

    def block(self) -> Block | None:
        """Return what the entry span carries of a verdict that is no breach; None where that is the request's own."""
        if self.deadlines or self.each:
            return None if any(one.deadlines for one in self.all) else self._block_of_several()
        objective = self.objective
        key = (objective.name, self.word, self.fallback, self.reason, self.segment)
        found = _blocks.get(key)
        if found is None or found[0] is not objective:  # of a policy that was replaced
            found = _blocks[key] = objective, Block(self.attributes())
        return found[1]

    def _block_of_several(self) -> Block:
        key = (self.fallback, self.reason, self.segment, *((one.objective, one.word) for one in self.each))
        block = _blocks_of_several.get(key)
        if block is None:
            block = _blocks_of_several[key] = Block(self.attributes())
        return block

    def attributes(self) -> dict[str, Any]:
        """Return what the entry span carries of the verdict, but for the culprit."""
        return {**self.without_culprit().attributes(), **self.besides()}

    def besides(self) -> dict[str, Any]:
        """Return the attributes that the verdict itself does not have."""
        found: dict[str, Any] = {}
        if self.each:
            texts = ((one.word, one.objective.name, one.objective.target_text) for one in self.each)
            found[SLA_VERDICTS] = verdict_list.write(texts)
        if self.reason is not None:
            found[SLA_EXCLUDED_REASON] = self.reason
        if self.segment is not None:
            found[SLA_SEGMENT] = self.segment
        source = self._deadline_source()
        if source is not None:
            found[SLA_DEADLINE_SOURCE] = source
        return found

    def _deadline_source(self) -> str | None:
        """Return where the threshold that the entry span shows came from, if the request has brought it along."""
        if not self.deadlines or self.word == EXCLUDED:
            return None
        missed = self.missed
        of_first = missed is not None and missed.bound in (FIRST_TOKEN, FIRST_CHUNK)
        threshold_ns = self.objective.within_ns if missed is None else missed.threshold_ns
        return next(
            (one for one, ns in self.deadlines.items() if (one in OF_FIRST_TOKEN) == of_first and ns == threshold_ns),
            None,
        )

    def without_culprit(self) -> Verdict:
        """Return the verdict alone."""
        return judge(self.objective, self.word, self.missed, {}, fallback=self.fallback)

    def with_culprit(self, request: Request, stages: Stages, expected: Mapping[str, float]) -> Verdict:
        """Return the verdict with the culprit stage; `expected` is what the stages of its route normally take."""
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
        called = Called(visits) if record is None else Called(visits, record.calls, record.reports)
        return judge(self.objective, self.word, missed, totals, called, self.fallback, expected)


def decided(
    policy: Policy, request: Request, segments: Segments | None = None, counter: VerdictCounter | None = None
) -> Decided | None:
    """Return the verdict on a request; None where no objective matches.

    Of several, the first that was missed, else the first that is good; `each` has them all. `segments` are those that
    there have been; `counter` counts what had to be left out.
    """
    values = Values(request) if policy.reads else absent
    chain = policy.applying(request.method, request.route, values)
    if not chain:
        return None
    record, facts = request.record, _NO_FACTS
    if record is not None and (record.stream or record.generation or record.disconnect):
        facts = _facts(request, record)
    asked = request, facts, values, segments, counter
    if len(chain) == 1:
        return _decided(chain[0], asked)
    each = tuple([_decided(one, asked) for one in chain])
    return _shown(each)._replace(each=each)


def _shown(each: Sequence[Decided]) -> Decided:
    """Return the verdict that the entry span shows."""
    breach = next((one for one in each if one.word == BREACH), None)
    return breach or next((one for one in each if one.word != EXCLUDED), each[0])


def _facts(request: Request, record: RequestRecord) -> _Facts:
    """Return what the response can miss besides its duration, its tokens, and whether the client disconnected."""
    streamed = None if record.stream is None else streamed_in(record.stream, request.start)
    tokens = None if record.generation is None else tokens_in(record.generation, request.start)
    return streamed, tokens, record.disconnect is not None


def _decided(objective: Objective, asked: _Asked) -> Decided:
    request, (streamed, tokens, is_disconnected), _, segments, _ = asked
    brought, segment, age_s = NO_DEADLINES, None, None
    duration_ns, failed = request.end - request.start, request.failed
    if objective.deadline is not None:
        objective, brought = _bounded(objective, asked)
    if objective.warmup_s:
        age_s = serving.age_s(duration_ns)
    word, missed = decide(
        objective, duration_ns, streamed, tokens, disconnected=is_disconnected, failed=failed, age_s=age_s
    )
    if word == EXCLUDED:
        # A disconnected request is excluded by default, too, unless it had missed its objective by then.
        reason = why_excluded(objective, disconnected=is_disconnected, failed=failed, age_s=age_s) or DISCONNECT
        return Decided(objective, word, missed, None, reason, None, brought)
    if objective.segment_by and segments is not None:
        segment = _segment(objective, asked)
    judged_otherwise = None
    if objective.first_token_ns is not None or objective.per_token_ns is not None:
        judged_otherwise = fallback(objective, streamed, tokens)
    found: Decided = _tuple(Decided, (objective, word, missed, judged_otherwise, None, segment, brought, ()))
    return found


def _bounded(objective: Objective, asked: _Asked) -> tuple[Objective, Mapping[str, int]]:
    """Return the objective for the request's own deadlines, and these; as it is where they cannot be read."""
    try:
        return _bounded_by_its_own(objective, asked)
    except Exception as error:  # noqa: BLE001 -- as `guarded`, which would hide the objective
        report("stagetrace.sla.decision._bounded", error)
        return objective, NO_DEADLINES


def _bounded_by_its_own(objective: Objective, asked: _Asked) -> tuple[Objective, Mapping[str, int]]:
    request, _, values, _, counter = asked
    sources = () if objective.deadline is None else objective.deadline.sources
    found = deadlines(sources, values, None if request.record is None else request.record.deadline_ns())
    for source in found.unusable:
        log.once(f"deadline {source}", f"a request had no usable time in {source}: it has no deadline by that.")
        if counter is not None:
            counter.add_unusable_deadline(source)
    bounded = objective.bounded_by(found.ns)
    return (objective, NO_DEADLINES) if bounded is objective else (bounded, found.ns)


@guarded
def _segment(objective: Objective, asked: _Asked) -> str | None:
    _, _, values, segments, counter = asked
    if segments is None:
        return None
    segment, is_other = segments.of(objective, values)
    if is_other and counter is not None:
        counter.add_segment_overflow(objective.name)
    return segment


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
