"""Which day, week, month, quarter and year it is in a time zone, as the real promtool computes it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.promtool import Case, evaluate
from stagetrace.policy.objective import CALENDAR, Calendar
from stagetrace.rules import promql
from stagetrace.rules.base import yaml_of

if TYPE_CHECKING:
    from pathlib import Path

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe")
EPOCH_MONDAY = datetime(1969, 12, 29)  # noqa: DTZ001 -- a day of any zone


def _period(unit: str, local: datetime) -> str:
    """Return the number of the period, by Python's calendar."""
    return {
        "day": str((local - datetime(1970, 1, 1)).days),  # noqa: DTZ001
        "week": str((local - EPOCH_MONDAY).days // 7),
        "month": f"{local:%Y%m}",
        "quarter": f"{local.year}{(local.month + 2) // 3}",
        "year": str(local.year),
    }[unit]


@pytest.mark.usefixtures("promtool")
def test_periods_change_with_the_clocks_of_their_zone(tmp_path: Path) -> None:
    used = [Calendar(unit, zone) for unit in CALENDAR for zone in ZONES]
    rules = yaml_of({"groups": [{"name": "sla calendars", "rules": promql.rules(used)}]})
    midnights = [datetime(*day, tzinfo=ZoneInfo(zone)) for zone in ZONES for day in ((2027, 1, 1), (2028, 3, 27))]
    changes = [datetime(2026, 10, 25, 1), datetime(2031, 4, 5, 15), datetime(2036, 11, 2, 4, 30)]  # noqa: DTZ001
    cases = []
    for change in [*midnights, *(one.replace(tzinfo=timezone.utc) for one in changes)]:
        start = change.astimezone(timezone.utc) - timedelta(minutes=1)
        values: dict[tuple[int, str], float | None] = {}
        for at_s in (0, 60, 120):
            for one in used:
                local = (start + timedelta(seconds=at_s)).astimezone(ZoneInfo(one.timezone)).replace(tzinfo=None)
                own = f'calendar="{one.text}", {promql.PERIOD}="{_period(one.unit, local)}"'
                values[at_s, f"{promql.CURRENT}{{{own}}}"] = 1.0
        cases.append(Case(str(change), {"up": [1.0] * 3}, values, start=f"{start:%Y-%m-%dT%H:%M:%SZ}"))
    evaluate(tmp_path, rules, cases, interval_s=60)


@given(st.sampled_from(ZONES), st.datetimes(datetime(2026, 1, 2), datetime(2040, 12, 31)))  # noqa: DTZ001
def test_the_offset_of_a_zone_is_that_of_its_clocks(zone: str, moment: datetime) -> None:
    at = moment.replace(tzinfo=timezone.utc)
    known = [offset for since, offset in promql._offsets(zone) if since <= at.timestamp()]
    assert known[-1] == at.astimezone(ZoneInfo(zone)).utcoffset().total_seconds()  # type: ignore[union-attr]
