"""The verdicts on a request that has ended: of each objective that judges it, and which one its entry span shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stagetrace.bounded_cache import BoundedCache
from stagetrace.otlp.encode.span_encoder import Block
from stagetrace.semconv import SLA_EXCLUDED_REASON, SLA_VERDICTS
from stagetrace.sla import verdict_list
from stagetrace.sla.objective import BREACH, EXCLUDED
from stagetrace.sla.verdict import DISCONNECT, Called, Streamed, Tokens, Verdict, decide, fallback, judge, why_excluded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from stagetrace.recording.chunk_times import Stream
    from stagetrace.recording.generation import Generation
    from stagetrace.recording.record import RequestRecord
    from stagetrace.recording.stages import Stages
    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy
    from stagetrace.sla.verdict import Missed

# What the entry span carries of a verdict that is no breach: the same for all requests that it is equal for.
_blocks: BoundedCache[tuple[Any, ...], Block] = BoundedCache(1_024)


class Request(NamedTuple):
    """A request that has ended. Times in nanoseconds since the epoch; method and route as the policy names them."""

    start: int
    end: int
    method: str | None
    route: str
    record: RequestRecord | None  # None: nothing is known of it but its entry span
    failed: bool = False  # the response was a server's error


class Decided(NamedTuple):
    """The verdict of one objective on a request."""

    objective: Objective
    word: str
    missed: Missed | None
    fallback: str | None = None  # how bounds on tokens were judged, where these were not known
    reason: str | None = None  # why it was excluded
    each: tuple[Decided, ...] = ()  # the verdicts of all objectives in the policy's order, where there are several

    @property
    def all(self) -> tuple[Decided, ...]:
        """The verdicts of all objectives that judge the request, in the policy's order."""
        return self.each or (self,)

    def block(self) -> Block:
        """Return what the entry span carries of a verdict that is no breach."""
        key: tuple[Any, ...] = (self.objective, self.word, self.fallback, self.reason)
        if self.each:
            key = (*key, *((one.objective, one.word) for one in self.each))
        block = _blocks.get(key)
        if block is None:
            block = _blocks[key] = Block({**self.without_culprit().attributes(), **self.besides()})
        return block

    def besides(self) -> dict[str, Any]:
        """Return what the entry span carries besides the verdict of one objective: that of each; why it is excluded."""
        reason = {} if self.reason is None else {SLA_EXCLUDED_REASON: self.reason}
        if not self.each:
            return reason
        texts = ((one.word, one.objective.name, one.objective.target_text) for one in self.each)
        return {SLA_VERDICTS: verdict_list.write(texts), **reason}

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


class _Facts(NamedTuple):
    """What verdicts depend on, besides their objectives."""

    duration_ns: int
    streamed: Streamed | None
    tokens: Tokens | None
    is_disconnected: bool
    failed: bool


def decided(policy: Policy, request: Request) -> Decided | None:
    """Return the verdict on a request; None where no objective matches.

    Of several, the first that was missed, else the first that is good; `each` has them all.
    """
    chain = policy.applying(request.method, request.route)
    if not chain:
        return None
    facts = _facts(request)
    if len(chain) == 1:
        return _decided(chain[0], facts)
    each = tuple([_decided(one, facts) for one in chain])
    return _shown(each)._replace(each=each)


def _shown(each: Sequence[Decided]) -> Decided:
    """Return the verdict that the entry span shows."""
    breach = next((one for one in each if one.word == BREACH), None)
    return breach or next((one for one in each if one.word != EXCLUDED), each[0])


def _facts(request: Request) -> _Facts:
    streamed, tokens, is_disconnected, record = None, None, False, request.record
    if record is not None:
        is_disconnected = record.disconnect is not None
        streamed = None if record.stream is None else streamed_in(record.stream, request.start)
        tokens = None if record.generation is None else tokens_in(record.generation, request.start)
    return _Facts(request.end - request.start, streamed, tokens, is_disconnected, request.failed)


def _decided(objective: Objective, facts: _Facts) -> Decided:
    duration_ns, streamed, tokens, is_disconnected, failed = facts
    word, missed = decide(objective, duration_ns, streamed, tokens, disconnected=is_disconnected, failed=failed)
    if word == EXCLUDED:
        # A disconnected request is excluded by default, too, unless it had missed its objective by then.
        reason = why_excluded(objective, disconnected=is_disconnected, failed=failed) or DISCONNECT
        return Decided(objective, word, missed, None, reason)
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
