"""Divide the time that a breach waited for another service by that service's own report: pure.

What a service does not report stays unknown, and a report of more time than its call took is shown and not used.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Call = tuple[str, int, int]  # the peer, begin and end in nanoseconds
    Report = Mapping[str, Any]

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
        to: took for _, name, to in (*PARTS, NETWORK, RESPONSE) if (took := _added(reported, name)) is not None
    }
    took_ns = sum(calls[place][2] - calls[place][1] for place in places if place in reports)
    phrases = _phrases(attributes, _added(reported, semconv.CALLEE_TOTAL_MS), took_ns / 1e6)
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


def _added(reported: Sequence[Report], name: str) -> float | None:
    """Return the sum of an attribute over reports; None unless each of them has it."""
    known = [one[name] for one in reported if name in one]
    return float(sum(known)) if len(known) == len(reported) else None
