"""docs/objectives.md, "Beside others": its conversions are those that the commands make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from cli.running import cli
from stagetrace.errors import PolicyError
from stagetrace.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE: Final = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text("utf-8")
BESIDE: Final = PAGE[PAGE.index("\n## Beside others") :]
ALERTS: Final = PAGE[PAGE.index("\n## Alerts\n") :]


def blocks(text: str, language: str) -> list[str]:
    """Return the examples of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


SLO, FOREIGN, CONVERTED = blocks(BESIDE, "yaml")
EXAMPLE: Final = blocks(ALERTS, "yaml")[0]


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs `stagetrace sla rules` in a folder with the files of the page."""
    monkeypatch.chdir(tmp_path)
    Path("sla.yaml").write_text(EXAMPLE, "utf-8")
    Path("slo.yaml").write_text(FOREIGN, "utf-8")

    def run(*arguments: str, notes: str = "") -> str:
        done = cli("sla", "rules", *arguments)
        assert (done.returncode, done.stderr) == (0, notes)
        return done.stdout

    return run


def of_kind(text: str, kind: str) -> dict[str, Any]:
    """Return the one document of a kind."""
    (found,) = [one for one in yaml.safe_load_all(text) if one["kind"] == kind]
    return dict(found)


def test_the_policy_becomes_the_shown_slo_and_comes_back(rules: Callable[..., str]) -> None:
    text = rules("--policy", "sla.yaml", "--format", "openslo")
    assert of_kind(text, "SLO") == yaml.safe_load(SLO)
    Path("back.yaml").write_text(text, "utf-8")
    back = rules("--policy", "back.yaml", "--format", "policy")
    assert Policy.read(back, "back.yaml") == Policy.read(EXAMPLE, "sla.yaml")
    Path("prometheus.yaml").write_text(text.replace("type: stagetrace", "type: Prometheus"), "utf-8")
    assert rules("--policy", "prometheus.yaml", "--format", "policy") == back


def test_an_slo_of_others_becomes_the_shown_policy_with_the_shown_note(rules: Callable[..., str]) -> None:
    (note,) = [one for one in blocks(BESIDE, "text") if one.startswith("note: ")]
    assert rules("--policy", "slo.yaml", "--format", "policy", notes=note) == CONVERTED


def test_a_service_refuses_the_file_with_the_command_that_converts_it(rules: Callable[..., str]) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.load("slo.yaml")
    command = str(caught.value).splitlines()[-1].partition("stagetrace sla ")[2]
    assert len(str(caught.value).splitlines()) <= 3
    (note,) = [one for one in blocks(BESIDE, "text") if one.startswith("note: ")]
    assert rules(*command.split()[1:], notes=note) == ""
    assert Path("sla.yaml").read_text("utf-8") == CONVERTED


def test_a_file_that_cannot_be_a_policy_is_refused_within_three_lines(rules: Callable[..., str]) -> None:
    del rules
    Path("slo.yaml").write_text(FOREIGN.replace("Occurrences", "Timeslices").replace("0.999", "1.5"), "utf-8")
    done = cli("sla", "rules", "--policy", "slo.yaml", "--format", "policy")
    assert (done.returncode, done.stdout) == (2, "")
    first, fix, more = done.stderr.splitlines()
    assert first.startswith(
        "stagetrace: cannot read the policy slo.yaml:20:20: SLO predict-latency: spec.budgetingMethod is"
    )
    assert (fix, more) == ("write Occurrences", "1 more is wrong: stagetrace sla check slo.yaml")
    checked = cli("sla", "check", "slo.yaml")
    assert (checked.returncode, checked.stdout) == (2, "")
    assert [line.split(": ")[:3] for line in checked.stderr.splitlines()] == [
        ["slo.yaml:20:20", "error", "SLO predict-latency"],
        ["slo.yaml:21:25", "error", "SLO predict-latency"],
    ]
    Path("slo.yaml").write_text(FOREIGN, "utf-8")
    checked = cli("sla", "check", "slo.yaml")
    assert checked.returncode == 0
    assert checked.stdout.startswith("predict-latency: ")
    assert "slo.yaml:21:45: warning: SLO predict-latency: spec.objectives[0].displayName" in checked.stderr
