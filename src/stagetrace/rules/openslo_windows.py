"""Durations and windows as OpenSLO v1 writes them: `28d`, `1M`; the shortest unit is a minute."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from stagetrace.sla.objective import Calendar

_SHORTHAND: Final = re.compile(r"([1-9]\d*)([mhdwMQY])", re.ASCII)
# A rolling month, quarter and year are as long as OpenSLO's Go SDK has them; the standard leaves it open.
_SECONDS: Final = {
    "m": 60,
    "h": 3_600,
    "d": 86_400,
    "w": 7 * 86_400,
    "M": 30 * 86_400,
    "Q": 90 * 86_400,
    "Y": 365 * 86_400,
}
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60))  # that are written
_CALENDAR: Final = {"1d": "day", "1w": "week", "1M": "month", "1Q": "quarter", "1Y": "year"}
_BEGAN: Final = "2024-01-01 00:00:00"  # a Monday: day, week, month, quarter and year begin
_QUARTERS: Final = (1, 4, 7, 10)


class Shorthand(NamedTuple):
    """A duration as OpenSLO can say it; `is_exact`: it is the one that was meant."""

    text: str
    is_exact: bool


def shorthand(seconds: float) -> Shorthand:
    """Return the nearest duration of whole minutes, one at least."""
    minutes = max(60, round(seconds / 60) * 60)
    unit, size = next((unit, size) for unit, size in _UNITS if minutes % size == 0)
    return Shorthand(f"{minutes // size}{unit}", minutes == seconds)


def seconds_of(text: str) -> int:
    """Return a duration in seconds. Raise ValueError where it is none."""
    found = _SHORTHAND.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:80]!r} is no duration of OpenSLO: write a number and one of {', '.join(_SECONDS)}")
    return int(found.group(1)) * _SECONDS[found.group(2)]


def time_window(window_s: float, calendar: Calendar | None) -> dict[str, Any]:
    """Return an item of `timeWindow`."""
    if calendar is None:
        return {"duration": shorthand(window_s).text, "isRolling": True}
    text = next(text for text, unit in _CALENDAR.items() if unit == calendar.unit)
    began = {"startTime": _BEGAN, "timeZone": calendar.timezone}
    return {"duration": text, "calendar": began, "isRolling": False}


def calendar_of(duration: str, start: str, timezone: str) -> str:
    """Return a window as a policy has it: `month@Europe/Berlin`. Raise ValueError where a policy has no such window."""
    unit = _CALENDAR.get(duration)
    if unit is None:
        has = ", ".join(_CALENDAR)
        raise ValueError(f"a calendar window of {duration[:80]!r} cannot be expressed: write one of {has}")
    try:
        began = datetime.strptime(start, "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007 -- by definition without a time zone
    except ValueError:
        raise ValueError(f"{start[:80]!r} is no time: write it like {_BEGAN}") from None
    if not _begins(unit, began):
        raise ValueError(f"{start!r} is not the beginning of a {unit}: write it like {_BEGAN}")
    return f"{unit}@{timezone}"


def _begins(unit: str, time: datetime) -> bool:
    begins = {
        "day": True,
        "week": time.weekday() == 0,
        "month": time.day == 1,
        "quarter": time.day == 1 and time.month in _QUARTERS,
        "year": time.day == 1 and time.month == 1,
    }
    return begins[unit] and (time.hour, time.minute, time.second) == (0, 0, 0)
