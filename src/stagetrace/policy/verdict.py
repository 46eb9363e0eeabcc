"""Judge one request: a pure function of the policy, the request's times and its stages."""

from __future__ import annotations

from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.policy.objective import BAD, BREACH, EXCLUDED
from stagetrace.semconv import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.policy.objective import Objective

if TYPE_CHECKING:
    Call = tuple[str, int, int]  # the peer, begin and end in nanoseconds
    Report = Mapping[str, Any]

# --- Divide the time that a breach waited for another service by that service's own report: pure.
#
# What a service does not report stays unknown, and a report of more time than its call took is shown and not used.

PARTS: Final = (
    ("queue", semconv.CALLEE_QUEUE_MS, semconv.SLA_BREACH_PEER_QUEUE_MS),
    ("compute", semconv.CALLEE_COMPUTE_MS, semconv.SLA_BREACH_PEER_COMPUTE_MS),
    ("other work", semconv.CALLEE_OTHER_MS, semconv.SLA_BREACH_PEER_OTHER_MS),
)
NETWORK: Final = ("network", semconv.CALLEE_NETWORK_MS, semconv.SLA_BREACH_PEER_NETWORK_MS)
RESPONSE: Final = ("response", semconv.CALLEE_RESPONSE_MS, semconv.SLA_BREACH_PEER_RESPONSE_MS)
READ: Final = (
    *(semconv.CALLEE_QUEUE_MS, semconv.CALLEE_COMPUTE_MS, semconv.CALLEE_OTHER_MS, semconv.CALLEE_TOTAL_MS),
    *(semconv.CALLEE_NETWORK_MS, semconv.CALLEE_RESPONSE_MS, semconv.CALLEE_IMPLAUSIBLE, semconv.CALLEE_LOAD),
)
MAX_TEXT: Final = 120
SHOWN: Final = 0.05  # of the calls' duration


class Callee(NamedTuple):
    """What a breach says of the service that it waited for."""

    attributes: Mapping[str, float]
    text: str  # to follow upon the peer's name in the evidence


NO_CALLEE: Final = Callee({}, "")


def report_in(attributes: Report) -> Report:
    """Return those attributes of a client span by which the callee reported of itself."""
    if semconv.CALLEE_SOURCE not in attributes and semconv.CALLEE_LOAD not in attributes:
        return {}
    return {name: attributes[name] for name in READ if name in attributes}


def callee_of(
    peer: str, visits: Iterable[tuple[int, int]], calls: Sequence[Call], reports: Mapping[int, Report]
) -> Callee:
    """Return what the calls to `peer` that lie within one of `visits` have reported; `reports` by place in `calls`."""
    visits = list(visits)
    places = [
        place
        for place, (called, begin, end) in enumerate(calls)
        if called == peer and any(since <= begin and end <= until for since, until in visits)
    ]
    which, places = _chosen(places, calls)
    reported = [reports[place] for place in places if place in reports]
    if not reported:
        return NO_CALLEE
    if len(reported) < len(places):
        which = f"{len(reported)} of {len(places)} calls"
    loads = [str(one[semconv.CALLEE_LOAD])[:MAX_TEXT] for one in reported if semconv.CALLEE_LOAD in one]
    load = f"; load {loads[-1]}" if loads else ""
    claimed = [one for one in reported if semconv.CALLEE_IMPLAUSIBLE in one]
    if claimed:
        most = max(float(one.get(name, 0.0)) for one in claimed for name in READ[:4])
        return Callee({}, f" ({which} reported up to {most:.1f} ms, which cannot be and is not used{load})")
    attributes = {
        to: took for _, name, to in (*PARTS, NETWORK, RESPONSE) if (took := _sum_reported(reported, name)) is not None
    }
    took_ns = sum(calls[place][2] - calls[place][1] for place in places if place in reports)
    phrases = _phrases(attributes, _sum_reported(reported, semconv.CALLEE_TOTAL_MS), took_ns / 1e6)
    text = f"{which} reported {', '.join(phrases)}{load}" if phrases else load.lstrip("; ")
    return Callee(attributes, f" ({text})" if text else "")


