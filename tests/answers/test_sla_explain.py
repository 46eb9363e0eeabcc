"""`stagetrace sla explain`: which objectives are about a request, which are not, and why it has its verdict."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from answers.made import NOON, Made, store
from cli.running import answered, printed, refused

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """
version: 1
objectives:
  - {name: health, match: {route: GET /health}, excluded: true}
  - name: predict
    match: {route: POST /predict}
    within: 250ms
    target: 99.9%
    stages: {preprocess: 60ms, inference: 150ms}
    overrides:
      - {when: {tenant.tier: gold}, within: 120ms, name: predict gold}
      - {when: {tenant.tier: free}, within: 500ms, name: predict free}
    continue: true
  - {name: embed, match: {route: /embed, attributes: {"header:x-plan": gold}}, within: 10ms}
  - name: everything
    match: {route: "*"}
    within: 1s
    deadline: {from: [x-request-timeout-ms]}
  - {name: last, match: {route: "*"}, within: 1s}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    deadline = {"sla.deadline.source": "x-request-timeout-ms", "sla.threshold_ms": 180.0}
    gold = {"tenant.tier": "gold", "sla.objective": "predict gold", "sla.over_budget": "inference"}
    several = {
        "sla.verdicts": "breach: predict gold (99.9% over 28d); good: everything (99% over 28d)",
        **gold,
        **deadline,
    }
    stages = {"preprocess": 20.0, "inference": 180.0}
    made = [
        Made(1, NOON, stages, within_ms=120.0, cause="cpu_wait", attributes=several),
        Made(
            2,
            NOON,
            {"inference": 5.0},
            route="/embed",
            attributes={"sla.excluded.reason": "warmup"},
            verdict="excluded",
        ),
        Made(3, NOON, route="/other", name="GET /other"),
    ]
    return store(tmp_path_factory.mktemp("explain") / "store", made)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "sla.yaml"
    path.write_text(POLICY)
    return path


def test_each_objective_in_order_and_why_it_judges_or_does_not(folder: Path, policy: Path) -> None:
    answer = answered("sla", "explain", f"{1:032x}", "--store", folder, "--policy", policy)
    (request,) = answer["requests"]
    assert request["recorded"]["verdict"] == "breach"
    assert request["recorded"]["verdicts"] == {"predict gold": "breach", "everything": "good"}
    assert request["recorded"]["sla.over_budget"] == "inference"
    assert {"stage": "inference, 180.00 ms", "cause": "cpu_wait"}.items() <= request["recorded"]["reasons"].items()
    assert [(one["objective"], one["outcome"]) for one in request["objectives"]] == [
        ("health", "does not match"),
        ("predict gold", "judges"),
        ("predict free", "does not match"),
        ("predict", "is not asked"),
        ("embed", "does not match"),
        ("everything", "judges"),
        ("last", "is not asked"),
    ]
    health, gold, free, predict, embed, everything, last = request["objectives"]
    assert health["why"] == "it is about GET, and the request is POST"
    assert gold["base"] == "predict"
    assert gold["conditions"] == [{"key": "tenant.tier", "glob": "gold", "value": "gold", "holds": True}]
    (bound,) = gold["bounds"]
    assert bound == {
        "name": "within",
        "allowed_ms": 120.0,
        "source": "an override of predict",
        "took_ms": 200.0,
        "is_missed": True,
    }
    assert gold["over_budget"] == [{"stage": "inference", "took_ms": 180.0, "allowed_ms": 150.0}]
    assert free["why"] == "tenant.tier is gold, not free"
    assert predict["why"] == "predict gold, another form of it, judges the request"
    assert embed["why"] == "it is about /embed, and the request has /predict"
    assert (everything["bounds"][0]["allowed_ms"], everything["bounds"][0]["source"]) == (180.0, "x-request-timeout-ms")
    assert last["why"] == "everything judges the request, and does not continue"
    shown = printed("sla", "explain", f"{1:032x}", "--store", folder, "--policy", policy)
    for line in (
        "  recorded: breach by `predict gold`",
        f"  by {policy}: breach by `predict gold`; breach by `everything`, which differs from what was recorded",
        "    2. predict gold (override of predict): judges, breach: within: 200 ms, 120 ms allowed",
        "         tenant.tier is to be gold: gold",
        "         within: 200.00 ms of 120 ms that an override of predict allows, missed",
        "         stage inference: 180.00 ms, over its budget of 150 ms",
    ):
        assert line in shown.splitlines()


def test_what_is_not_stored_and_what_is_excluded(folder: Path, policy: Path) -> None:
    explained = partial(printed, "sla", "explain", "--store", folder)
    shown = explained(f"{2:032x}", "--policy", policy)
    assert "  recorded: excluded" in shown
    assert "    excluded for: warmup" in shown
    assert "embed: may judge, `header:x-plan` is not stored: segments by it would store it" in shown
    assert "header:x-plan is to be gold: not stored" in shown
    shown = explained(f"{3:032x}", "--policy", "/x within 1s")
    assert "  by the policy given: not judged: no objective is about it" in shown
    assert "Give --policy to see which objectives are about it, and why." in explained(f"{3:032x}")
    by_variable = answered("sla", "explain", f"{3:032x}", "--store", folder, STAGETRACE_SLA="* within 1ms")
    assert by_variable["requests"][0]["verdicts"][0]["verdict"] == "breach"


def test_what_it_refuses(folder: Path) -> None:
    assert "there is no trace" in refused("sla", "explain", f"{9:032x}", "--store", folder)
    assert "choose" in refused("sla", "explain", f"{1:032x}", "--breached", "--store", folder)
    assert "within" in refused("sla", "explain", f"{1:032x}", "--store", folder, "--policy", "* inside 1s")
