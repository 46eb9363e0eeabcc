"""In every sentence a name says what it is of, where a service, a route and an objective share one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from answers.made import EVER, MS, NOON, Made, store
from cli.running import answered, printed
from stagetrace.cli.registry import ANSWERS

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"segments": ["--by", "tenant.id"], "cost": ["--price", "per_hour=1"], "slo": ["--until", "2026-03-01T12:10"]}
BARE = re.compile(r"(?<![\w/])rank\b")
SAID = re.compile(r"\b(?:[Ss]ervice|objective) rank\b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [
        Made(
            number,
            NOON + number * 500 * MS,
            {"preprocess": 3.0, "inference": 20.0 + number % 7 + 40 * (number > 300 and number % 3 == 0)},
            service="rank",
            route="/rank",
            name="POST /rank",
            within_ms=50,
            objective="rank",
            cause="compute",
            attributes={"tenant.id": f"tenant-{number % 3}"},
            resource={"service.version": "1.1" if number > 300 else "1.0"},
        )
        for number in range(1, 601)
    ]
    return store(tmp_path_factory.mktemp("names") / "store", made)


@pytest.mark.thorough
@pytest.mark.parametrize("verb", [*ANSWERS, "why", "stages"])
def test_the_sentence_says_what_a_name_is_of(verb: str, folder: Path) -> None:
    sentence = answered(verb, "--store", folder, *EVER, *OPTIONS.get(verb, ()), code=None)["sentence"]
    assert len(BARE.findall(sentence)) == len(SAID.findall(sentence)), sentence


def test_so_do_the_lines_of_an_alert(folder: Path, tmp_path: Path) -> None:
    policy = tmp_path / "sla.yaml"
    policy.write_text("objectives: [{name: rank, match: {route: /rank}, within: 50ms, target: 99.9%}]")
    shown = printed("slo", "--long", "--store", folder, "--until", "2026-03-01T12:10", "--policy", policy, code=1)
    alerts = [line for line in shown.splitlines() if line.startswith("Alert")]
    assert alerts
    assert all(len(BARE.findall(line)) == len(SAID.findall(line)) for line in alerts), alerts
