"""The shortest bounds of a policy by route: what is known of a request's objective while its conditions are not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.policy.objective import GRPC_TIMEOUT, HEADER, NEVER_NS
from stagetrace.system.bounded import BoundedCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy
    from stagetrace.request.request import Request

MAX_ROUTES: Final = 4_096


class Shortest(NamedTuple):
    """The shortest bounds of some objectives, in nanoseconds."""

    within: int  # of the whole request
    first: int  # of that, and of the first chunk or token
    gap: int  # of the time between two chunks; 0: none
    sources: tuple[str, ...]  # from which requests may bring deadlines along

    def for_request(self, request: Request) -> int:
        """Return after how many nanoseconds a request is late at the soonest, as far as that is known by now."""
        bound = self.within if request.stream is not None else self.first
        if not self.sources:
            return bound
        own = deadlines(self.sources, lambda key: request.header(key.removeprefix(HEADER)), request.deadline_ns()).ns
        return min(bound, *own.values()) if own else bound


class ShortestBounds:
    """Those of a policy: of all its objectives, and of those that may judge requests of a route."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._found: BoundedCache[tuple[str | None, str], Shortest | None] = BoundedCache(MAX_ROUTES)
        self.of_all = _shortest(policy.objectives)

    def of(self, method: str | None, route: str) -> Shortest | None:
        """Return those of a route; None where no objective may judge its requests."""
        key = (method, route)
        if key not in self._found:
            self._found[key] = _shortest(may_judge(self.policy.candidates(method, route)))
        return self._found.get(key)


def may_judge(candidates: Iterable[Objective]) -> list[Objective]:
    """Return the objectives that may judge a request: none stands behind one that ends the search for certain."""
    found = []
    for one in candidates:
        is_certain = not one.conditions
        if one.problem is None:
            found.append(one)
        elif is_certain:
            break
        if is_certain and not one.continues and not any(_goes_on_in_place_of(one, other) for other in found):
            break
    return found


def _goes_on_in_place_of(one: Objective, other: Objective) -> bool:
    return other.continues and (other.base or other.name) == (one.base or one.name)


def _shortest(objectives: Sequence[Objective]) -> Shortest | None:
    judging = [one for one in objectives if not one.excludes]
    if not judging:
        return None
    firsts = [one for rule in judging for one in (rule.first_chunk_ns, rule.first_token_ns) if one is not None]
    gaps = [one for rule in judging for one in (rule.per_chunk_ns, rule.per_token_ns) if one is not None]
    sources = dict.fromkeys(one for rule in judging if rule.deadline is not None for one in rule.deadline.sources)
    within = min((one.within_ns for one in judging), default=NEVER_NS)
    return Shortest(within, min([within, *firsts]), min(gaps, default=0), tuple(sources))


# --- The deadlines that a request brings along: `grpc-timeout` of gRPC, and headers in milliseconds. Pure and total.

_GRPC: Final = re.compile(r"([0-9]{1,8})([HMSmun])")  # of the protocol's specification
_UNITS_NS: Final = {"H": 3_600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}
_MS: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?")
LONGEST_NS: Final = 10**8 * 10**9  # a later deadline counts as none: some clients send the largest number for that


class Deadlines(NamedTuple):
    """Deadlines in nanoseconds by their source, and the sources whose value cannot be one."""

    ns: dict[str, int]
    unusable: tuple[str, ...]


def deadline_ns(source: str, text: str) -> int | None:
    """Return the deadline in a header's value; None for what is no positive time, or one of more than three years."""
    text = text.strip(" \t")
    if source == GRPC_TIMEOUT:
        found = _GRPC.fullmatch(text)
        ns = int(found[1]) * _UNITS_NS[found[2]] if found is not None else 0
    else:
        found = _MS.fullmatch(text)
        ns = int(found[1]) * 10**6 + int((found[2] or "").ljust(6, "0")[:6]) if found is not None else 0
    return ns if 0 < ns <= LONGEST_NS else None


def deadlines(sources: Iterable[str], value: Callable[[str], str | None], rpc_ns: int | None) -> Deadlines:
    """Return the deadlines of a request; `value` returns its headers, `rpc_ns` is what gRPC itself knows of an RPC."""
    found, unusable = {}, []
    for source in sources:
        if source == GRPC_TIMEOUT and rpc_ns is not None:
            found[source] = rpc_ns
            continue
        text = value(HEADER + source)
        if text is None:
            continue
        ns = deadline_ns(source, text)
        if ns is None:
            unusable.append(source)
        else:
            found[source] = ns
    return Deadlines(found, tuple(unusable))
