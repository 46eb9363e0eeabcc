"""Run the real promtool: it checks rule files, and evaluates rules over series that a test gives."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from backends import binary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INTERVAL_S = 30


@dataclass
class Case:
    """Series, with a value each interval from the start on, and what is expected at which second.

    A value is None where there is no sample, and `stale` where the series ends. `values`: the sum of an expression,
    None where it has no result. `alerts`: labels and annotations of each alert of a name that fires.
    """

    name: str
    series: Mapping[str, Sequence[float | str | None]]
    values: Mapping[tuple[int, str], float | None] = field(default_factory=dict)
    alerts: Mapping[tuple[int, str], Sequence[tuple[Mapping[str, str], Mapping[str, str]]]] = field(
        default_factory=dict
    )
    start: str | None = None

    def document(self, interval_s: int) -> dict[str, Any]:
        """Return it as promtool reads it."""
        return {
            "name": self.name,
            "interval": f"{interval_s}s",
            "input_series": [
                {"series": series, "values": " ".join("_" if one is None else str(one) for one in values)}
                for series, values in self.series.items()
            ],
            "promql_expr_test": [_wanted(*key, value) for key, value in self.values.items()],
            "alert_rule_test": [
                {
                    "eval_time": f"{at_s}s",
                    "alertname": name,
                    "exp_alerts": [
                        {"exp_labels": dict(labels), "exp_annotations": dict(annotations)}
                        for labels, annotations in alerts
                    ],
                }
                for (at_s, name), alerts in self.alerts.items()
            ],
            **({"start_timestamp": self.start} if self.start else {}),
        }


def _wanted(at_s: int, expr: str, value: float | None) -> dict[str, Any]:
    """Return a test of a value that shows it if it fails; digits beyond the tenth are those of the arithmetic."""
    samples = [] if value is None else [{"labels": "{}", "value": round(value, 10)}]
    return {"expr": f"round(sum({expr}), 1e-10)", "eval_time": f"{at_s}s", "exp_samples": samples}


def check(*files: Path) -> None:
    """Have promtool check rule files; each warning of its linter is an error."""
    _run("check", "rules", "--lint-fatal", *map(str, files))


def evaluate(folder: Path, rules: str, cases: Sequence[Case], *, interval_s: int = INTERVAL_S) -> None:
    """Evaluate rules at each interval over the series of each case, and compare."""
    (folder / "rules.yaml").write_text(rules, "utf-8")
    document = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{interval_s}s",
        "fuzzy_compare": True,
        "group_eval_order": [group["name"] for group in yaml.safe_load(rules)["groups"]],
        "tests": [case.document(interval_s) for case in cases],
    }
    (folder / "tests.yaml").write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    run_tests(folder / "tests.yaml")


def run_tests(file: Path) -> None:
    """Have promtool run the tests of a file."""
    _run("test", "rules", str(file))


def _run(*arguments: str) -> None:
    done = subprocess.run([str(binary("promtool")), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
