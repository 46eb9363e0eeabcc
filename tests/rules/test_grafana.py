"""Grafana's board of a policy; test_end_to_end.py puts its queries to Prometheus."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final

from backends import CONFIG
from rules.policies import OTHERS, PREDICT, policy
from stagetrace.policy.alert_options import BurnAlert
from stagetrace.policy.objective import Calendar
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.grafana import render

CHECKED: Final[dict[str, Any]] = json.loads((CONFIG / "grafana/stagetrace.json").read_text("utf-8"))
POLICY: Final = policy(PREDICT, OTHERS, burns=(BurnAlert(14.4, 3_600, 300), BurnAlert(6.0, 21_600, 300)))


def board(*, of: Any = POLICY, **options: Any) -> dict[str, Any]:
    """Return the board as Grafana reads it."""
    found: dict[str, Any] = json.loads(render(of, RulesOptions(**options)))
    return found


def panel(title: str, of: dict[str, Any]) -> dict[str, Any]:
    """Return the panel with a title."""
    (found,) = [one for one in of["panels"] if one["title"] == title and one["type"] != "row"]
    copied: dict[str, Any] = deepcopy(found)
    return copied


def test_panels_are_those_of_the_board_of_all_services() -> None:
    """In all but queries and units: their looks, and their links, which tests/test_grafana_board.py checks."""
    ours = board()
    common = {*titles(ours)} & {*titles(CHECKED)}
    assert len(common) == len(titles(ours)) - 1  # that of alerts
    for title in common - {"Burn rate"}:  # whose lines are those of the policy
        mine, theirs = panel(title, ours), panel(title, CHECKED)
        if title == "Durations":
            assert (theirs["options"]["yAxis"].pop("unit"), mine["options"]["yAxis"].pop("unit")) == ("ms", "s")
        for key in ("type", "datasource", "fieldConfig", "options"):
            assert mine[key] == theirs[key], title
    assert {one["name"]: one for one in variables(ours)}.items() >= {
        one["name"]: one for one in variables(CHECKED) if one["name"] not in ("service", "window")
    }.items()


def titles(of: dict[str, Any]) -> list[str]:
    return [one["title"] for one in of["panels"] if one["type"] != "row"]


def variables(of: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = of["templating"]["list"]
    return found


def test_panels_have_ids_and_places_of_their_own() -> None:
    found = board()["panels"]
    assert [one["id"] for one in found] == list(range(1, len(found) + 1))
    taken: set[tuple[int, int]] = set()
    for at in (one["gridPos"] for one in found):
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_variables_are_defined() -> None:
    """Each variable of a query or link is one of the board, or one of Grafana's own."""
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board()["panels"])))
    assert {one for one in used if not one.startswith("__")} == {one["name"] for one in variables(board())}


def test_windows_and_lines_of_burn_rates_are_those_of_the_alerts() -> None:
    """A window that two alerts share is shown once."""
    burn_rate = panel("Burn rate", board(scale=0.5))
    windows = [target["legendFormat"].partition(", ")[2] for target in burn_rate["targets"]]
    assert windows == ["2m30s", "30m", "3h"]
    assert [one["value"] for one in burn_rate["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [None, 6.0, 14.4]


def test_attainment_is_that_of_the_objectives_own_window() -> None:
    """Each of a month has the whole of it; another objective records a window of the same length for its alerts."""
    monthly = replace(OTHERS, name="others (all)", calendar=Calendar("month"))
    of_both = panel("Attainment", board(of=policy(PREDICT, monthly)))["targets"]
    own, ratio = 'job="$service", sla_objective=~"$objective"', "1 - job_objective:sla_breaches:ratio_increase"
    assert [one["expr"] for one in of_both] == [
        f'{ratio}30d{{{own}, sla_objective=~"predict"}}',
        f'{ratio}_month{{{own}, sla_objective=~"others \\\\(all\\\\)"}}',
    ]
    assert len(panel("Attainment", board())["targets"]) == 1


def test_addresses_are_those_of_the_policy() -> None:
    """Of Jaeger or of stagetrace's page; the other one is where it is by default."""

    def addresses(traces: str) -> list[str]:
        of = board(of=policy(PREDICT, traces=traces))
        return [one["query"] for one in variables(of) if one["type"] == "textbox"]

    assert addresses("https://jaeger.example.org/search") == ["http://127.0.0.1:16688", "https://jaeger.example.org"]
    assert addresses("https://traces.example.org/breaches") == ["https://traces.example.org", "http://127.0.0.1:16686"]


def test_a_service_has_a_board_of_its_own() -> None:
    """Its uid is one that Grafana takes, and its service is chosen already."""
    of = board(service="shop/churn api" * 5)
    assert re.fullmatch(r"[\w-]{1,40}", of["uid"], re.ASCII)
    assert of["uid"] != board()["uid"]
    (service,) = [one for one in variables(of) if one["name"] == "service"]
    assert service["current"]["value"] == "shop/churn api" * 5