def _phrases(attributes: Mapping[str, float], total_ms: float | None, took_ms: float) -> list[str]:
    """Return the parts in words, of calls that took so long."""
    phrases = [f"{attributes[to]:.1f} ms {word}" for word, _, to in PARTS if to in attributes]
    if not phrases and total_ms is not None:
        phrases = [f"{total_ms:.1f} ms in all"]
    if NETWORK[2] in attributes:
        phrases.append(f"the network took {attributes[NETWORK[2]]:.1f} ms")
    response_ms = attributes.get(RESPONSE[2], 0.0)
    if response_ms > SHOWN * took_ms:
        phrases.append(f"the rest of the response {response_ms:.1f} ms")
    return phrases


def _chosen(places: list[int], calls: Sequence[Call]) -> tuple[str, list[int]]:
    """Return which calls are looked at, in words, and their places: of calls at once only the longest."""
    if len(places) <= 1:
        return "it", places
    ordered = sorted(places, key=lambda place: calls[place][1])
    if any(calls[later][1] < calls[earlier][2] for earlier, later in pairwise(ordered)):
        longest = max(places, key=lambda place: calls[place][2] - calls[place][1])
        return f"the longest of {len(places)} calls", [longest]
    return f"{len(places)} calls", places


def _sum_reported(reported: Sequence[Report], name: str) -> float | None:
    """Return the sum of an attribute over reports; None unless each of them has it."""
    known = [one[name] for one in reported if name in one]
    return float(sum(known)) if len(known) == len(reported) else None


GOOD: Final = "good"
MAJOR_FROM = 1.25
CRITICAL_FROM = 2.0
WITHIN: Final = "within"
FIRST_CHUNK: Final = "first_chunk"
PER_CHUNK: Final = "per_chunk"
FIRST_TOKEN: Final = "first_token"  # noqa: S105 -- no secret
PER_TOKEN: Final = "per_token"  # noqa: S105
# Causes that need no breakdown: bounds that are no time, and what is known of a breach by its calls alone.
DISCONNECT: Final = "disconnect"
ERROR: Final = "error"
DOWNSTREAM: Final = "downstream"
UNKNOWN: Final = "unknown"
# Why a request was excluded, besides DISCONNECT and ERROR.
BY_RULE: Final = "rule"
WARMUP: Final = "warmup"
_WORDS: Final = {
    FIRST_CHUNK: "first chunk after {}",
    PER_CHUNK: "gap of {} between two chunks",
    FIRST_TOKEN: "first token after {}",
    PER_TOKEN: "{} for each token after the first",
    DISCONNECT: "client disconnected before the end of the response, after {}",
    ERROR: "the response was a server's error, after {}",
}


_OF_RESPONSE: Final = (FIRST_CHUNK, PER_CHUNK, FIRST_TOKEN, PER_TOKEN)
NOTHING_EXPECTED: Final[Mapping[str, float]] = MappingProxyType({})
_NOT_JUDGED: Final = "not judged"


class Streamed(NamedTuple):
    """What a response in several chunks can miss besides its duration, in nanoseconds from the request's start."""

    first_ns: int  # when the first chunk had been sent
    widest: tuple[int, int]  # begin and end of the longest gap between two chunks


class Tokens(NamedTuple):
    """What is known of the tokens that a request's models have generated, in nanoseconds from the request's start.

    `following` tokens came after the first one of their sequence, and took `following_ns` in all; None where their
    number is not known.
    """

    first_ns: int | None  # when the first one had been generated; None where that is not known
    last_ns: int = 0
    following: int | None = None
    following_ns: int = 0


class Called(NamedTuple):
    """The stages of the time in question, and the calls to other services by their peer: each with its begin and end.

    `reports`, by place in `calls`: what the peers reported of their time.
    """

    visits: Iterable[tuple[str, int, int]] = ()
    calls: Sequence[tuple[str, int, int]] = ()
    reports: Mapping[int, Mapping[str, Any]] | None = None


NOTHING_CALLED: Final = Called()


