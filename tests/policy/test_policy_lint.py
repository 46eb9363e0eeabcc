"""What is found in policies that can be read: by line and column, errors for what cannot be meant."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.policy.objective import Objective, glob
from stagetrace.policy.policy import Policy
from stagetrace.policy.policy_file import document
from stagetrace.policy.policy_lint import MOST_FINDINGS, covers, excludes_each_other, inline_places, lint
from stagetrace.policy.yaml_nodes import At

ALERTS = "\nalerts: {burn: [{factor: 2, long: 1h, short: 5m}]}\n"  # which can fire for all targets above 50%


def in_file(text: str, alerts: str = ALERTS) -> list[str]:
    """Return what is found in a policy file."""
    found, more = lint(*document(text + alerts, ""))
    assert more == 0
    return [one.text("f").removeprefix("f:") for one in found]


def inline(text: str) -> list[str]:
    """Return what is found in an inline policy."""
    policy = Policy.parse(text)
    return [one.text("p").removeprefix("p:") for one in lint(policy.objectives, policy.alerts, inline_places(text))[0]]


def test_a_good_policy_has_no_finding() -> None:
    assert inline("POST /predict within 50ms for 99.9% over 28d; * within 1s") == []
    assert (
        in_file("""\
objectives:
- name: tail
  match: {route: POST /predict}
  within: 250ms
  target: 99%
  stages: {preprocess: 60ms, inference: 150ms}
  first_chunk: 100ms
  segments: {by: [tenant.tier, "header:x-region"]}
  overrides:
  - {when: {tenant.tier: gold}, within: 220ms, target: 99.9%}
  continue: true
