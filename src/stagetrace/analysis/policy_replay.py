"""What would a policy have decided on all stored requests, and what of it differs from what was recorded?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeAlias

from stagetrace import semconv
from stagetrace.analysis.attainment import Target, budget_left, exact_interval
from stagetrace.analysis.base import Source
from stagetrace.analysis.estimates import Attainment, Sample, Weighed, attainment, attainment_of_both
from stagetrace.analysis.replay import UNKNOWN, Judged, Request, recorded_as, replay, stored
from stagetrace.columns import ATTRIBUTE
from stagetrace.policy.objective import BAD, BAGGAGE, BREACH, EXCLUDED, HEADER, SERVICE_KEY, Objective
from stagetrace.policy.policy import Policy
from stagetrace.policy.verdict import GOOD

Row = dict[str, Any]
_Key: TypeAlias = "tuple[str | None, str | None, str | None, str | None]"  # what a `Change` begins with
REDUCTION: Final = "replayed"
MOST: Final = 20_000  # groups of requests with one verdict each, those with the most requests
EXAMPLES: Final = 3
BEYOND: Final = "they are in groups beyond the largest ones"
_NS: Final = 10**9
_MS: Final = 10**6
_DAY_S: Final = 86_400
_ROUNDING: Final = 1e-6
# Columns of a group that a row may lack.
_NOTHING: Final[Row] = dict.fromkeys(
    (
        *("was_verdict", "was_breached", "was_objective", "was_target", "was_segment", "verdicts", "promise"),
        *("chunk_ms", "gap_ms", "token_ms", "mean_ms", "calls", "outputs", "fallback"),
        *("deadline_source", "remaining_ms", "deadline_ms", "excluded_reason"),
    )
) | {"start_unix_nano": 0, "warm": 0}


class Change(NamedTuple):
    """Requests whose verdict differs from the recorded one; None stands for `not judged`. Examples are slow ones."""

    objective: str | None  # of the policy; None: no objective of it is about them
    recorded: str | None  # the objective that judged them
    was: str | None
    now: str | None
    requests: float
    stored: int
    trace_ids: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What one objective of the policy says of the stored requests. Counts are sums of weights."""

    objective: Objective
    target: Target
    judged: float
    breaches: float
    excluded: float
    unknown: Mapping[str, float]  # requests, by the reason why their verdict is not known
    recorded_breaches: float  # of the same requests, as recorded
    attained: Attainment | None
    missed: bool | None
    budget_left: float | None
    breaches_a_day: float
    is_estimate: bool
    is_sampling_unknown: bool
    hides: bool  # whether breaches under this objective may have been dropped, which no recorded one kept


@dataclass(frozen=True)
class Found:
    """The outcomes in the policy's order, what changed, and how many requests were replayed."""

    outcomes: tuple[Outcome, ...]
    changes: tuple[Change, ...]
    requests: float
    stored: int
    unmatched: float  # requests that no objective is about
    days: float
    left: float  # requests in groups beyond MOST


@dataclass
class _Sums:
    """What adds up of one objective."""

    good: Weighed = field(default_factory=Weighed)
    breaches: Weighed = field(default_factory=Weighed)  # those that were kept by chance
    kept: float = 0  # breaches that were recorded as such, all of which were kept
    excluded: float = 0
    unknown: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    recorded: float = 0
    most: float = 1
    is_sampled: bool = False
    is_unknown: bool = False
    allowed_ms: float = 0  # the greatest threshold under which requests were good; infinite for those without one


def ask(source: Source, policy: Policy, since_ns: int, until_ns: int | None = None) -> Found:
    """Return what the policy says of the requests of a source, all of which began from `since_ns` to `until_ns`.

    None is the end of a recording, with its last request.
    """
    bounds = _bounds(policy)
    rows = source.reduce(REDUCTION, attributes_of(policy), **bounds, most=MOST)
    sums: dict[str, _Sums] = {one.name: _Sums() for one in policy.objectives}
    changes: dict[_Key, list[Row]] = defaultdict(list)
    unmatched = 0.0
    for row in rows:
        request = request_of(policy, row, bounds["warmups"])
        verdicts = replay(policy, request)
        unmatched += 0 if verdicts else row["requests"]
        for one in verdicts:
            _add(sums[one.objective.name], one, row, request)
        for change in _changes(request, verdicts):
            changes[change].append(row)
    left = max((row["all_requests"] for row in rows), default=0) - sum(row["requests"] for row in rows)
    begin = max(since_ns, min((row["first_unix_nano"] for row in rows), default=since_ns))
    end = max((row["last_unix_nano"] for row in rows), default=begin) if until_ns is None else until_ns
    days = max(end - begin, 1) / _NS / _DAY_S
    changed = [_change(key, of) for key, of in changes.items()]
    return Found(
        tuple(_outcome(one, sums[one.name], left, days) for one in policy.objectives),
        tuple(sorted(changed, key=lambda one: (-one.requests, one.objective or "", one.recorded or ""))),
        sum(row["requests"] for row in rows) + left,
        sum(row["stored"] for row in rows),
        unmatched,
        days,
        left,
    )


