"""Which objectives of a policy judge a request: the index finds what a look at each rule finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stagetrace import Policy
from stagetrace.sla.objective import Condition, Objective

TEXTS = ("", "a", "ab", "abc", "b", "gold", "*")
GLOBS = ("*", "a", "a*", "ab*", "*b", "gold", "g*d", "", "**", "a*b*", "abc*")
KEYS = ("tier", "header:x", "baggage:y")

conditions = st.lists(st.builds(Condition, st.sampled_from(KEYS), st.sampled_from(GLOBS)), max_size=3).map(tuple)


def objectives(rules: list[tuple[tuple[Condition, ...], bool, str, int | None]]) -> tuple[Objective, ...]:
    return tuple(
        Objective(
            f"o{number}",
            None,
            route,
            1,
            conditions=held,
            continues=continues,
            base=None if base is None else f"o{base % len(rules)}",
        )
        for number, (held, continues, route, base) in enumerate(rules)
    )


def by_looking_at_each(rules: tuple[Objective, ...], route: str, values: dict[str, str | None]) -> list[str]:
    found: list[Objective] = []
    for one in rules:
        holds = one.matches("GET", route) and all(part.holds(values[part.key]) for part in one.conditions)
        if holds and (one.base or one.name) not in {other.base or other.name for other in found}:
            found.append(one)
            if not one.continues:
                break
    return [one.name for one in found]


@given(
    st.lists(
        st.tuples(conditions, st.booleans(), st.sampled_from(("*", "/a", "/b*")), st.none() | st.integers(0, 9)),
        min_size=1,
        max_size=12,
    ),
    st.lists(
        st.tuples(
            st.sampled_from(("/a", "/b", "")),
            st.fixed_dictionaries({key: st.none() | st.sampled_from(TEXTS) for key in KEYS}),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_the_objectives_that_apply_are_those_that_a_look_at_each_finds(
    rules: list[tuple[tuple[Condition, ...], bool, str, int | None]], asked: list[tuple[str, dict[str, str | None]]]
) -> None:
    policy = Policy(objectives(rules))
    for route, values in asked * 2:  # the second time they are remembered
        found = [one.name for one in policy.applying("GET", route, values.__getitem__)]
        assert found == by_looking_at_each(policy.objectives, route, values)


def test_of_a_thousand_rules_a_request_looks_at_the_few_that_its_values_name() -> None:
    service = Condition("service.name", "churn")  # which all have
    rules = [
        Objective(f"o{number}", None, "*", 1, conditions=(service, Condition("tenant", f"t{number}")))
        for number in range(1_000)
    ]
    policy = Policy((*rules, Objective("rest", None, "*", 1)))
    values = {"service.name": "churn", "tenant": "t77"}
    assert [one.name for one in policy.applying("GET", "/a", values.get)] == ["o77"]
    of_route = policy._found["GET", "/a"]
    places = [place for pair in values.items() for place in of_route.by_value.get(pair, ())]
    assert (places, of_route.others) == ([77], [1_000])
    assert [one.name for one in policy.applying("GET", "/a", {**values, "tenant": "new"}.get)] == ["rest"]
