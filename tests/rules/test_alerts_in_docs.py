"""docs/objectives.md shows what the command writes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cli.running import cli

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
