"""Which stage is to blame: by its budget, else by what it normally takes, else the one that took the most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.causes.baseline import ENOUGH, Baselines
from stagetrace.causes.cause import COMPUTE, IO_WAIT, Breakdown
from stagetrace.policy.objective import Objective
from stagetrace.policy.verdict import Missed, culprit_of, decide, judge, over_budget
from stagetrace.semconv import HANDLER, INFERENCE, POSTPROCESS, PREPROCESS, QUEUE, SLA_BREACH_EVIDENCE, STAGES

MS = 1_000_000
ROUTE = ("POST", "/predict")
SOME = st.dictionaries(st.sampled_from([*STAGES, HANDLER]), st.integers(0, 1_000), max_size=7)


def objective(**stages_ms: int) -> Objective:
    return Objective("o", None, "*", 100 * MS, stages=tuple((name, ms * MS) for name, ms in stages_ms.items()))


@pytest.mark.parametrize(
    ("budgets", "took", "expected", "culprit"),
    [
        ({}, {QUEUE: 30, INFERENCE: 80}, {}, INFERENCE),
        ({}, {PREPROCESS: 50, INFERENCE: 50}, {}, PREPROCESS),  # the earlier of equals
        ({}, {QUEUE: 40, INFERENCE: 80}, {QUEUE: 5, INFERENCE: 75}, QUEUE),
        ({}, {QUEUE: 40, INFERENCE: 80}, {QUEUE: 50, INFERENCE: 90}, INFERENCE),  # none takes more than normally
        ({QUEUE: 10, INFERENCE: 75}, {QUEUE: 40, INFERENCE: 80}, {}, QUEUE),
        ({QUEUE: 10, INFERENCE: 20}, {QUEUE: 40, INFERENCE: 80}, {QUEUE: 0, INFERENCE: 79}, INFERENCE),
        ({QUEUE: 50}, {QUEUE: 40, INFERENCE: 80}, {INFERENCE: 79}, QUEUE),  # within its budget: by the baseline
        ({POSTPROCESS: 1}, {QUEUE: 40, INFERENCE: 80}, {}, INFERENCE),
    ],
)
def test_the_culprit_is_found_by_budget_then_baseline_then_time(
    budgets: dict[str, int], took: dict[str, int], expected: dict[str, float], culprit: str
) -> None:
    stages = {stage: ms * MS for stage, ms in took.items()}
    assert culprit_of(objective(**budgets), stages, {stage: ms * MS for stage, ms in expected.items()}) == culprit


@given(budgets=SOME, took=SOME, expected=SOME)
def test_the_culprit_is_always_a_stage_of_the_request(
    budgets: dict[str, int], took: dict[str, int], expected: dict[str, int]
) -> None:
    """Whatever is given, the choice is total, and no stage has more excess by the rule that decided."""
    judged_by = objective(**budgets)
    stages = {stage: ms * MS for stage, ms in took.items()}
    normal = {stage: float(ms * MS) for stage, ms in expected.items()}
    found = culprit_of(judged_by, stages, normal)
    assert (found in stages) if stages else found is None
    over = {one: took[one] - budgets[one] for one in budgets.keys() & took.keys() if took[one] > budgets[one]}
    assert set(over_budget(judged_by, stages)) == set(over)
    if over and found is not None:
        assert over[found] == max(over.values())
    elif expected and found is not None and any(took[one] > expected.get(one, 0) for one in took):
        assert took[found] - expected.get(found, 0) == max(took[one] - expected.get(one, 0) for one in took)
    elif found is not None:
        assert took[found] == max(took.values())


def test_the_evidence_has_the_budget() -> None:
    judged_by = objective(queue=10, inference=75)
    found = judge(judged_by, *decide(judged_by, 120 * MS), {QUEUE: 40 * MS, INFERENCE: 80 * MS})
    evidence = found.attributes()[SLA_BREACH_EVIDENCE]
    assert evidence == "queue took 40.0 ms (budget 10 ms) of 120.0 ms, 100 ms allowed"


def test_a_part_of_a_request_is_not_compared_with_what_holds_for_whole_ones() -> None:
    """A late first chunk is blamed on the stage that took the most until then."""
    judged_by = objective(queue=1)
    missed = Missed("first_chunk", 90 * MS, 50 * MS, 0, 90 * MS)
    found = judge(judged_by, "breach", missed, {QUEUE: 10 * MS, INFERENCE: 80 * MS}, expected={INFERENCE: 80.0 * MS})
    assert found.stage == INFERENCE


def test_a_stage_over_its_budget_has_its_own_cause_and_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model computes longer than it normally does; what the budget bounds waited."""
    monkeypatch.setattr("stagetrace.causes.baseline.host_evidence", lambda _: "")  # page faults of the tests
    learned = Baselines()
    normal = Breakdown({COMPUTE: 40 * MS, IO_WAIT: 5 * MS}, stages={PREPROCESS: 5 * MS, INFERENCE: 40 * MS})
    for number in range(ENOUGH):
        learned.add(ROUTE, number, normal)
    assert learned.stages(ROUTE) == pytest.approx({PREPROCESS: 5 * MS, INFERENCE: 40 * MS})
    assert learned.stages(("GET", "/other")) == {}
    slow = Breakdown(
        {COMPUTE: 102 * MS, IO_WAIT: 18 * MS},
        stages={PREPROCESS: 20 * MS, INFERENCE: 100 * MS},
        by_stage={COMPUTE: {INFERENCE: 100.0 * MS, PREPROCESS: 2.0 * MS}, IO_WAIT: {PREPROCESS: 18.0 * MS}},
    )
    for budgets, stage, cause, parts in (
        ({}, INFERENCE, COMPUTE, "inference took 100.0 ms of 120.0 ms, 100 ms allowed: 100.0 ms computing"),
        (
            {PREPROCESS: 10},
            PREPROCESS,
            IO_WAIT,
            (
                "preprocess took 20.0 ms (budget 10 ms) of 120.0 ms, 100 ms allowed: "
                "18.0 ms blocked in a socket, a file, a sleep or a subprocess, 2.0 ms computing"
            ),
        ),
    ):
        judged_by = objective(**budgets)
        verdict = judge(judged_by, *decide(judged_by, 120 * MS), slow.stages, expected=learned.stages(ROUTE))
        found = learned.explain(ROUTE, verdict, slow)
        assert (found["sla.breach.stage"], found["sla.breach.cause"]) == (stage, cause)
        assert found["sla.breach.evidence"] == parts
