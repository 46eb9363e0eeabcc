"""Times on the command line."""

from __future__ import annotations

import argparse
import time

import pytest

from stagetrace.output.units import Moment, moment, shown, utc, window, zone

HOUR = 3600 * 10**9
NOW = 1_772_366_400_000_000_000  # 2026-03-01T12:00:00Z


@pytest.mark.parametrize(
    ("text", "ns_before"),
    [
        ("250ms", 250_000_000),
        ("30s", 30_000_000_000),
        ("15m", 900_000_000_000),
        ("1.5h", 5_400_000_000_000),
        ("7d", 604_800_000_000_000),
        ("2w", 1_209_600_000_000_000),
        ("0.1s", 100_000_000),
        ("0s", 0),
    ],
)
def test_a_duration_is_that_long_ago(text: str, ns_before: int) -> None:
    assert moment(text).at(NOW) == NOW - ns_before


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01t12:00:00z", NOW),
        ("2026-03-01 12:00:00Z", NOW),
        ("2026-03-01T13:30:00+01:30", NOW),
        ("2026-03-01T07:00:00-05:00", NOW),
        ("2026-03-01T12:00:00.000000001Z", NOW + 1),
        ("2026-03-01T12:00:00.5Z", NOW + 500_000_000),
        ("2026-03-01T12:00:00.1234567899Z", NOW + 123_456_789),
        ("2026-03-01T12:00Z", NOW),
        ("2026-03-01T13:00+01:00", NOW),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_a_time_is_read_to_the_nanosecond(text: str, ns: int) -> None:
    assert moment(text) == Moment(ns, ago=False)


@pytest.mark.parametrize(
    ("text", "name", "ns"),
    [
        ("2026-03-01T12:00", "UTC", NOW),
        ("2026-03-01 12:00:00.000000001", "UTC", NOW + 1),
        ("2026-03-01", "UTC", NOW - 12 * HOUR),
        ("2026-03-01T13:00:00", "Europe/Berlin", NOW),
        ("2026-03-01", "Europe/Berlin", NOW - 13 * HOUR),
        ("2026-03-01T12:00Z", "Europe/Berlin", NOW),  # with an offset it is that time, whatever the zone
        ("15m", "Europe/Berlin", NOW - HOUR // 4),
        ("2026-07-01T14:00", "Europe/Berlin", 1_782_907_200_000_000_000),  # two hours ahead in summer
        ("2026-10-25T02:30", "Europe/Berlin", 1_792_888_200_000_000_000),  # the first of the two
        ("2026-03-01T06:30", "America/New_York", NOW - HOUR // 2),
    ],
)
def test_a_time_without_an_offset_is_one_of_the_zone(text: str, name: str, ns: int) -> None:
    assert moment(text).at(NOW, zone(name)) == ns


def test_times_are_shown_in_the_zone_with_its_name() -> None:
    berlin = zone("Europe/Berlin")
    assert shown(NOW + 999_999_999, berlin) == "2026-03-01 13:00:00.999"
    assert shown(1_782_907_200_000_000_000, berlin, 0) == "2026-07-01 14:00:00"


def test_a_window_is_said_with_both_ends() -> None:
    """Where its end is to come, it has none that matters."""
    hour, ever = 3_600 * 10**9, 2**63 - 1
    berlin = zone("Europe/Berlin")
    both = " between 2026-03-01 13:00:00 and 2026-03-01 14:00:00 Europe/Berlin"
    assert window(NOW, NOW + hour, berlin) == both
    assert window(NOW, ever) == " since 2026-03-01 12:00:00 UTC"
    assert window(0, NOW) == " before 2026-03-01 12:00:00 UTC"
    assert window(0, ever) == ""


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the machine's zone cannot be set here")
def test_local_is_the_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its rules at each time, and not with today's offset."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        here = zone("local")
        assert (here.name, shown(NOW, here, 0)) == ("CET/CEST", "2026-03-01 13:00:00")
        assert moment("2026-07-01T14:00").at(NOW, here) == 1_782_907_200_000_000_000
        assert moment("2026-03-01T13:00").at(NOW, here) == NOW
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text", ["", "Berlin", "Europe/Nowhere", "../etc/passwd", "/etc/localtime", "+02:00", "Europe"]
)
def test_a_zone_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="there is no time zone"):
        zone(text)


def test_what_lies_before_1970_is_1970() -> None:
    assert moment("9999w").at(NOW) == 0
    assert moment("1969-12-31T23:59:59Z").at(NOW) == 0


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "15", "-5m", "5 m", "m", "1y", "٣m", "1h30m", "2026-03", "2026-02-30", "2026-03-01T12"),
        *("2026-03-01T25:00", "2026-02-30T12:00:00Z", "2026-03-01T12:00:00+24:00", "2026-03-01T12:00:00-05:60"),
    ],
)
def test_anything_else_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        moment(text)


def test_shown_times_are_cut_not_rounded() -> None:
    assert utc(NOW + 999_999_999) == "2026-03-01 12:00:00.999"
    assert utc(NOW + 1_500, 6) == "2026-03-01 12:00:00.000001"
    assert utc(NOW + 999_999_999, 0) == "2026-03-01 12:00:00"
