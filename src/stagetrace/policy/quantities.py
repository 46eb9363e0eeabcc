"""Durations, shares and windows as people write them in a policy. What reads them raises ValueError: what is wrong."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from stagetrace.policy.objective import CALENDAR, DEFAULT_TARGET, DEFAULT_WINDOW_S, NEVER_NS, Calendar

NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)([a-zµ]*)")
_DURATION_NS: Final = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_WINDOW_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DEFAULT_UNITS: Final = {"duration": "ms", "window": "d"}
# Other spellings of units, without a plural's s.
_MEANT: Final = {
    **dict.fromkeys(("microsecond", "usec", "µ", "micro"), "us"),
    **dict.fromkeys(("millisecond", "msec", "milli", "mil"), "ms"),
    **dict.fromkeys(("second", "sec"), "s"),
    **dict.fromkeys(("minute", "min"), "m"),
    **dict.fromkeys(("hour", "hr"), "h"),
    "day": "d",
    **dict.fromkeys(("week", "wk"), "w"),
}


class Window(NamedTuple):
    """Over how long an objective counts, in seconds; a calendar window is this long at most."""

    length_s: float
    calendar: Calendar | None = None


class TargetText(NamedTuple):
    """What `Objective.target_text` says."""

    share: float
    window: Window


def duration_ns(text: str) -> int:
    """Return a duration such as `50ms`, above zero, in nanoseconds."""
    found = _quantity("duration", text, _DURATION_NS)
    if found < 1:
        raise ValueError("the duration must be more than zero")
    if found >= NEVER_NS:
        raise ValueError("the duration is too large")
    return round(found)


def window(text: str) -> Window:
    """Return a window such as `28d`, or `month@Europe/Berlin`."""
    unit, at, zone = text.partition("@")
    if unit.lower() in CALENDAR:
        calendar = Calendar(unit.lower(), _zone(zone) if at else "UTC")
        return Window(CALENDAR[calendar.unit], calendar)
    found = _quantity("window", text, _WINDOW_S)
    if found <= 0:
        raise ValueError("the window must be more than zero")
    return Window(found)


def share(text: str) -> float:
    """Return a percentage such as `99.9%` as a share in (0, 1]."""
    match = _QUANTITY.fullmatch(text.removesuffix("%"))
    if not text.endswith("%") or match is None or match.group(2) or not 0 < float(match.group(1)) <= 100:  # noqa: PLR2004
        raise ValueError(f"{text!r} is not a percentage above 0% and up to 100%")
    return float(Decimal(match.group(1)) / 100)


def target(text: str) -> TargetText:
    """Return what a text such as `99.9% over 28d` says; either part may be missing."""
    before, over, after = text.partition(" over ")
    if not over and text.startswith("over "):
        before, after = "", text.removeprefix("over ")
    return TargetText(
        share(before.strip()) if before.strip() else DEFAULT_TARGET,
        window(after.strip()) if after.strip() else Window(DEFAULT_WINDOW_S),
    )


def duration_text(nanoseconds: int) -> str:
    """Return a duration as a policy has it."""
    return _text(nanoseconds, Decimal(nanoseconds), _DURATION_NS, ("s", "ms", "us"))


def window_text(seconds: float) -> str:
    """Return a window as a policy has it."""
    return _text(seconds, Decimal(repr(float(seconds))), _WINDOW_S, ("d", "h", "m", "s"))


def share_text(target: float) -> str:
    """Return a share as a policy has it."""
    return f"{_plain(Decimal(repr(target)) * 100)}%"


def _text(number: float, exact: Decimal, units: dict[str, int], names: tuple[str, ...]) -> str:
    unit = next((one for one in names if number % units[one] == 0), names[-1])
    return f"{_plain(exact / units[unit])}{unit}"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"{name!r} is no time zone: {error}") from None
    except KeyError:
        raise ValueError(f"{name!r} is no time zone that this machine knows, as Europe/Berlin is") from None
    return name


def _quantity(what: str, text: str, units: dict[str, int]) -> float:
    match = _QUANTITY.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"the {what} {text!r} is not a number with a unit ({', '.join(units)})")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"the {what} {text!r} has no unit ({', '.join(units)}): write {number}{_DEFAULT_UNITS[what]}")
    if unit not in units:
        meant = _MEANT.get(unit.rstrip("s"))
        write = f": write {number}{meant}" if meant in units else ""
        raise ValueError(f"the {what} {text!r} has the unit {unit!r}, which is none of {', '.join(units)}{write}")
    found = float(number) * units[unit]
    if found == float("inf"):
        raise ValueError(f"the {what} is too large")
    return found
