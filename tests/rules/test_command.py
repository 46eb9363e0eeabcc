"""`stagetrace sla rules`: where it writes, what it refuses, and that the docs show what it writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cli.running import cli
from stagetrace.rules.formats import FORMATS

POLICY = "POST /predict within 50ms for 99.9%"


def test_the_output_goes_to_stdout_or_whole_into_a_file(tmp_path: Path) -> None:
    shown = cli("sla", "rules", "--policy", POLICY)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert yaml.safe_load(shown.stdout)["groups"]
    done = cli("sla", "rules", "--policy", POLICY, "--output", str(tmp_path / "rules.yaml"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "rules.yaml").read_text("utf-8") == shown.stdout


def test_the_help_has_each_format() -> None:
    text = cli("sla", "rules", "--help").stdout
    assert all(f"  {one.name} " in text and one.summary in text for one in FORMATS.values())


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["--policy", f"{POLICY}; * within 1s for 90%"], "can never fire", "a factor of at most 9.9"),
        (["--policy", POLICY, "--scale", "0"], "--scale is 0", "write 1"),
        (["--policy", POLICY, "--scale", "nan"], "--scale is nan", "write 1"),
        (["--policy", POLICY, "--requests-metric", "a-b{"], "no name of a metric", "sla_requests_total"),
        (["--policy", POLICY, "--output", "/nowhere/rules.yaml"], "No such file or directory", "a folder that exists"),
        (["--policy", POLICY, "--format", "prometheu"], "invalid choice", "did you mean prometheus?"),
        ([], "no objectives are given", "--policy"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_remedy(arguments: list[str], what: str, remedy: str) -> None:
    done = cli("sla", "rules", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
    assert remedy in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_label_of_the_policy_is_none_that_the_rules_set(tmp_path: Path) -> None:
    (tmp_path / "sla.yaml").write_text(
        "version: 1\nobjectives: [{match: {route: '*'}, within: 1s}]\nalerts: {labels: {severity: x}}\n"
    )
    done = cli("sla", "rules", "--policy", str(tmp_path / "sla.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == (
        "stagetrace: the label 'severity' of alerts.labels is one that the rules set"
    )


# --- docs/objectives.md shows what the command writes.

PAGE = Path(__file__).parent.parent.parent / "docs" / "objectives.md"


def test_the_example_of_alerts_is_what_the_command_writes(tmp_path: Path) -> None:
    section = PAGE.read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    policy, shown = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"```console\n\$ stagetrace (.*?)\n```", section)
    (tmp_path / "sla.yaml").write_text(policy)
    written = cli(*command.replace("sla.yaml", str(tmp_path / "sla.yaml")).split()).stdout
    lines = iter(written.splitlines())
    missing = [line for line in shown.splitlines() if line not in lines]  # the rest of the lines: in the same order
    assert not missing
    names = {
        rule.get("alert", rule.get("record")) for group in yaml.safe_load(written)["groups"] for rule in group["rules"]
    }
    table = re.findall(r"^\| `(job_objective[a-z_:0-9]*|Sla[A-Za-z]*)`", section, re.MULTILINE)
    assert {name for name in table if "egment" not in name and name != "SlaBreach"} <= names
