"""`stagetrace sla suggest` over a local store and a file: what it writes is a policy that the same traffic keeps."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from answers.made import EVER, MS, NOON, Made, lines, store
from cli.running import answered, printed, refused
from stagetrace import Policy

if TYPE_CHECKING:
    from pathlib import Path

asked = partial(answered, "sla", "suggest", *EVER, "--store")


def requests(count: int = 2_000) -> list[Made]:
    random = np.random.default_rng(24)
    return [
        Made(
            number,
            NOON + number * 60_000 * MS,
            {"queue": float(random.exponential(4)), "inference": float(random.lognormal(3, 0.5))},
            within_ms=60.0,
        )
        for number in range(1, count + 1)
    ]


ALL = requests()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("suggest") / "store", ALL)


def test_the_policy_is_one_that_the_requests_keep(folder: Path, tmp_path: Path) -> None:
    """It is read back as it was written, and its threshold holds for the target of the requests, counted by hand."""
    path = tmp_path / "sla.yaml"
    found = asked(folder, "--target", "95%", "--output", path, "--json")
    assert found["complete"]
    (one,) = found["suggestions"]
    written = Policy.load(str(path))
    assert written == Policy.read(found["policy"], "the answer")
    (objective,) = written.objectives
    assert (objective.name, objective.method, objective.route) == ("POST /predict", "POST", "/predict")
    assert (objective.target, objective.within_ns) == (0.95, round(one["within_ms"] * 1e6))
    took = np.array([made.took_ms for made in ALL])
    assert float((took <= one["within_ms"]).mean()) >= 0.95
    shorter = max(step["within_ms"] for step in one["steps"] if step["within_ms"] < one["within_ms"])
    assert float((took <= shorter).mean()) < 0.965
    assert one["days"] == pytest.approx(2_000 / 1_440, rel=0.01)
    assert sum(ns for _, ns in objective.stages) <= objective.within_ns
    assert "is not overwritten" in refused("sla", "suggest", *EVER, "--store", folder, "--output", path)
    assert Policy.load(str(path)) == written


def test_a_file_of_spans_gives_the_same_answer(folder: Path, tmp_path: Path) -> None:
    """But for the last digits of sums, which are added up in another order."""

    def rounded(store: Path) -> str:
        return re.sub(r"(\.\d{9})\d+", r"\1", json.dumps(asked(store, "--json")["suggestions"]))

    assert rounded(lines(tmp_path / "spans.jsonl", ALL)) == rounded(folder)


def test_people_read_thresholds_budgets_and_the_policy(folder: Path) -> None:
    text = printed("sla", "suggest", "--long", *EVER, "--store", folder, "--within", "60ms", "--window", "7d")
    assert text.startswith("POST /predict: 95 % within 60 ms.\n")
    assert "Budgets of POST /predict: inference " in text
    assert "those of the stages add up to" in text
    inline = text[text.index("STAGETRACE_SLA='") :].split("'")[1]
    (objective,) = Policy.parse(inline).objectives
    assert (objective.within_ns, objective.target_text) == (60 * MS, "95% over 7d")
    by_month = asked(folder, "--within", "60ms", "--window", "month@Europe/Berlin", "--json")
    (objective,) = Policy.read(by_month["policy"], "the answer").objectives
    assert objective.target_text == "95% over month@Europe/Berlin"


def test_too_little_is_no_answer(tmp_path: Path) -> None:
    few = store(tmp_path / "few", ALL[:50])
    found = asked(few, "--json", code=2)
    assert found["policy"] is None
    assert "368 would be enough" in found["sentence"]
    nothing = asked(store(tmp_path / "none", []), "--json", code=2)
    assert (nothing["suggestions"], nothing["policy"]) == ([], None)


def test_odd_routes_become_objectives_that_can_be_read(tmp_path: Path) -> None:
    """What a policy's names and routes may not have becomes `_` in the one and `*` in the other."""
    routes = ["/a;b", "/a b", "/a(b)", "/ä: {x}", '/"q"', "/*", "/#x"]
    made = [
        Made(number, NOON + number * MS, {"inference": 10.0}, route=route, name=f"POST {route}")
        for number, route in enumerate((route for route in routes for _ in range(40)), 1)
    ]
    found = asked(store(tmp_path / "odd", made), "--json", "--target", "90%")
    policy = Policy.read(found["policy"], "the answer")
    for route in routes:
        assert any(one.matches("POST", route) for one in policy.objectives if one.route != "/*" or route == "/*")
    assert len({one.name for one in policy.objectives}) == len(routes)
