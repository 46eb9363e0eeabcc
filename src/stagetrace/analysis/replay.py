"""What would a policy have decided on a stored request? By `policy.verdict.decide`, as the process itself does.

Of a stored request less is known than of one in its process: no headers, no baggage, not how long the process had run.
What depends on that is tried both ways: where the verdict is the same it is known, else `UNKNOWN` with the reasons.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, prod
from typing import Any, Final, NamedTuple, TypedDict

from stagetrace import semconv
from stagetrace.causes.cause import DISCONNECT
from stagetrace.columns import names_of
from stagetrace.policy import entry_span
from stagetrace.policy.entry_span import request_of
from stagetrace.policy.objective import (
    BAGGAGE,
    EXCLUDED,
    GRPC_TIMEOUT,
    HEADER,
    MOST_CHARACTERS,
    NEVER_NS,
    NO_SEGMENT,
    OF_FIRST_TOKEN,
    OTHER_SEGMENT,
    RECORDED_HEADERS,
    SERVICE_KEY,
    Objective,
)
from stagetrace.policy.policy import Policy
from stagetrace.policy.verdict import (
    FIRST_CHUNK,
    FIRST_TOKEN,
    PER_CHUNK,
    PER_TOKEN,
    WITHIN,
    Missed,
    Streamed,
    Tokens,
    decide,
    why_excluded,
)
from stagetrace.semconv import number, text
from stagetrace.text import is_secret

UNKNOWN: Final = "unknown"
TOKENS: Final = "how many tokens followed the first ones is not stored"
DEADLINE: Final = "the header `{}` is not stored"
AGE: Final = "how long the process had run is not stored"
_SERVER_ERROR: Final = 500
_MOST_WAYS: Final = 256  # to try what is not known of one request
_SHORTEST: Final = 1  # ns
_NOISE: Final = 1e-4  # ns, by which a time in ms differs from the whole number of nanoseconds that it was


@dataclass(frozen=True)
class Recorded:
    """The verdict that a stored request carries; `words` are those by the names of all objectives that judged it."""

    word: str | None = None
    objective: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    threshold_ns: int | None = None
    bound: str | None = None  # that the threshold is about; None: the whole request
    segment: str | None = None
    deadline: str | None = None  # where the threshold came from, if the request brought it along
    excluded: str | None = None  # why
    target: str | None = None

    def of(self, name: str) -> str | None:
        """Return the word that is comparable with that of an objective: its own, else that of the request."""
        return self.words.get(name, self.word)


@dataclass(frozen=True)
class Request:
    """What is stored of a request, as far as a verdict depends on it. Times in nanoseconds.

    `values`: by keys of conditions, None where the request has no such value; a key that is not there is unknown.
    `deadlines`: by their source, None where the request has none; likewise. `counts_tokens`: whether it is known
    that `tokens` has the number of tokens after the first ones, if the process had it. `age_s`: how long its process
    had run at least; None where nothing is known of that.
    """

    method: str | None
    route: str
    duration_ns: int
    values: Mapping[str, str | None] = field(default_factory=dict)
    streamed: Streamed | None = None
    tokens: Tokens | None = None
    counts_tokens: bool = True
    disconnected: bool = False
    failed: bool = False
    deadlines: Mapping[str, int | None] = field(default_factory=dict)
    age_s: float | None = None
    recorded: Recorded = field(default_factory=Recorded)


class Judged(NamedTuple):
    """The verdict of one objective: GOOD, BREACH, EXCLUDED, or UNKNOWN for the reasons `why`."""

    objective: Objective  # with the bounds of this request's deadlines, as far as they are known
    word: str
    missed: Missed | None = None  # of a breach; None where that is not known
    excluded: str | None = None  # why it was
    why: tuple[str, ...] = ()


class _Ended(TypedDict):
    disconnected: bool
    failed: bool
    age_s: float | None


def replay(policy: Policy, request: Request) -> tuple[Judged, ...]:
    """Return the verdicts of a policy on a stored request, in its order; empty where no objective matches."""
    chains, why = _chains(policy, request)
    found = []
    for objective in policy.candidates(request.method, request.route) if len(chains) > 1 else chains[0]:
        having = sum(objective in chain for chain in chains)
        if having == len(chains):
            found.append(judge_by(objective, request))
        elif having:
            found.append(Judged(objective, UNKNOWN, why=why))
    return tuple(found)


def _chains(policy: Policy, request: Request) -> tuple[list[tuple[Objective, ...]], tuple[str, ...]]:
    """Return the chains of objectives that may judge a request, and what is not known where there are several."""
    known = known_of(policy, request)
    candidates = policy.candidates(request.method, request.route)
    patterns: dict[str, dict[str, None]] = {}
    for condition in (one for objective in candidates for one in objective.conditions if one.key not in known):
        patterns.setdefault(condition.key, {})[condition.glob] = None
    why = tuple(map(not_stored, patterns))
    # Of each key: no value, one for each pattern, and one that fits none but `*`.
    tried = [[None, "\0", *(one.replace("*", "\0") for one in globs)] for globs in patterns.values()]
    if prod(map(len, tried)) > _MOST_WAYS:
        return [(), *((one,) for one in candidates)], why
    # The name of an override has its conditions, unless it has a name of its own, which may have meant others.
    judging = [one for one in candidates if one.name in request.recorded.words]
    held = [one for objective in judging for one in objective.conditions if f"{one.key}={one.glob}" in objective.name]
    chains: dict[tuple[Objective, ...], None] = {}
    for values in product(*tried):
        way = {**known, **dict(zip(patterns, values, strict=True))}
        if all(one.holds(way.get(one.key)) for one in held if one.key in patterns):
            chains[policy.applying(request.method, request.route, way.get)] = None
    return list(chains) or [()], why


def known_of(policy: Policy, request: Request) -> dict[str, str | None]:
    """Return what is known of a request by the keys of conditions, also by the segment that it was recorded with."""
    recorded = request.recorded
    if recorded.segment in (None, OTHER_SEGMENT):
        return {**request.values}
    of = (one for one in policy.candidates(request.method, request.route) if one.name == recorded.objective)
    return {**_by_segment(next((one.segment_by for one in of), ()), recorded.segment), **request.values}


def _by_segment(keys: Sequence[str], segment: str | None) -> dict[str, str | None]:
    """Return the values that a recorded segment has, by the keys of its objective."""
    parts = [segment or ""] if len(keys) == 1 else (segment or "").split(", ")
    if len(parts) != len(keys):
        return {}
    return {key: None if part == NO_SEGMENT else part for key, part in zip(keys, parts, strict=True)}


def not_stored(key: str) -> str:
    """Return that the value of a key is not known, and how it will be."""
    return f"`{key}` is not stored: segments by it would store it"


def judge_by(objective: Objective, request: Request) -> Judged:
    """Return the verdict of one objective that is about the request."""
    bounds = [objective.bounded_by(one) for one in _deadlines(objective, request)]
    tokens = [request.tokens]
    if objective.per_token_ns is not None and request.tokens is not None and not request.counts_tokens:
        tokens.append(request.tokens._replace(following=0))
    ages = [request.age_s]
    if objective.warmup_s > (request.age_s or 0):
        ages = [None, 0.0]
    found: dict[str, Judged] = {}
    for bounded, generated, age_s in product(bounds, tokens, ages):
        how = _Ended(disconnected=request.disconnected, failed=request.failed, age_s=age_s)
        word, missed = decide(bounded, request.duration_ns, request.streamed, generated, **how)
        excluded = (why_excluded(bounded, **how) or DISCONNECT) if word == EXCLUDED else None
        before = found.setdefault(word, Judged(bounded, word, missed, excluded))
        if before.missed is not None and missed is not None and before.missed.bound != missed.bound:
            found[word] = before._replace(missed=None)
    if len(found) == 1:
        return next(iter(found.values()))
    sources = objective.deadline.sources if len(bounds) > 1 and objective.deadline is not None else ()
    why = [DEADLINE.format(one) for one in sources if one not in request.deadlines]
    why += [reason for reason, ways in ((TOKENS, tokens), (AGE, ages)) if len(ways) > 1]
    return Judged(objective, UNKNOWN, why=tuple(why))


def _deadlines(objective: Objective, request: Request) -> list[dict[str, int]]:
    """Return the deadlines that a request may have had: first as if it had no unknown one, then the extremes."""
    if objective.deadline is None:
        return [{}]
    sources = objective.deadline.sources
    known = {one: took for one in sources if (took := request.deadlines.get(one)) is not None}
    unknown = [one for one in sources if one not in request.deadlines]
    found = [known]
    for of_first in (False, True):
        which = [one for one in unknown if (one in OF_FIRST_TOKEN) == of_first]
        found += [{**way, **dict.fromkeys(which, took)} for way in found if which for took in (_SHORTEST, NEVER_NS)]
    return found


def stored(span: Any, keys: Iterable[str], value: Callable[[str], str | None]) -> Request:
    """Return what is known of an entry span, as `store.base.SpanRow` has it.

    `keys`: those of a policy. `value` returns the text form of an attribute of the span, or else of its resource.
    """
    read: Mapping[str, Any] = span.attributes
    method, route = request_of(span.attributes)
    recorded = recorded_in(read)
    status = number(read, "http.response.status_code") or number(read, "http.status_code") or 0
    generated = _tokens(read)
    return Request(
        method,
        route,
        span.end_unix_nano - span.start_unix_nano,
        known_values(keys, span.service, value),
        _streamed(read),
        generated,
        counts_tokens=generated is None or generated.following is not None or _counts_tokens(read),
        disconnected=_named(read, semconv.NETWORK_DISCONNECT) is not None,
        failed=span.status == "ERROR" or status >= _SERVER_ERROR,
        deadlines=deadlines_of(method, number(read, semconv.SLA_DEADLINE_REMAINING_MS), recorded),
        recorded=recorded,
    )


def known_values(keys: Iterable[str], service: str, value: Callable[[str], str | None]) -> dict[str, str | None]:
    """Return what a stored request has for keys of conditions; without those of which that is not known."""
    found: dict[str, str | None] = {}
    for key in keys:
        if key == SERVICE_KEY:
            found[key] = service
        elif not key.startswith((HEADER, BAGGAGE)):
            found[key] = value(key)
        elif is_secret(key.partition(":")[2]):  # which the process does not read
            found[key] = None
        else:
            header = next((one for name in recorded_as(key) if (one := value(name)) is not None), None)
            if header is not None:
                found[key] = _of_list(header)
    return {key: None if one is None else one[:MOST_CHARACTERS] for key, one in found.items()}


def recorded_as(key: str) -> tuple[str, ...]:
    """Return the attributes in which OpenTelemetry's instrumentations record a header, if they are asked to."""
    return tuple(prefix + key.removeprefix(HEADER) for prefix in RECORDED_HEADERS) if key.startswith(HEADER) else ()