def attributes_of(policy: Policy) -> list[str]:
    """Return by what else requests are grouped: the attributes that the conditions of a policy are about."""
    keys = dict.fromkeys(key for one in policy.objectives for key in one.keys)
    headers = [name for key in keys for name in recorded_as(key)]
    attributes = [key for key in keys if key != SERVICE_KEY and not key.startswith((HEADER, BAGGAGE))]
    return [f"{ATTRIBUTE}{key}" for key in attributes + headers]


def _bounds(policy: Policy) -> dict[str, list[int]]:
    """Return the bounds that times are compared with; those of tokens bound chunks where tokens are not known."""

    def of(*names: str) -> list[int]:
        found = (getattr(one, name) for one in policy.objectives for name in names)
        return sorted({bound for bound in found if bound is not None})

    return {
        "within": of("within_ns"),
        "first_chunk": of("first_chunk_ns", "first_token_ns"),
        "per_chunk": of("per_chunk_ns", "per_token_ns"),
        "first_token": of("first_token_ns"),
        "per_token": of("per_token_ns"),
        "warmups": sorted({round(one.warmup_s * _NS) for one in policy.objectives if one.warmup_s}),
    }


def request_of(policy: Policy, found: Row, warmups: Sequence[int] = ()) -> Request:
    """Return the slowest request of a group, as an entry span has it: any of the group has the same verdict.

    What the row does not have is not known of it.
    """
    row = {**_NOTHING, **found}
    is_rpc = row["method"] is None and row["route"] is not None and not row["route"].startswith("/")
    read = {
        "rpc.method" if is_rpc else "http.route": row["route"],
        "rpc.service": row["rpc_service"],
        "http.request.method": row["method"],
        "url.scheme": "ws" if row["is_websocket"] else None,
        semconv.NETWORK_DISCONNECT: "client" if row["disconnected"] else None,
        semconv.NETWORK_FIRST_BYTE_MS: row["chunk_ms"],
        semconv.NETWORK_CHUNK_GAP_MAX_MS: row["gap_ms"],
        semconv.TOKENS_FIRST_MS: row["token_ms"],
        semconv.TOKENS_GAP_MEAN_MS: row["mean_ms"],
        semconv.TOKENS_CALLS: row["calls"],
        "gen_ai.usage.output_tokens": row["outputs"],
        semconv.SLA_FALLBACK: row["fallback"],
        semconv.SLA_VERDICT: row["was_verdict"] or {True: BREACH, False: GOOD, None: None}[row["was_breached"]],
        semconv.SLA_VERDICTS: row["verdicts"],
        semconv.SLA_OBJECTIVE: row["was_objective"],
        semconv.SLA_TARGET: row["was_target"],
        semconv.SLA_SEGMENT: row["was_segment"],
        semconv.SLA_BREACH_PROMISE: row["promise"],
        semconv.SLA_DEADLINE_SOURCE: row["deadline_source"],
        semconv.SLA_DEADLINE_REMAINING_MS: row["remaining_ms"],
        semconv.SLA_THRESHOLD_MS: row["deadline_ms"],
        semconv.SLA_EXCLUDED_REASON: row["excluded_reason"],
    }
    span = SimpleNamespace(
        attributes={key: value for key, value in read.items() if value is not None},
        service=row["of_service"],
        start_unix_nano=row["start_unix_nano"],
        end_unix_nano=row["start_unix_nano"] + row["took_ns"],
        status="ERROR" if row["failed"] else "UNSET",
    )
    age_ns = (0, *warmups)[row["warm"]]
    return replace(stored(span, policy.keys, lambda key: row.get(ATTRIBUTE + key)), age_s=age_ns / _NS)


