"""The inline policy: what can be written, and what is said of what cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace import Policy, PolicyError
from stagetrace.sla.policy import Objective
from stagetrace.sla.verdict import judge

MS = 1_000_000


def test_the_example_of_the_design() -> None:
    assert Policy.parse("POST /predict within 50ms for 99.9% over 28d; * within 1s").objectives == (
        Objective("POST /predict within 50ms", "POST", "/predict", 50 * MS, 0.999, 28 * 86_400),
        Objective("* within 1s", None, "*", 1000 * MS, 0.99, 28 * 86_400),
    )


@pytest.mark.parametrize(
    ("text", "within_ns"),
    [
        ("* within 250us", 250_000),
        ("* within 1.5ms", 1_500_000),
        ("* within 2s", 2 * 10**9),
        ("* within 1m", 60 * 10**9),
    ],
)
def test_durations(text: str, within_ns: int) -> None:
    assert Policy.parse(text).objectives[0].within_ns == within_ns


@pytest.mark.parametrize(
    ("rule", "method", "route", "matches"),
    [
        ("POST /predict", "POST", "/predict", True),
        ("POST /predict", "GET", "/predict", False),
        ("post /predict", "POST", "/predict", True),
        ("/predict", "GET", "/predict", True),
        ("/predict", "GET", "/predict/batch", False),
        ("/predict*", "GET", "/predict/batch", True),
        ("/items/{item_id}", "GET", "/items/{item_id}", True),
        ("/a+b", "GET", "/aab", False),
        ("*", "GET", "", True),
        ("*", None, "pkg.Service/Method", True),
        ("pkg.Service/*", None, "pkg.Service/Method", True),
        ("/*/predict", "GET", "/v1/models/x/predict", True),
    ],
)
def test_what_a_rule_matches(rule: str, method: str | None, route: str, *, matches: bool) -> None:
    assert (Policy.parse(f"{rule} within 1s").objective(method, route) is not None) is matches


def test_the_first_rule_that_matches_judges() -> None:
    policy = Policy.parse("/fast within 1ms; /f* within 1s; * within 9s")
    assert [
        objective.within_ns // MS
        for route in ("/fast", "/fine", "/other")
        if (objective := policy.objective("GET", route))
    ] == [1, 1000, 9000]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" ; ", "it holds no rule"),
        ("POST /predict", "the word `within` is missing"),
        ("slo.yaml", "policy files are not read by this version"),
        ("POST /predict within", "nothing follows `within`"),
        ("POST /predict within 50", "'50' has no unit (us, ms, s, m)"),
        ("POST /predict within fast", "'fast' is not a number with a unit"),
        ("POST /predict within 50 ms", "'ms' is not one of within, for, over"),
        ("POST /predict within 0ms", "more than zero"),
        ("POST /predict within -5ms", "not a number with a unit"),
        ("within 5ms", "stand one route"),
        ("POST GET /predict within 5ms", "stand one route"),
        ("* within 5ms for 99", "'99' is not a percentage"),
        ("* within 5ms for 101%", "'101%' is not a percentage"),
        ("* within 5ms for 0%", "'0%' is not a percentage"),
        ("* within 5ms within 6ms", "`within` stands twice"),
        ("* within 5ms over 28", "'28' has no unit"),
        ("* within 5ms over 0d", "window must be more than zero"),
    ],
)
def test_a_broken_policy_is_told_what_is_wrong_and_how_to_write_it(text: str, problem: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text)
    lines = str(caught.value).splitlines()
    assert problem in lines[0]
    assert "[METHOD] ROUTE within DURATION [for PERCENT] [over WINDOW]" in lines[-1]
    assert len(lines) <= 3


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        Policy.parse(text)
    except PolicyError:
        return


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_the_verdict_is_the_comparison_and_nothing_else(within_us: int, duration_ns: int) -> None:
    verdict = judge(Policy.parse(f"* within {within_us}us"), "GET", "/", duration_ns, {"inference": duration_ns})
    assert verdict is not None
    assert verdict.breached is (duration_ns > within_us * 1000)
    assert (verdict.stage == "inference") is verdict.breached


@pytest.mark.parametrize(
    ("duration_ms", "severity"),
    [(100.000001, "minor"), (124.9, "minor"), (125, "major"), (199.9, "major"), (200, "critical")],
)
def test_severity_is_a_class_of_the_overrun(duration_ms: float, severity: str) -> None:
    verdict = judge(Policy.parse("* within 100ms"), None, "", round(duration_ms * MS), {})
    assert verdict is not None
    assert verdict.attributes()["sla.severity"] == severity


def test_what_a_breach_carries() -> None:
    stages = {"preprocess": 70 * MS, "inference": 40 * MS, "queue": 70 * MS}
    verdict = judge(Policy.parse("POST /predict within 50ms"), "POST", "/predict", 180 * MS, stages)
    assert verdict is not None
    assert verdict.attributes() == {
        "sla.breached": True,
        "sla.verdict": "breach",
        "sla.objective": "POST /predict within 50ms",
        "sla.threshold_ms": 50.0,
        "sla.overrun_ms": 130.0,
        "sla.severity": "critical",
        "sla.breach.cause": "unknown",
        "sla.breach.stage": "queue",  # of two equals, the one that comes first in a request
        "sla.breach.evidence": "queue took 70.0 of 180.0 ms, 50 ms were promised",
    }


def test_exactly_as_long_as_promised_is_good_and_no_match_is_no_verdict() -> None:
    policy = Policy.parse("/a within 1ms")
    verdict = judge(policy, "GET", "/a", MS, {"handler": MS})
    assert verdict is not None
    assert verdict.attributes() == {
        "sla.breached": False,
        "sla.verdict": "good",
        "sla.objective": "/a within 1ms",
        "sla.threshold_ms": 1.0,
    }
    assert judge(policy, "GET", "/b", MS, {}) is None