def _of_list(found: str) -> str:
    """Return the texts of a list, in the form that attributes have, as the process puts them together."""
    try:
        read = json.loads(found)
    except ValueError:
        return found
    return ", ".join(map(str, read)) if isinstance(read, list) else found


def deadlines_of(method: str | None, remaining_ms: float | None, recorded: Recorded) -> dict[str, int | None]:
    """Return the deadlines that are known of a request: that of an RPC, and one that its threshold was."""
    found: dict[str, int | None] = {GRPC_TIMEOUT: None}
    if method is None and remaining_ms is not None:
        found[GRPC_TIMEOUT] = ns(remaining_ms)
    if recorded.deadline is not None and (recorded.deadline != GRPC_TIMEOUT or found[GRPC_TIMEOUT] is None):
        found[recorded.deadline] = recorded.threshold_ns
    return found


def recorded_in(read: Mapping[str, Any]) -> Recorded:
    """Return the verdict that attributes of an entry span carry."""
    word, objective = text(read, semconv.SLA_VERDICT), text(read, semconv.SLA_OBJECTIVE)
    several = {one.objective: one.word for one in entry_span.read(text(read, semconv.SLA_VERDICTS) or "")[0]}
    threshold = number(read, semconv.SLA_THRESHOLD_MS)
    return Recorded(
        word,
        objective,
        several or ({objective: word} if objective is not None and word is not None else {}),
        None if threshold is None else ns(threshold),
        text(read, semconv.SLA_BREACH_PROMISE),
        text(read, semconv.SLA_SEGMENT),
        text(read, semconv.SLA_DEADLINE_SOURCE),
        text(read, semconv.SLA_EXCLUDED_REASON),
        text(read, semconv.SLA_TARGET),
    )


