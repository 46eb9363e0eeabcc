"""`slo` and `report` with a policy: its targets and windows, calendars included, and where it and requests differ."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from answers.made import Made, store
from cli.running import answered, printed, refused
from stagetrace.analysis.slo import began_ns
from stagetrace.policy.objective import CALENDAR, Calendar

if TYPE_CHECKING:
    from pathlib import Path

S = 10**9
BERLIN = ZoneInfo("Europe/Berlin")
POLICY = """
version: 1
objectives:
  - name: predict
    description: what buyers wait for
    match: {route: POST /predict}
    within: 50ms
    target: 95%
    window: month@Europe/Berlin
  - {name: quarterly, match: {route: GET /never}, within: 1s, window: quarter}
  - {name: health, match: {route: GET /health}, excluded: true}
"""


def at(text: str, zone: ZoneInfo | timezone = BERLIN) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * S


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store: in October 10 of 100 requests are breaches, in November 4 of 100; one is of another objective."""
    made: list[Made] = []
    for month, late in (("2025-10", 10), ("2025-11", 4)):
        for number in range(100):
            start = at(f"{month}-01T00:00:00") + number * 3_600 * S
            target = {"sla.target": "99.9% over 7d"} if number % 2 else {}
            took = {"inference": 80.0 if number < late else 20.0}
            made.append(Made(len(made) + 1, start, took, within_ms=50.0, objective="predict", attributes=target))
    made.append(Made(len(made) + 1, at("2025-11-02T00:00:00"), route="/embed", within_ms=50.0, objective="embed"))
    return store(tmp_path_factory.mktemp("targets") / "store", made)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("targets") / "sla.yaml"
    path.write_text(POLICY)
    return path


def test_an_objective_of_the_calendar_counts_the_current_month_so_far(folder: Path, policy: Path) -> None:
    asked = partial(answered, "slo", "--store", folder, "--policy", policy)
    until = "2025-11-20T12:00:00+01:00"
    answer = asked("--until", until)
    embed, predict = sorted(answer["objectives"], key=lambda one: one["objective"])
    assert (predict["judged"], predict["breaches"], predict["target"]) == (100, 4, 0.95)
    assert predict["since_unix_nano"] == at("2025-11-01T00:00:00")
    assert predict["window_s"] == 19.5 * 86_400
    assert predict["budget_left"] == pytest.approx(1 - 0.04 / 0.05)
    assert (predict["is_in_policy"], predict["description"]) == (True, "what buyers wait for")
    assert (embed["is_in_policy"], embed["target"]) == (False, 0.99)
    assert answer["unused"] == ["quarterly"]
    october = asked("--until", "2025-11-01T00:00:00+01:00", code=1)
    (whole,) = october["objectives"]
    assert (whole["judged"], whole["breaches"], whole["missed"]) == (100, 10, True)
    assert whole["window_s"] == (31 * 24 + 1) * 3_600  # clocks were set back in it
    shown = printed("slo", "--long", "--store", folder, "--policy", policy, "--until", until)
    for line in (
        "POST /predict (objective predict) of service shop: what buyers wait for",
        "service shop: its window is the current month@Europe/Berlin, 19.5 days so far.",
        "No request under these objectives of the policy: quarterly.",
    ):
        assert line.replace("POST ", "") in shown.replace("POST ", "")
    assert "the policy has no such objective; the target is the recorded one." in shown


def test_without_a_policy_the_recorded_targets_count(folder: Path, policy: Path) -> None:
    """One line for each; and the variable is the policy where none is given, if it can be read."""
    asked = partial(answered, "slo", "--store", folder, "--until", "2025-11-20T12:00:00+01:00")
    bare = asked(code=None)
    assert len([one for one in bare["objectives"] if one["objective"] == "predict"]) == 2
    assert all("is_in_policy" not in one for one in bare["objectives"])
    assert "unused" not in bare
    assert asked(STAGETRACE_SLA=str(policy))["unused"] == ["quarterly"]
    unread = asked(code=None, STAGETRACE_SLA="* within 50")
    assert unread["objectives"] == bare["objectives"]
    assert unread["reason"].startswith("STAGETRACE_SLA is not used: ")
    assert "within 50ms" in refused("slo", "--store", folder, "--policy", "* within 50")


def test_a_report_has_the_targets_of_the_policy(folder: Path, policy: Path) -> None:
    asked = partial(answered, "report", "--store", folder, "--tz", "Europe/Berlin", "--period")
    given = ("--policy", policy)
    embed, predict = sorted(asked("2025-11", *given)["objectives"], key=lambda one: one["objective"])
    assert (predict["judged"], predict["breaches"], predict["target"], predict["missed"]) == (100, 4, 0.95, False)
    assert (embed["is_in_policy"], predict["is_in_policy"]) == (False, True)
    october = asked("2025-10", *given, code=1)
    assert (october["objectives"][0]["missed"], october["unused"]) == (True, ["quarterly"])
    bare = asked("2025-10", code=1)
    assert len(bare["objectives"]) == 2
    assert bare["digest"]["inputs"] != october["digest"]["inputs"]
    shown = printed("report", "--long", "--store", folder, "--tz", "Europe/Berlin", "--period", "2025-11", *given)
    assert "predict: what buyers wait for" in shown
    assert "The policy has no such objectives, and their targets are the recorded ones: embed." in shown
    assert "No request under these objectives of the policy: quarterly." in shown
    whole = answered("report", "--all", "--store", folder, "--since", "2025-11-01", *given, code=None)["answers"]
    assert whole["slo"]["unused"] == whole["report"]["unused"] == ["quarterly"]


@pytest.mark.parametrize(
    ("unit", "zone", "until", "began"),
    [
        ("day", "Europe/Berlin", "2025-10-26T12:00:00", "2025-10-26T00:00:00"),
        ("day", "Africa/Cairo", "2026-04-24T12:00:00", "2026-04-24T01:00:00"),  # has no midnight
        ("week", "Europe/Berlin", "2025-11-03T00:00:00", "2025-10-27T00:00:00"),
        ("week", "UTC", "2025-11-03T00:00:01", "2025-11-03T00:00:00"),
        ("month", "America/New_York", "2026-03-31T23:59:59", "2026-03-01T00:00:00"),
        ("quarter", "Asia/Kathmandu", "2026-06-30T12:00:00", "2026-04-01T00:00:00"),
        ("year", "Pacific/Auckland", "2026-01-01T00:00:01", "2026-01-01T00:00:00"),
    ],
)
def test_when_a_period_began(unit: str, zone: str, until: str, began: str) -> None:
    found = began_ns(Calendar(unit, zone), at(until, ZoneInfo(zone)))
    assert found == at(began, ZoneInfo(zone))
    assert at(until, ZoneInfo(zone)) - found <= CALENDAR[unit] * S + 3_600 * S
