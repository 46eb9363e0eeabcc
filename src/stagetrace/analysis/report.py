"""Were objectives met in a period? Exact counts, exclusions with their reasons, credits, incidents, and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final, NamedTuple

from stagetrace.analysis.attainment import (
    KEYS,
    REDUCTION,
    Counts,
    Target,
    Wanted,
    attained,
    counts,
    is_missed,
    named,
    unused,
    wanted,
)
from stagetrace.analysis.base import Source, by_keys
from stagetrace.analysis.estimates import Attainment
from stagetrace.policy.objective import EXCLUDED
from stagetrace.policy.policy import Policy

_NS: Final = 10**9
MOST: Final = 5_000  # objectives and routes
MOST_INCIDENTS: Final = 1_000
EXPLAINED: Final = 50  # incidents whose stages and causes are looked up
WIDTH_NS: Final = 60 * _NS  # of the buckets that incidents are made of
LEAST: Final = 2  # breaches that make a bucket bad
MOST_SHARE: Final = 0.5  # of breaches that a bucket may have and not be bad
BY_POLICY: Final = "the policy excludes the route"
BY_DISCONNECT: Final = "the client disconnected, or the request was cancelled"
BY_WARMUP: Final = "the process had just started (warm-up)"
BY_ERROR: Final = "the response was a server's error"
BY_OTHERS: Final = "the verdict is `excluded`, and no reason is recorded"
NO_OBJECTIVE: Final = "no objective matches"
NO_VERDICT: Final = "the span carries no verdict: stagetrace did not write it"
_REASONS: Final = {  # by the column that has the requests with this reason
    "by_rule": BY_POLICY,
    "by_warmup": BY_WARMUP,
    "by_error": BY_ERROR,
    "by_disconnect": BY_DISCONNECT,
}
_SUMS: Final = ("first_sum", "second_sum")


class Window(NamedTuple):
    """Time that does not count, from `since_ns` up to `until_ns`, and why."""

    since_ns: int
    until_ns: int
    reason: str


class Tier(NamedTuple):
    """The credit, in percent of a bill, where less than `below` percent met the objective."""

    below: Fraction
    credit: Fraction


@dataclass(frozen=True)
class Options:
    """Options of a report; times in ns since 1970."""

    since_ns: int
    until_ns: int
    excluded: tuple[Window, ...] = ()
    tiers: tuple[Tier, ...] = ()
    burn: float = 10.0  # a minute is bad from this burn rate on
    gap_s: float = 300.0  # bad minutes that are no further apart are one incident


class Line(NamedTuple):
    """The result of one objective of one service and route in the period; `credit` None: not known."""

    objective: str | None
    target_text: str | None
    service: str
    route: str
    target: Target
    counts: Counts
    attained: Attainment | None
    missed: bool | None
    credit: Fraction | None
    description: str = ""
    is_in_policy: bool | None = None  # None: there is no policy to compare with


class Cause(NamedTuple):
    """Breaches of one stage and cause, and the trace of the one that was over by most."""

    stage: str | None
    cause: str | None
    breaches: int
    over_ms: float
    trace_id: str


class Incident(NamedTuple):
    """A stretch of time with too many breaches of one objective; the causes with the most breaches first."""

    objective: str | None
    target_text: str | None
    service: str
    route: str
    since_unix_nano: int
    until_unix_nano: int
    judged: float
    breaches: int
    bad_minutes: int
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class Found:
    """The report: lines by service, route and objective, incidents by time, and excluded requests, by reason."""

    lines: tuple[Line, ...]
    requests: Counts  # all of the period
    excluded: Mapping[str, float]  # requests, by reason; those within windows first
    unjudged: Mapping[str, float]
    incidents: tuple[Incident, ...]
    incidents_left: int  # beyond MOST_INCIDENTS
    lines_left: int
    stored: int
    sums: tuple[int, ...]  # as the reduction `digest`
    first_unix_nano: int | None
    last_unix_nano: int | None
    unused: tuple[str, ...] = ()  # objectives of the policy without a request

    @property
    def missed(self) -> list[Line]:
        """Return those that were missed."""
        return [one for one in self.lines if one.missed]

    @property
    def undetermined(self) -> list[Line]:
        """Return those whose result is unknown."""
        return [one for one in self.lines if one.attained is None]


def flattened(windows: Sequence[Window], since_ns: int, until_ns: int) -> list[tuple[int, int, str]]:
    """Return windows as stretches within a period that do not overlap; of several, the one given first has it."""
    edges = sorted({min(max(edge, since_ns), until_ns) for one in windows for edge in one[:2]})
    made: list[tuple[int, int, str]] = []
    for begin, end in pairwise(edges):
        reason = next((one.reason for one in windows if one.since_ns <= begin < one.until_ns), None)
        if reason is None:
            continue
        if made and made[-1][1:] == (begin, reason):
            made[-1] = (made[-1][0], end, reason)
        else:
            made.append((begin, end, reason))
    return made


def ask(source: Source, options: Options, policy: Policy | None = None) -> Found:
    """Return the report of the requests that began in the period; `source` holds no others.

    Targets are those of `policy` where it has the objective, else the recorded ones.
    """
    known = named(policy)
    stretches = flattened(options.excluded, options.since_ns, options.until_ns)
    cuts = sorted({edge for begin, end, _ in stretches for edge in (begin, end)})
    reasons: dict[int, str] = {cuts.index(begin) + 1: reason for begin, _, reason in stretches}
    rows = source.reduce(REDUCTION, list(KEYS), cuts=cuts, most=MOST)
    excluded: dict[str, float] = dict.fromkeys((one.reason for one in options.excluded), 0.0)
    rest = 0.0
    recorded: dict[str, Target] = {}  # of what has judged requests, by what entry spans carry
    counting: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, of in by_keys(rows, KEYS).items():
        for row in of:
            if row["band"] in reasons:
                excluded[reasons[row["band"]]] += row["once"]
        own = [row for row in of if row["band"] not in reasons]
        counted = counts(own)
        for column, why in (*_REASONS.items(), ("by_others", _why_excluded(key[2]))):
            if number := sum(row[column] for row in own):
                excluded[why] = excluded.get(why, 0.0) + number
        rest += counted.requests - counted.judged - counted.excluded
        if counted.judged:
            meant = wanted(known, key[2], key[3])
            recorded[_whole(key[2], key[3])] = meant.target
            counting.setdefault((*key[:3], meant), []).extend(own)
    lines = [_line(key, counts(own), options) for key, own in counting.items()]
    unjudged = _unjudged(source, rest, cuts, reasons)
    incidents = _incidents(source, recorded, options, stretches)
    (digest,) = source.reduce("digest")
    return Found(
        tuple(sorted(lines, key=lambda one: (one.service, one.route, one.objective or "", one.target_text or ""))),
        counts(rows)._replace(requests=float(sum(row["once"] for row in rows))),
        excluded,
        unjudged,
        *incidents,
        max((row["groups"] for row in rows), default=0) - len(by_keys(rows, KEYS)),
        digest["requests"],
        tuple(digest[name] for name in _SUMS),
        digest["first_unix_nano"],
        digest["last_unix_nano"],
        unused(known, (row["objective"] for row in rows)),
    )


def _unjudged(source: Source, count: float, cuts: list[int], excluded: Mapping[int, str]) -> dict[str, float]:
    """Return by reason the requests that are neither judged nor excluded; `excluded` are bands that do not count."""
    rows = source.reduce("unrecorded", cuts=cuts) if count else []
    unrecorded = float(sum(row["requests"] for row in rows if row["band"] not in excluded))
    reasons = {NO_VERDICT: unrecorded, NO_OBJECTIVE: count - unrecorded}
    return {reason: number for reason, number in reasons.items() if number}


def _why_excluded(objective: str | None) -> str:
    """Return why verdicts under an objective are `excluded`, where that is not recorded: by its text."""
    words = (objective or "").lower().split()
    return BY_POLICY if words[-1:] == [EXCLUDED] else BY_DISCONNECT if "within" in words else BY_OTHERS


def _line(key: tuple[str, str, str | None, Wanted], counted: Counts, options: Options) -> Line:
    service, route, objective, (target, text, description, is_in_policy) = key
    known = attained(counted)
    return Line(
        *(objective, text, service, route, target, counted, known, is_missed(known, target)),
        credit_of(known, counted, options.tiers),
        description,
        is_in_policy,
    )


def credit_of(known: Attainment | None, counted: Counts, tiers: Sequence[Tier]) -> Fraction | None:
    """Return the credit of an attainment, of several tiers the greatest; None where an estimate leaves it open."""
    if known is None:
        return None
    if not known.is_estimate:
        good = round(counted.good)
        return _credit(Fraction(good, good + round(counted.breaches)), tiers)
    low, high = (_credit(Fraction(share), tiers) for share in (known.low, known.high))
    return low if low == high else None


def _credit(share: Fraction, tiers: Sequence[Tier]) -> Fraction:
    return max((one.credit for one in tiers if 100 * share < one.below), default=Fraction(0))


def _incidents(
    source: Source, texts: Mapping[str, Target], options: Options, stretches: Iterable[tuple[int, int, str]]
) -> tuple[tuple[Incident, ...], int]:
    """Return the incidents by time, and how many there are beside them; `texts`: objectives with their targets."""
    shares = [min(MOST_SHARE, options.burn * target.budget) for target in texts.values()]
    edges = _merged(stretches)
    rows = source.reduce(
        "incidents",
        since_ns=options.since_ns // WIDTH_NS * WIDTH_NS,  # whole minutes, so that each window has the same
        width_ns=WIDTH_NS,
        gap=round(options.gap_s * _NS) // WIDTH_NS,
        least=LEAST,
        most=MOST_INCIDENTS,
        excluded=edges,
        objectives=list(texts),
        shares=shares,
    )
    left = max((row["incidents"] for row in rows), default=0) - len(rows)
    made = [
        Incident(
            row["objective"],
            row["target"],
            row["service"],
            row["path"],
            max(row["since_unix_nano"], options.since_ns),
            min(row["until_unix_nano"], options.until_ns),
            row["judged"],
            round(row["breaches"]),
            row["bad_buckets"],
        )
        for row in rows
    ]
    worst = made[:EXPLAINED]
    found = (
        source.reduce(
            "incident_causes",
            services=[one.service for one in worst],
            paths=[one.route for one in worst],
            objectives=[_whole(one.objective, one.target_text) for one in worst],
            starts=[one.since_unix_nano for one in worst],
            ends=[one.until_unix_nano for one in worst],
            excluded=edges,
        )
        if worst
        else []
    )
    for row in sorted(
        found, key=lambda row: (-row["breaches"], -row["over_ms"], row["stage"] or "", row["cause"] or "")
    ):
        cause = Cause(row["stage"], row["cause"], row["breaches"], round(row["over_ms"], 6), row["trace_id"])
        place = row["incident"]
        made[place] = made[place]._replace(causes=(*made[place].causes, cause))
    return tuple(sorted(made, key=lambda one: (one.since_unix_nano, one.service, one.route, one.objective or ""))), left


def _merged(stretches: Iterable[tuple[int, int, str]]) -> list[int]:
    """Return the edges of stretches of time, those that touch taken together: begin, end, begin, end ..."""
    edges: list[int] = []
    for begin, end, _ in stretches:
        if edges and edges[-1] == begin:
            edges[-1] = end
        else:
            edges += [begin, end]
    return edges


def _whole(objective: str | None, target: str | None) -> str:
    """Return an objective with its target, as the reductions put them together."""
    return " for ".join(one for one in (objective, target) if one is not None)


def digest_of(*parts: Any) -> str:
    """Return the SHA-256 of values as JSON: keys sorted, no spaces; fractions as text."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