def _streamed(read: Mapping[str, Any]) -> Streamed | None:
    """Return what is stored of a response in several chunks; when its widest gap was is not."""
    first, widest = (
        _named_number(read, one) for one in (semconv.NETWORK_FIRST_BYTE_MS, semconv.NETWORK_CHUNK_GAP_MAX_MS)
    )
    return None if first is None else Streamed(ns(first), (0, ns(widest or 0)))


def _tokens(read: Mapping[str, Any]) -> Tokens | None:
    """Return what is stored of generated tokens: of those after the first ones, the mean time of each."""
    first, mean = (number(read, one) for one in (semconv.TOKENS_FIRST_MS, semconv.TOKENS_GAP_MEAN_MS))
    if first is None and mean is None and number(read, semconv.OUTPUT_TOKENS) is None:
        return None
    first_ns = None if first is None else ns(first)
    return Tokens(first_ns) if mean is None else Tokens(first_ns, 0, 1, ns(mean, up=True))


def _counts_tokens(read: Mapping[str, Any]) -> bool:
    """Return whether no mean is stored since it was not known, and not since no token came after the first ones."""
    outputs, calls = (number(read, one) for one in (semconv.OUTPUT_TOKENS, semconv.TOKENS_CALLS))
    return PER_TOKEN in (text(read, semconv.SLA_FALLBACK) or "") or (outputs or 0) > (calls or 1)


