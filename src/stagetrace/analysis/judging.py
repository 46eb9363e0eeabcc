"""How a policy judges stored requests that carry no verdict: spans of any sender. Pure.

What a verdict depends on beside the duration is the same for all requests of a kind. So each kind is judged twice, as
the quickest and as the slowest request that there can be, and what lies between decides the duration of each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace.analysis.base import Source
from stagetrace.analysis.policy_replay import attributes_of, request_of
from stagetrace.analysis.replay import UNKNOWN, Judged, replay
from stagetrace.policy.objective import BREACH, EXCLUDED, NEVER_NS
from stagetrace.policy.policy import Policy
from stagetrace.policy.verdict import GOOD

MOST: Final = 5000  # kinds of requests, those with the most requests
# Behind the name of an objective: what it says of requests that were judged afterwards stands apart in every count.
AFTERWARDS: Final = ", judged afterwards"
NO_OBJECTIVE: Final = "no objective is about them"
NO_DURATION: Final = "the objective does not bound the duration"
BEYOND: Final = f"they are of kinds beyond the {MOST:,} largest"


@dataclass(frozen=True)
class Judging:
    """How to judge requests without a verdict, kind by kind: the words in time and later, bound, name and target."""

    keys: tuple[str, ...]  # the attributes by which kinds differ
    kinds: tuple[str, ...]
    in_time: tuple[str, ...]
    late: tuple[str, ...]
    thresholds_ns: tuple[int, ...]
    objectives: tuple[str, ...]
    targets: tuple[str, ...]  # empty: 99 % over 28 days


class Found(NamedTuple):
    """The way to judge, and how many stored requests are judged so, carry a verdict, and are not judged, and why."""

    judging: Judging
    afterwards: int
    inline: int
    left: Counter[str]


def ask(source: Source, policy: Policy) -> Found:
    """Return how the policy judges those requests of a source that carry no verdict."""
    keys = attributes_of(policy)
    rows = source.reduce("kinds", keys, most=MOST)
    judged: list[tuple[str, str, str, int, str, str]] = []
    left: Counter[str] = Counter()
    afterwards = 0
    for row in rows:
        quick, slow = (_verdict(policy, row, took_ns) for took_ns in (0, NEVER_NS))
        why = _why_not(quick, slow)
        if why is not None or quick is None or slow is None:
            left[why or NO_OBJECTIVE] += row["stored"]
            continue
        objective = slow.objective
        target = "" if objective.has_default_target else objective.target_text
        judged.append(
            (row["kind"], quick.word, slow.word, objective.within_ns, f"{objective.name}{AFTERWARDS}", target)
        )
        afterwards += row["stored"]
    unjudged = max((row["unjudged"] for row in rows), default=0)
    if beyond := unjudged - afterwards - sum(left.values()):
        left[BEYOND] += beyond
    columns = tuple(map(tuple, zip(*judged, strict=True))) if judged else ((),) * 6
    inline = sum(row["stored"] for row in source.reduce("inline"))
    return Found(Judging(tuple(keys), *columns), afterwards, inline, left)


def _verdict(policy: Policy, row: dict[str, Any], took_ns: int) -> Judged | None:
    """Return the first verdict on a request of a kind that took so long."""
    return next(iter(replay(policy, request_of(policy, {**row, "took_ns": took_ns}))), None)


def _why_not(quick: Judged | None, slow: Judged | None) -> str | None:
    """Return why the requests of a kind are not judged, None where they are."""
    if quick is None or slow is None:
        return NO_OBJECTIVE
    if UNKNOWN in (quick.word, slow.word):
        return "; ".join(slow.why or quick.why)
    known = {(GOOD, BREACH), (EXCLUDED, EXCLUDED), (EXCLUDED, BREACH), (BREACH, BREACH)}
    return None if (quick.word, slow.word) in known else NO_DURATION