class Missed(NamedTuple):
    """A bound of the objective that a request missed: how long it took, how long was allowed, and when that was.

    `start_ns` and `end_ns` are counted from the request's start; `end_ns` is None for the whole request.
    """

    bound: str
    took_ns: int
    threshold_ns: int
    start_ns: int = 0
    end_ns: int | None = None
    also: tuple[Missed, ...] = ()  # the other bounds of the objective that were missed

    @property
    def excess_ns(self) -> int:
        """Return by how much the time in question exceeds what was allowed of it, which may be a mean of many times."""
        if self.end_ns is None:
            return self.took_ns - self.threshold_ns
        return int((self.end_ns - self.start_ns) * (1 - self.threshold_ns / self.took_ns))

    @property
    def text(self) -> str:
        """Return all bounds that were missed, in the form that `sla.breach.missed` has."""
        return "; ".join(
            f"{one.bound}: {one.took_ns / 1e6:.15g} ms, {one.threshold_ns / 1e6:.15g} ms allowed"
            for one in (self, *self.also)
        )


class Verdict(NamedTuple):
    """Whether one request met its objective; `missed` is the bound that it missed first.

    `stage` is the culprit of a breach (`culprit_of`), and took `stage_ns` of the time in question.
    """

    objective: Objective
    word: str
    missed: Missed | None
    stage: str | None
    stage_ns: int
    peer: str | None = None  # the peer that the stage waited for most of its time, and how long
    peer_ns: int = 0
    fallback: str | None = None  # how bounds on tokens were judged, where tokens are not known: see `fallback`
    callee: Callee = NO_CALLEE  # what the peer reports of that time

    @property
    def breached(self) -> bool:
        """Return whether the objective was missed."""
        return self.word == BREACH

    @property
    def severity(self) -> str:
        """Return the class of the overrun: `minor`, `major` or `critical`."""
        ratio = self.missed.took_ns / self.missed.threshold_ns if self.missed is not None else 0
        return "minor" if ratio < MAJOR_FROM else "major" if ratio < CRITICAL_FROM else "critical"

    def attributes(self) -> dict[str, Any]:
        """Return what the entry span carries of this verdict."""
        is_default = self.objective.has_default_target
        target = {} if is_default else {semconv.SLA_TARGET: self.objective.target_text}
        if self.word == EXCLUDED:
            return {semconv.SLA_VERDICT: self.word, semconv.SLA_OBJECTIVE: self.objective.name, **target}
        threshold_ns = self.objective.within_ns if self.missed is None else self.missed.threshold_ns
        attributes: dict[str, Any] = {
            semconv.SLA_BREACHED: self.breached,
            semconv.SLA_VERDICT: self.word,
            semconv.SLA_OBJECTIVE: self.objective.name,
            **target,
            semconv.SLA_THRESHOLD_MS: threshold_ns / 1e6,
        }
        if self.fallback is not None:
            attributes[semconv.SLA_FALLBACK] = self.fallback
        if self.missed is not None:
            attributes[semconv.SLA_OVERRUN_MS] = max(self.missed.took_ns - threshold_ns, 0) / 1e6
            attributes[semconv.SLA_SEVERITY] = self.severity
            attributes[semconv.SLA_BREACH_CAUSE] = self._cause(self.missed)
            if self.missed.bound != WITHIN:
                attributes[semconv.SLA_BREACH_PROMISE] = self.missed.bound
            if self.missed.also or self.missed.bound in _OF_RESPONSE:
                attributes[semconv.SLA_BREACH_MISSED] = self.missed.text
            if self.stage is not None:
                attributes[semconv.SLA_BREACH_STAGE] = self.stage
                attributes[semconv.SLA_BREACH_EVIDENCE] = self.evidence(self.missed)
            if self.peer is not None:
                attributes[semconv.SLA_BREACH_PEER] = self.peer
                attributes.update(self.callee.attributes)
        return attributes

    def _cause(self, missed: Missed) -> str:
        if missed.bound in (DISCONNECT, ERROR):
            return missed.bound
        return UNKNOWN if self.peer is None else DOWNSTREAM

    def evidence(self, missed: Missed) -> str:
        """Return in words what the stage to blame took of the time in question."""
        took, stage = f"{missed.took_ns / 1e6:.1f} ms", f"{self.stage_ns / 1e6:.1f} ms"
        allowed = f"{missed.threshold_ns / 1e6:g} ms allowed"
        if self.fallback is not None and missed.bound in (FIRST_CHUNK, PER_CHUNK):
            allowed += f" ({self.fallback})"
        peer = "" if self.peer is None else f"{self.peer_ns / 1e6:.1f} ms waiting for {self.peer}{self.callee.text}"
        if missed.bound == WITHIN:
            budget = next(
                (f" (budget {ns / 1e6:g} ms)" for name, ns in self.objective.stages if name == self.stage), ""
            )
            stage += budget
            return f"{self.stage} took {stage} of {took}, {allowed}{peer and ': '}{peer}"
        return f"{_WORDS[missed.bound].format(took)}, {allowed}: {stage} in {self.stage}{peer and ', of which '}{peer}"