def _add(sums: _Sums, one: Judged, row: Row, request: Request) -> None:
    """Add a group of requests to what one objective says."""
    own = Weighed(row["requests"], row["spread"])
    if one.word == UNKNOWN:
        sums.unknown["; ".join(one.why)] += own.total
    elif one.word == EXCLUDED:
        sums.excluded += own.total
    elif one.word == GOOD:
        sums.good = _sum(sums.good, own)
    elif row["was_breached"]:
        sums.kept += own.total
    else:
        sums.breaches = _sum(sums.breaches, own)
    if request.recorded.of(one.objective.name) == BREACH:
        sums.recorded += own.total
    sums.most = max(sums.most, row["most"])
    sums.is_sampled = sums.is_sampled or row["sampled"]
    sums.is_unknown = sums.is_unknown or row["unknown"]
    if not row["was_breached"]:
        threshold = row["greatest_threshold_ms"]
        sums.allowed_ms = max(sums.allowed_ms, inf if threshold is None else threshold)


def _sum(one: Weighed, other: Weighed) -> Weighed:
    return Weighed(one.total + other.total, one.spread + other.spread)


def _changes(request: Request, verdicts: Iterable[Judged]) -> Iterator[_Key]:
    """Yield what `Change` has of a request: objective, recorded objective, its word, the word now."""
    recorded = request.recorded
    now = {one.objective.name: one.word for one in verdicts}
    for name, word in now.items():
        was = recorded.of(name)
        if word not in (was, UNKNOWN):
            yield name, name if name in recorded.words else recorded.objective, was, word
    if not now or len(recorded.words) > 1:
        for name, word in recorded.words.items():
            if name not in now:
                yield None, name, word, None


def _change(key: _Key, rows: Sequence[Row]) -> Change:
    slowest = sorted(rows, key=lambda row: (-row["took_ns"], row["trace_id"]))[:EXAMPLES]
    return Change(
        *key,
        sum(row["requests"] for row in rows),
        sum(row["stored"] for row in rows),
        tuple(row["trace_id"] for row in slowest),
    )


def _outcome(objective: Objective, sums: _Sums, left: float, days: float) -> Outcome:
    target = Target(objective.target, objective.window_s, calendar=objective.calendar)
    unknown = {**sums.unknown, **({BEYOND: left} if left > _ROUNDING else {})}
    hides = sums.is_sampled and sums.most > 1 and _is_stricter(objective, sums.allowed_ms)
    known = _attained(sums, sum(unknown.values()), hides=hides)
    breaches = sums.kept + sums.breaches.total
    return Outcome(
        objective,
        target,
        sums.good.total + breaches,
        breaches,
        sums.excluded,
        unknown,
        sums.recorded,
        known,
        _is_missed(sums, sum(unknown.values()), known, target),
        None if known is None else budget_left(known.value, target),
        breaches / days,
        is_estimate=known is not None and known.is_estimate,
        is_sampling_unknown=sums.is_unknown,
        hides=hides,
    )


def _is_stricter(objective: Objective, allowed_ms: float) -> bool:
    """Return whether an objective may find breaches among requests that were none by then, and are sampled."""
    bounds = (objective.first_chunk_ns, objective.per_chunk_ns, objective.first_token_ns, objective.per_token_ns)
    is_bad = objective.errors == BAD or objective.disconnect == BREACH
    return any(bounds) or is_bad or objective.deadline is not None or objective.within_ns < allowed_ms * _MS


def _attained(sums: _Sums, unknown: float, *, hides: bool) -> Attainment | None:
    """Return the attainment; the interval holds whatever the verdicts are that are not known."""
    good, breaches = sums.good.total, sums.kept + sums.breaches.total
    judged = good + breaches
    if judged == 0 or sums.is_unknown:
        return None
    if not sums.is_sampled or sums.most <= 1:
        low, _ = exact_interval(round(good), round(judged + unknown))
        _, high = exact_interval(round(good + unknown), round(judged + unknown))
        return Attainment(good / judged, low, high, is_estimate=False)
    if hides or sums.breaches.total:
        found = attainment_of_both(sums.good, sums.breaches, sums.kept, sums.most)
    else:
        sample = Sample(1, is_estimate=True, is_unknown=False)
        found = attainment(sample, good, sums.good.spread, sums.most, sums.kept)
    if found is None:
        return None
    whole = judged + unknown
    return found._replace(low=found.low * judged / whole, high=(found.high * judged + unknown) / whole)


def _is_missed(sums: _Sums, unknown: float, known: Attainment | None, target: Target) -> bool | None:
    """Return whether fewer met the objective than wanted; None where that depends on what is not known."""
    if known is None:
        return None
    low, high = known.low, known.high
    if not known.is_estimate:
        whole = sums.good.total + sums.kept + sums.breaches.total + unknown
        low, high = sums.good.total / whole, (sums.good.total + unknown) / whole
    return True if high < target.share else False if low >= target.share else None