def ns(took_ms: float, *, up: bool = False) -> int:
    """Return a stored time in nanoseconds, to the nearest one; `up`: a mean, which may lie between, rounded up."""
    nearest = round(took_ms * 1e6)
    return ceil(took_ms * 1e6) if up and abs(took_ms * 1e6 - nearest) > _NOISE else nearest


def _named(read: Mapping[str, Any], attribute: str) -> str | None:
    return next((found for name in names_of(attribute) if (found := text(read, name)) is not None), None)


def _named_number(read: Mapping[str, Any], attribute: str) -> float | None:
    return next((found for name in names_of(attribute) if (found := number(read, name)) is not None), None)


# --- Why has a request the verdict that a policy gives it? Each objective in order: whether it judges it, and why not.

JUDGES: Final = "judges"
MAY_JUDGE: Final = "may judge"  # it depends on what is not stored
NO_MATCH: Final = "does not match"
NOT_ASKED: Final = "is not asked"
OF_POLICY: Final = "the policy"
_MS: Final = 1e6


class Looked(NamedTuple):
    """A condition of an objective, what the request has, and whether that fulfils it; None: unknown."""

    key: str
    glob: str
    value: str | None
    holds: bool | None


class Bound(NamedTuple):
    """A bound of an objective: what it allows, where that comes from, and what the request took, if that is known."""

    name: str
    allowed_ms: float
    source: str  # OF_POLICY, the name of a deadline's header, or `override of NAME`
    took_ms: float | None
    is_missed: bool | None


class Step(NamedTuple):
    """What became of one objective, and why; with its verdict and bounds if it judges the request."""

    objective: Objective
    outcome: str
    why: str
    conditions: tuple[Looked, ...] = ()
    judged: Judged | None = None
    bounds: tuple[Bound, ...] = ()
    over_budget: tuple[tuple[str, float, float], ...] = ()  # stage, what it took and what it may take in ms


class Explained(NamedTuple):
    """The steps for a request in the policy's order, and the verdicts that it has by the policy."""

    steps: tuple[Step, ...]
    verdicts: tuple[Judged, ...]