def exceeds(objective: Objective, duration_ns: int) -> bool:
    """Return whether a request missed its objective; one that takes exactly as long as allowed is good."""
    return duration_ns > objective.within_ns


def decide(
    objective: Objective,
    duration_ns: int,
    streamed: Streamed | None = None,
    tokens: Tokens | None = None,
    *,
    disconnected: bool = False,
    failed: bool = False,
    age_s: float | None = None,
) -> tuple[str, Missed | None]:
    """Return the verdict's word, and which bound of the objective a breach has missed.

    `first_token` bounds the time of the first token, `per_token` the mean time of each token after it. Where `tokens`
    does not have that, they bound what `first_chunk` and `per_chunk` do: the time of the first chunk, and the longest
    gap between two. A response in one chunk meets them then; `fallback` returns which it was.
    A request whose client disconnected before the end of the response is never good: see Objective.disconnect.
    `failed`: its response was a server's error (`Objective.errors`). `age_s`: how long the process had run as the
    request began; None where that is not known, which is after any warm-up.
    The objective is that of the request: `Objective.bounded_by` its deadlines.
    """
    if why_excluded(objective, disconnected=disconnected, failed=failed, age_s=age_s) is not None:
        return EXCLUDED, None
    missed = _find_missed(objective, duration_ns, streamed, tokens)
    if missed is not None:
        return BREACH, missed
    if failed and objective.errors == BAD:
        return BREACH, Missed(ERROR, duration_ns, objective.within_ns)
    if not disconnected:
        return GOOD, None
    if objective.disconnect == BREACH:
        return BREACH, Missed(DISCONNECT, duration_ns, objective.within_ns)
    return EXCLUDED, None


def why_excluded(
    objective: Objective, *, disconnected: bool = False, failed: bool = False, age_s: float | None = None
) -> str | None:
    """Return why a request is not judged, however long it took: by one word; None if it is."""
    if objective.excludes:
        return BY_RULE
    if age_s is not None and age_s < objective.warmup_s:
        return WARMUP
    if failed and objective.errors == EXCLUDED:
        return ERROR
    return DISCONNECT if disconnected and objective.disconnect == EXCLUDED else None


def fallback(objective: Objective, streamed: Streamed | None, tokens: Tokens | None) -> str | None:
    """Return how bounds on tokens were judged where these were not known; None where all were judged by tokens."""
    judged = []
    if objective.first_token_ns is not None and not _has_first(tokens):
        judged.append(f"{FIRST_TOKEN} {_NOT_JUDGED if streamed is None else f'as {FIRST_CHUNK}'}")
    if objective.per_token_ns is not None and not _has_following(tokens):
        judged.append(f"{PER_TOKEN} {_NOT_JUDGED if streamed is None else f'as {PER_CHUNK}'}")
    return f"{', '.join(judged)}: tokens not known" if judged else None


def _has_first(tokens: Tokens | None) -> bool:
    return tokens is not None and tokens.first_ns is not None


def _has_following(tokens: Tokens | None) -> bool:
    return tokens is not None and tokens.following is not None


