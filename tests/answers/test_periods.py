"""Calendar periods, against what clocks of the zone show at their edges."""

from __future__ import annotations

import random
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from stagetrace.cli.report import Period, last_month, period
from stagetrace.output.units import UTC, zone

HOUR = 3600 * 10**9
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Beirut", "America/Santiago", "Pacific/Apia")


@pytest.mark.parametrize(
    ("text", "first", "after"),
    [
        ("2026", date(2026, 1, 1), date(2027, 1, 1)),
        ("2026-Q1", date(2026, 1, 1), date(2026, 4, 1)),
        ("2026-q4", date(2026, 10, 1), date(2027, 1, 1)),
        ("2026-02", date(2026, 2, 1), date(2026, 3, 1)),
        ("2028-02", date(2028, 2, 1), date(2028, 3, 1)),
        ("2026-12", date(2026, 12, 1), date(2027, 1, 1)),
        ("2026-W01", date(2025, 12, 29), date(2026, 1, 5)),
        ("2026-W53", date(2026, 12, 28), date(2027, 1, 4)),
        ("2028-02-29", date(2028, 2, 29), date(2028, 3, 1)),
        ("2026-12-31", date(2026, 12, 31), date(2027, 1, 1)),
    ],
)
def test_what_a_period_is(text: str, first: date, after: date) -> None:
    assert period(text) == Period(text.upper(), first, after)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2026-13", "month must be in 1..12"),
        ("2025-W53", "Invalid week"),
        ("2026-02-29", "day"),
        ("2026-00", "month must be"),
        ("0000", "year"),
        ("9999", "year"),
        ("2026-Q5", "write a year"),
        ("26-10", "write a year"),
        ("last month", "write a year"),
        ("", "write a year"),
    ],
)
def test_what_is_no_period(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        period(text)


@pytest.mark.parametrize("name", ZONES)
def test_a_period_begins_with_the_first_second_of_its_first_day(name: str) -> None:
    """And ends with the first one of the day after; where clocks leave out midnight or a day, too."""
    chance, info = random.Random(3), ZoneInfo(name)
    days = [date(2011, 12, 1) + timedelta(chance.randrange(5500)) for _ in range(300)]
    days += [date(2026, 3, 1) + timedelta(n) for n in range(60)] + [date(2026, 10, 1) + timedelta(n) for n in range(40)]
    for day in days:
        if (name, day) == ("Pacific/Apia", date(2011, 12, 30)):
            continue  # there was none
        begin, end = period(f"{day}").at(zone(name))
        for at, begun in ((begin, day), (end, day + timedelta(1))):
            shown = datetime.fromtimestamp(at // 10**9, timezone.utc).astimezone(info).date()
            before = datetime.fromtimestamp(at // 10**9 - 1, timezone.utc).astimezone(info).date()
            assert before < begun <= shown, (name, day)


def test_days_in_which_clocks_change() -> None:
    lengths = {}
    for day in ("2026-03-28", "2026-03-29", "2026-10-25"):
        begin, end = period(day).at(zone("Europe/Berlin"))
        lengths[day] = (end - begin) // HOUR
    assert lengths == {"2026-03-28": 24, "2026-03-29": 23, "2026-10-25": 25}
    begin, end = period("2026-10").at(zone("Europe/Berlin"))
    assert (end - begin) // HOUR == 31 * 24 + 1


def test_months_without_gap_or_overlap() -> None:
    for name in ZONES:
        months = [period(f"2026-{month:02}").at(zone(name)) for month in range(1, 13)]
        assert [end for _, end in months[:-1]] == [begin for begin, _ in months[1:]]
        assert (months[0][0], months[-1][1]) == period("2026").at(zone(name))


def test_the_last_full_month() -> None:
    """By the clocks of the zone: while it is still October in New York, it is November in Berlin."""
    now = round(datetime(2026, 11, 1, 2, tzinfo=timezone.utc).timestamp()) * 10**9
    assert last_month(now, UTC).name == last_month(now, zone("Europe/Berlin")).name == "2026-10"
    assert last_month(now, zone("America/New_York")).name == "2026-09"
    january = round(datetime(2027, 1, 31, tzinfo=timezone.utc).timestamp()) * 10**9
    assert last_month(january, UTC) == Period("2026-12", date(2026, 12, 1), date(2027, 1, 1))


def test_nothing_is_before_1970() -> None:
    assert period("1969").at(UTC) == (0, 0)
