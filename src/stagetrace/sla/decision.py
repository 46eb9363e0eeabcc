"""The verdicts on a request that has ended: of each objective that judges it, and which one its entry span shows."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import log
from stagetrace.guard import guarded, report
from stagetrace.otlp.encode import Block
from stagetrace.policy import entry_span
from stagetrace.policy.objective import (
    BAGGAGE,
    BREACH,
    EXCLUDED,
    HEADER,
    MOST_CHARACTERS,
    NO_SEGMENT,
    OF_FIRST_TOKEN,
    OTHER_SEGMENT,
    RECORDED_HEADERS,
    SERVICE_KEY,
)
from stagetrace.policy.policy import absent
from stagetrace.policy.verdict import (
    DISCONNECT,
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
from stagetrace.request.context import here
from stagetrace.request.serving_process import serving
from stagetrace.semconv import SLA_DEADLINE_SOURCE, SLA_EXCLUDED_REASON, SLA_SEGMENT, SLA_VERDICTS, as_text
from stagetrace.system.bounded import BoundedCache
from stagetrace.system.threads import allocate_lock
from stagetrace.text import is_secret, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy
    from stagetrace.policy.verdict import Missed
    from stagetrace.request.chunk_times import Stream
    from stagetrace.request.generation import Generation
    from stagetrace.request.request import Request
    from stagetrace.request.stages import Stages
    from stagetrace.sla.verdict_counter import VerdictCounter


# --- The segments of objectives in this process: the first ones that come, up to each objective's limit; then `other`.


class Segments:
    """Knows the segments that there have been, by objective. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards the adding of a segment
        # By name and keys: a policy that is read anew keeps the segments of objectives that have the same ones.
        # A segment leaves the process, so credentials in it, which are known by their form, are redacted: once.
        self._known: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}

    def of(self, objective: Objective, value: Callable[[str], str | None]) -> tuple[str | None, bool]:
        """Return the segment of a request, and whether it is `other` for lack of room; None where there are none."""
        keys = objective.segment_by
        if not keys:
            return None, False
        values = map(value, keys)
        segment = ", ".join(NO_SEGMENT if one is None else one for one in values)
        known = self._known.get((objective.name, keys))
        if known is not None and segment in known:
            return known[segment], False
        with self._lock:
            known = self._known.setdefault((objective.name, keys), {})
            if segment not in known and len(known) >= objective.max_segments:
                return OTHER_SEGMENT, True
            known[segment] = redacted(segment)
        return known[segment], False


# --- What a request has for the keys of conditions and segments: attributes, headers, baggage; looked up on demand.


class Values:
    """The values of one request that has ended, as a policy asks for them by key; each is looked up once.

    None for a value that the request does not have, that is secret, or that cannot be read.
    """

    __slots__ = ("_found", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._found: dict[str, str | None] = {}

    def __call__(self, key: str) -> str | None:
        """Return the value for a key, in text form; never raises."""
        found = self._found
        if key not in found:
            found[key] = None
            try:
                found[key] = _value(self._request, key)
            except Exception as error:  # noqa: BLE001 -- as `guarded`, which would take the key for a method's
                report("stagetrace.sla.decision.Values", error)
        return found[key]


def _value(request: Request, key: str) -> str | None:
    if key.startswith((HEADER, BAGGAGE)):
        if not _is_readable(key):
            return None
        found = _baggage(request, key.removeprefix(BAGGAGE)) if key.startswith(BAGGAGE) else _header(request, key)
    else:
        places = _of_service(request) if key == SERVICE_KEY else _attributes(request)
        found = next((one[key] for one in places if key in one), None)
    return None if found is None else as_text(found)[:MOST_CHARACTERS]


@functools.lru_cache(maxsize=1_024)
def _is_readable(key: str) -> bool:
    """Return whether the name of a header or of baggage is none of a secret; log it, if it is."""
    if not is_secret(key.partition(":")[2]):
        return True
    log.once(
        f"secret {key}",
        f"the policy asks for {key}, which is not read: by its name the value is a secret. Conditions on it never hold."
        "\nName another header in the policy, or an attribute that the service sets.",
    )
    return False


def _header(request: Request, key: str) -> str | None:
    name = key.removeprefix(HEADER).lower()
    found: Any = request.header(name)
    if found is None:
        own = _set_on(request)
        found = next((own[prefix + name] for prefix in RECORDED_HEADERS if prefix + name in own), None)
    return ", ".join(map(str, found)) if isinstance(found, list | tuple) else found


def _baggage(request: Request, name: str) -> Any:
    if request.recorder is not None and request.adopted is None:
        return here.baggage_in(request.parent_context).get(name)
    return request.baggage.get(name)


def _set_on(request: Request) -> Mapping[str, Any]:
    """Return what was set on the entry span, ours or that of others."""
    return request.attributes if request.adopted is None else request.adopted.attributes or {}


def _of_service(request: Request) -> Iterator[Mapping[str, Any]]:
    """Yield where the name of the service is: a policy for one service asks it of each request."""
    yield _set_on(request)
    owner = request.recorder if request.adopted is None else request.adopted
    if owner is not None:
        yield owner.resource.attributes


def _attributes(request: Request) -> Iterator[Mapping[str, Any]]:
    """Yield the attributes of the entry span, what its code has set first, then of its model, and of the resource."""
    set_on, *of_resource = _of_service(request)
    is_ours = request.adopted is None and request.recorder is not None
    yield set_on
    if is_ours:
        blocks, client, rest = request.entry_attributes()
        yield from (one.attributes for one in (*blocks, client))
        yield rest
        yield request.added or {}
    if request.bound:
        yield request.close(request.started, request.end).model
    if not is_ours:
        yield request.transfer_attributes(request.started)
    yield from of_resource


if TYPE_CHECKING:
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
            found[SLA_VERDICTS] = entry_span.write(texts)
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
            since, until = request.started + missed.start_ns, request.started + missed.end_ns
            visits = [(stage, max(begin, since), min(end, until)) for stage, begin, end in visits]
            visits = [(stage, begin, end) for stage, begin, end in visits if begin < end]
            totals = {}
            for stage, begin, end in visits:
                totals[stage] = totals.get(stage, 0) + end - begin
        called = Called(visits, request.calls, request.reports)
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
    facts = _NO_FACTS
    if request.stream or request.generation or request.disconnect:
        facts = _facts(request)
    asked = request, facts, values, segments, counter
    if len(chain) == 1:
        return _decided(chain[0], asked)
    each = tuple([_decided(one, asked) for one in chain])
    return _shown(each)._replace(each=each)


def _shown(each: Sequence[Decided]) -> Decided:
    """Return the verdict that the entry span shows."""
    breach = next((one for one in each if one.word == BREACH), None)
    return breach or next((one for one in each if one.word != EXCLUDED), each[0])


def _facts(request: Request) -> _Facts:
    """Return what the response can miss besides its duration, its tokens, and whether the client disconnected."""
    streamed = None if request.stream is None else streamed_in(request.stream, request.started)
    tokens = None if request.generation is None else tokens_in(request.generation, request.started)
    return streamed, tokens, request.disconnect is not None


def _decided(objective: Objective, asked: _Asked) -> Decided:
    request, (streamed, tokens, is_disconnected), _, segments, _ = asked
    brought, segment, age_s = NO_DEADLINES, None, None
    duration_ns, failed = request.end - request.started, request.failed
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
    from stagetrace.causes.bounds import deadlines

    found = deadlines(sources, values, request.deadline_ns())
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