def explain(policy: Policy, request: Request, stages: Mapping[str, float]) -> Explained:
    """Return what became of each objective for a request with these totals of stages, in ms."""
    verdicts = replay(policy, request)
    known = known_of(policy, request)
    by_name = {one.objective.name: one for one in verdicts}
    candidates = {one.name for one in policy.candidates(request.method, request.route)}
    steps: list[Step] = []
    of_base: dict[str, str] = {}  # which of an objective and its overrides judges
    last = ""  # the objective that judges, and after which none does
    for objective in policy.objectives:
        looked = tuple(_looked(objective, known))
        judged, base = by_name.get(objective.name), objective.base or objective.name
        if judged is not None:
            steps.append(_judging(objective, judged, looked, request, stages))
            of_base.setdefault(base, objective.name)
            last = last or ("" if objective.continues else objective.name)
        elif objective.name not in candidates:
            steps.append(Step(objective, NO_MATCH, _other_request(objective, request)))
        elif any(one.holds is False for one in looked):
            steps.append(Step(objective, NO_MATCH, _unfulfilled(looked), looked))
        elif base in of_base:
            steps.append(Step(objective, NOT_ASKED, f"{of_base[base]}, another form of it, judges the request", looked))
        else:
            steps.append(Step(objective, NOT_ASKED, f"{last} judges the request, and does not continue", looked))
    return Explained(tuple(steps), verdicts)


def _judging(
    objective: Objective, judged: Judged, looked: tuple[Looked, ...], request: Request, stages: Mapping[str, float]
) -> Step:
    bounds, over = tuple(_bounds(objective, judged, request)), tuple(_over(objective, stages))
    if judged.word == UNKNOWN:
        return Step(objective, MAY_JUDGE, "; ".join(judged.why), looked, judged, bounds)
    return Step(objective, JUDGES, judged.word, looked, judged, bounds, over)


def _looked(objective: Objective, known: Mapping[str, str | None]) -> Iterator[Looked]:
    for one in objective.conditions:
        value = known.get(one.key)
        yield Looked(*one, value, one.holds(value) if one.key in known else None)


def _other_request(objective: Objective, request: Request) -> str:
    if objective.method not in (None, request.method):
        return f"it is about {objective.method}, and the request is {request.method or 'an RPC'}"
    return f"it is about {objective.route}, and the request has {request.route or 'no route'}"


def _unfulfilled(looked: Sequence[Looked]) -> str:
    found = [one for one in looked if one.holds is False]
    return ", ".join(f"{one.key} is {'absent' if one.value is None else one.value}, not {one.glob}" for one in found)


def _bounds(objective: Objective, judged: Judged, request: Request) -> Iterator[Bound]:
    """Yield the bounds of an objective; `judged` has them as the deadlines of the request set them."""
    bounded, tokens, streamed = judged.objective, request.tokens, request.streamed
    first_token = None if tokens is None else tokens.first_ns
    per_token = tokens.following_ns / tokens.following if tokens is not None and tokens.following else None
    gap = None if streamed is None else streamed.widest[1] - streamed.widest[0]
    first = None if streamed is None else streamed.first_ns
    times: dict[str, tuple[int | None, int | None, float | None]] = {
        WITHIN: (objective.within_ns, bounded.within_ns, request.duration_ns),
        FIRST_CHUNK: (objective.first_chunk_ns, bounded.first_chunk_ns, first),
        PER_CHUNK: (objective.per_chunk_ns, bounded.per_chunk_ns, gap),
        FIRST_TOKEN: (objective.first_token_ns, bounded.first_token_ns, first_token),
        PER_TOKEN: (objective.per_token_ns, bounded.per_token_ns, per_token),
    }
    for name, (own, allowed, took) in times.items():
        if allowed is not None and allowed != NEVER_NS:
            source = OF_POLICY if objective.base is None else f"an override of {objective.base}"
            if own != allowed:
                source = _deadline(name, request, allowed)
            is_missed = None if took is None else took > allowed
            yield Bound(name, allowed / _MS, source, None if took is None else took / _MS, is_missed)


def _deadline(bound: str, request: Request, allowed: int) -> str:
    """Return the source of a deadline that set a bound."""
    found = (one for one, ns in request.deadlines.items() if ns == allowed)
    return next((one for one in found if (one in OF_FIRST_TOKEN) == (bound != WITHIN)), GRPC_TIMEOUT)


def _over(objective: Objective, stages: Mapping[str, float]) -> Iterator[tuple[str, float, float]]:
    """Yield the stages that exceeded their budget, the one with most excess first."""
    found = [(stage, stages.get(stage, 0.0), allowed / _MS) for stage, allowed in objective.stages]
    yield from sorted((one for one in found if one[1] > one[2]), key=lambda one: one[2] - one[1])