def _find_missed(
    objective: Objective, duration_ns: int, streamed: Streamed | None, tokens: Tokens | None
) -> Missed | None:
    missed = [Missed(WITHIN, duration_ns, objective.within_ns)] if exceeds(objective, duration_ns) else []
    first_ns, per_ns = objective.first_chunk_ns, objective.per_chunk_ns
    if objective.first_token_ns is not None:
        if tokens is not None and tokens.first_ns is not None:
            if tokens.first_ns > objective.first_token_ns:
                missed.append(Missed(FIRST_TOKEN, tokens.first_ns, objective.first_token_ns, 0, tokens.first_ns))
        else:
            first_ns = _smaller(first_ns, objective.first_token_ns)
    if objective.per_token_ns is not None:
        if tokens is not None and tokens.following is not None:
            if tokens.following_ns > objective.per_token_ns * tokens.following:
                mean_ns = -(-tokens.following_ns // (tokens.following or 1))  # rounded up: above what is allowed
                since = tokens.first_ns or 0
                missed.append(Missed(PER_TOKEN, mean_ns, objective.per_token_ns, since, tokens.last_ns))
        else:
            per_ns = _smaller(per_ns, objective.per_token_ns)
    if streamed is not None:
        first, (since, until) = streamed
        if first_ns is not None and first > first_ns:
            missed.append(Missed(FIRST_CHUNK, first, first_ns, 0, first))
        if per_ns is not None and until - since > per_ns:
            missed.append(Missed(PER_CHUNK, until - since, per_ns, since, until))
    return missed[0]._replace(also=tuple(missed[1:])) if missed else None


def _smaller(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def judge(
    objective: Objective,
    word: str,
    missed: Missed | None,
    stages: Mapping[str, int],
    called: Called = NOTHING_CALLED,
    fallback: str | None = None,
    expected: Mapping[str, float] = NOTHING_EXPECTED,
) -> Verdict:
    """Return the verdict of `decide`, with the culprit: see `culprit_of`.

    `stages` maps a stage to its summed duration in nanoseconds, in that part of the request in which the bound was
    missed. `expected` is what the stages of the route normally take.
    """
    is_whole = missed is not None and missed.end_ns is None  # budgets and baselines are those of whole requests
    stage = (
        None if missed is None else culprit_of(objective if is_whole else None, stages, expected if is_whole else {})
    )
    if stage is None:
        return Verdict(objective, word, missed, None, 0, fallback=fallback)
    visits, calls, reports = called
    times = [(begin, end) for name, begin, end in visits if name == stage]
    peer, peer_ns = peer_of(times, calls)
    callee = callee_of(peer, times, calls, reports) if peer is not None and reports else NO_CALLEE
    return Verdict(objective, word, missed, stage, stages[stage], peer, peer_ns, fallback, callee)


def culprit_of(
    objective: Objective | None, stages: Mapping[str, int], expected: Mapping[str, float] = NOTHING_EXPECTED
) -> str | None:
    """Return the stage to blame; None where there are no stages. Of equals it is the earlier one.

    It is the one that exceeds its budget by the most. Where none does, or there are no budgets, it is the one that
    exceeds by the most what it normally takes, and where none does or that is not known, the one that took the most.
    """
    over = over_budget(objective, stages) if objective is not None else ()
    if over:
        return over[0]
    excess = {stage: took - expected.get(stage, 0) for stage, took in stages.items()} if expected else {}
    by_time: Mapping[str, float] = excess if max(excess.values(), default=0) > 0 else stages
    return max(by_time, key=lambda stage: (by_time[stage], -_order(stage)), default=None)


def over_budget(objective: Objective, stages: Mapping[str, int]) -> tuple[str, ...]:
    """Return the stages that exceed their budget, the one with the most excess first."""
    over = {stage: took - budget for stage, budget in objective.stages if (took := stages.get(stage, 0)) > budget}
    return tuple(sorted(over, key=lambda stage: (-over[stage], _order(stage))))


def peer_of(visits: Iterable[tuple[int, int]], calls: Iterable[tuple[str, int, int]]) -> tuple[str | None, int]:
    """Return the peer that calls waited for during most of `visits`, which do not overlap, and for how long.

    Calls to one peer at the same time count once. None where no peer takes half of that time.
    """
    by_peer: dict[str, list[tuple[int, int]]] = {}
    for peer, begin, end in calls:
        by_peer.setdefault(peer, []).append((begin, end))
    visits = list(visits)
    waited = {peer: overlap(visits, sorted(times)) for peer, times in by_peer.items()}
    peer = max(waited, key=lambda one: waited[one], default="")
    whole = sum(end - begin for begin, end in visits)
    return (peer, waited[peer]) if waited and 0 < whole <= 2 * waited[peer] else (None, 0)


def overlap(visits: Iterable[tuple[int, int]], times: Iterable[tuple[int, int]]) -> int:
    """Return how much of `visits` lies within any of `times`, which are sorted."""
    total = 0
    for begin, end in visits:
        at = begin
        for start, stop in times:
            if at < stop and start < end:
                total += min(stop, end) - max(start, at)
                at = min(stop, end)
    return total


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)
