"""When a request is late of which not all is known: after the shortest bound of the objectives that may judge it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stagetrace import Policy
from stagetrace.causes.bounds import Shortest, ShortestBounds
from stagetrace.policy.objective import GRPC_TIMEOUT, NEVER_NS, Condition, Deadline, Objective
from stagetrace.request.request import Request

GOLD = (Condition("tenant.tier", "gold"),)


def objective(name: str, within: int, route: str = "*", **more: Any) -> Objective:
    return Objective(name, None, route, within, **more)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([objective("a", 9), objective("b", 5)], Shortest(9, 9, 0, ())),  # b never judges
        ([objective("a", 9, continues=True), objective("b", 5)], Shortest(5, 5, 0, ())),
        ([objective("gold", 5, conditions=GOLD), objective("b", 9)], Shortest(5, 5, 0, ())),
        ([objective("gold", 9, conditions=GOLD, base="b"), objective("b", 5)], Shortest(5, 5, 0, ())),
        (
            [objective("gold", 9, conditions=GOLD, base="b", continues=True), objective("b", 8), objective("c", 5)],
            Shortest(5, 5, 0, ()),  # behind gold, b does not judge and c does
        ),
        ([objective("a", 5, "/other"), objective("b", 9, per_chunk_ns=2, first_chunk_ns=3)], Shortest(9, 3, 2, ())),
        ([objective("no", 1, excludes=True), objective("b", 9)], None),
        ([objective("no", 1, excludes=True, conditions=GOLD), objective("b", 9)], Shortest(9, 9, 0, ())),
        ([objective("x", 1, problem="unreadable"), objective("b", 9)], None),
        ([objective("a", 5, "/other")], None),
        (
            [objective("a", NEVER_NS, deadline=Deadline((GRPC_TIMEOUT, "x-slo-ttft-ms")))],
            Shortest(NEVER_NS, NEVER_NS, 0, (GRPC_TIMEOUT, "x-slo-ttft-ms")),
        ),
    ],
)
def test_the_bounds_of_a_route_are_the_shortest_of_what_may_judge_it(
    objectives: list[Objective], expected: Shortest | None
) -> None:
    bounds = ShortestBounds(Policy(tuple(objectives)))
    assert bounds.of("GET", "/a") == bounds.of("GET", "/a") == expected


def test_a_deadline_that_the_request_has_brought_along_is_a_bound() -> None:
    bounds = ShortestBounds(Policy((objective("a", 10**9, deadline=Deadline((GRPC_TIMEOUT,))),)))
    shortest = bounds.of("GET", "/a")
    assert shortest is not None
    for text, bound in (("5m", 5 * 10**6), ("5S", 10**9), ("soon", 10**9), (None, 10**9)):
        record = Request()
        record.caller = SimpleNamespace(header=lambda _, text=text: text, deadline_ns=lambda: None)
        assert shortest.for_request(record) == bound