- {name: middle, match: {route: POST /predict}, within: 100ms, target: 60%}
- {match: {route: POST /pre*}, within: 1s}
- {match: {route: GET /health}, excluded: true}
""")
        == []
    )


@pytest.mark.parametrize(
    ("rules", "finding"),
    [
        ("/a within 1ms; /a within 2ms", "1:16: error: '/a within 2ms' can never judge: '/a within 1ms' in"),
        ("* within 1ms; POST /a excluded", "1:15: error: 'POST /a excluded' can never judge"),
        ("/a* within 1ms;\n /ab* within 2ms", "2:2: error: '/ab* within 2ms' can never judge"),
        ("/a* within 1ms; /ab within 2ms", "judges all of its requests but WebSockets"),
        ("/a within 1ms; /a within 1ms", "is the name of the objective in line 1, column 1, too"),
        ("/a within 1ms first_chunk 1ms", "1:1: warning: first_chunk 1 ms is never missed alone"),
        ("/a within 1ms for 100%", "1:1: warning: '/a within 1ms' has no error budget with a target of 100%"),
        ("/a within 1ms for 90%", "1:1: warning: the alert with factor 14.4 can never fire for '/a within 1ms'"),
        ("/a within 1ms for 90%", "the budget burns 10 times at most: write a factor of at most 9.9"),
        ("/a within 1ms over 1d", "1:1: warning: the alerts look back 259200 s, longer than the window"),
    ],
)  # fmt: skip
def test_what_is_found_in_an_inline_policy(rules: str, finding: str) -> None:
    assert any(finding in one for one in inline(rules)), inline(rules)


@pytest.mark.parametrize(
    "rules",
    [
        "POST /a within 1ms; /a within 2ms",
        "* within 1ms; WEBSOCKET /a within 1ms",
        "/ab* within 1ms; /a* within 1ms",
        "/a*b within 1ms; /ab* within 1ms",
        "/A within 1ms; /a within 2ms",
    ],
)
def test_what_can_still_judge_is_not_found(rules: str) -> None:
    assert inline(rules) == []


RULE = "objectives:\n- match: {route: POST /a}\n  within: 100ms\n  "


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (RULE + "stages: {inference: 90ms, queue: 20ms}", "4:3: warning: the budgets of stages are 110 ms in all"),
        (RULE + "overrides:\n  - {when: {a: b}, within: 1s}", "5:20: warning: the override is looser than"),
        (RULE + "overrides:\n  - {when: {a: b}, target: 90%}", "5:20: warning: the override is looser than"),
        (RULE + "stages: {inference: 90ms}\n  overrides:\n  - {when: {a: b}, within: 50ms}", "6:20: warning:"),
        (RULE + "overrides: [{when: {a: '*'}, within: 9ms}, {when: {a: b}, within: 8ms}]", "4:46: error: 'POST"),
        ("objectives:\n- match: {attributes: {tier: gold}}\n  within: 9ms\n  overrides: [{when: {tier: free}}]",
         "4:16: error: the override never matches: tier would have to be free and gold"),
        ("objectives:\n- match: {attributes: {tier: gold}}\n  within: 9ms\n  overrides: [{when: {tier: gold}}]",
         "2:3: error: '*[tier=gold] within 9ms' can never judge"),
        (RULE + "segments: {by: [enduser.id]}", ""),
        (RULE + "segments: {by: [user_id]}", "4:3: warning: user_id has a value for nearly each request: after 50 all"),
        (RULE + "segments: {by: [trace_id, 'header:x-request-id']}", "header:x-request-id has a value for nearly each"),
        (RULE + "segments: {by: ['header:Authorization']}", "4:3: error: header:authorization is secret"),
        (RULE + "segments: {by: [model]}", "4:3: warning: model is no attribute of requests: write ml.model.name"),
        ("objectives:\n- match: {attributes: {'baggage:session': x}}\n  within: 9ms", "baggage:session is secret"),
        ("objectives:\n- {name: a, within: 9ms, target: 99%, continue: true}\n- {name: b, within: 10ms, target: 90%}",
         "error: 'b' contradicts 'a' in line 2, column 3, of the same requests: 90% within 10 ms is less"),
        (RULE + "target: 40%", "7:4: error: the alert with factor 2 can never fire for 'POST /a within 100ms'"),
        (
            RULE + "target: 40%\n  alerts: {burn: [{factor: 1.7, long: 1h, short: 5m}]}",
            "5:3: error: the alert with factor 1.7 can never fire for 'POST /a within 100ms': with a target of 40%, ",
        ),
        (RULE + "target: 60%\n  window: 30m\n  alerts: {burn: [{factor: 2, long: 1h, short: 5m}]}", "5:3: warning"),
        (RULE + "window: 30m", "4:3: warning: the alerts look back 3600 s, longer than the window of"),
    ],
)  # fmt: skip
def test_what_is_found_in_a_file(text: str, finding: str) -> None:
    alerts = ALERTS if "target: 40%" not in text else "\n" + ALERTS.replace("alerts: {", "alerts: \n  {")
    assert any(finding in one for one in in_file(text, alerts)), in_file(text, alerts)


def test_many_segments_are_found_once() -> None:
    rules = "".join(
        f"- {{name: r{i}, match: {{route: /r{i}}}, within: 1s, segments: {{by: [a], max: 1000}}}}\n" for i in range(20)
    )
    assert [one.partition(": ")[2] for one in in_file(f"objectives:\n{rules}")] == [
        "warning: up to here there are up to 11000 segments, and a process counts 10000 combinations: reduce max"
    ]


@pytest.mark.thorough
def test_thousands_of_objectives_are_compared_up_to_a_bound_that_is_told() -> None:
    objectives = [Objective(f"r{i}", None, f"/r{i:04}*x", 10**9) for i in range(2_000)]
    found, more = lint(objectives, Policy.parse("* within 1s").alerts, [{"": At(i, 1)} for i in range(2_000)])
    assert more == 0
    assert [one.what for one in found] == [
        "only the objectives before this one are compared with each other, 1414 of 2000"
    ]
    same = [Objective("r", None, "/r", 10**9)] * 1_000
    found, more = lint(same, Policy.parse("* within 1s").alerts, [{"": At(i, 1)} for i in range(1_000)])
    assert (len(found), more) == (MOST_FINDINGS, 2 * 999 - MOST_FINDINGS)


GLOBS = st.text("ab*", max_size=6)
TEXTS = st.text("ab", max_size=7)


@given(GLOBS, GLOBS, TEXTS)
def test_a_glob_covers_another_if_it_matches_all_that_this_does(wide: str, narrow: str, text: str) -> None:
    """And it matches what a pattern with `.*` in place of each `*` does."""
    plain = re.compile(".*".join(map(re.escape, wide.split("*"))))
    assert (glob(wide).fullmatch(text) is not None) is (plain.fullmatch(text) is not None)
    matches = glob(narrow).fullmatch(text) is not None
    if matches and covers(wide, narrow):
        assert glob(wide).fullmatch(text)
    if matches and excludes_each_other(wide, narrow):
        assert not glob(wide).fullmatch(text)
    assert covers(narrow, narrow)
    assert covers("*", narrow)


def test_a_glob_with_many_parts_takes_no_time() -> None:
    """Else a client could send a header that its service compares for years."""
    assert glob("*a" * 50 + "b").fullmatch("a" * 5_000) is None
