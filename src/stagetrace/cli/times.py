"""Times on the command line: `15m` (that long ago), an RFC 3339 time to the nanosecond, or a day: its start in UTC."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from typing import Final

_UNIT_NS: Final = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
    "w": 7 * 86400 * 10**9,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(?:([Zz])|([+-])([01]\d|2[0-3]):([0-5]\d))", re.ASCII
)
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EXPECTED: Final = "write a duration (30s, 15m, 2h, 7d: that long ago) or a time (2026-03-01T12:00:00Z, or 2026-03-01)"


@dataclass(frozen=True)
class Moment:
    """A point in time: `ns` after 1970, or, if `ago`, before the time at which the command runs."""

    ns: int
    ago: bool

    def at(self, now_ns: int) -> int:
        """Return it in nanoseconds since 1970; what lies before 1970 becomes 1970."""
        return max(0, now_ns - self.ns if self.ago else self.ns)


def moment(text: str) -> Moment:
    """Return the moment that `text` names. Raise ArgumentTypeError that says how to write one."""
    if duration := _DURATION.fullmatch(text):
        number, unit = duration.groups()
        return Moment(int(Fraction(number) * _UNIT_NS[unit]), ago=True)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} has no unit: {_EXPECTED}")
    time = _TIME.fullmatch(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
    if time is None:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {_EXPECTED}")
    return Moment(_nanoseconds(text, time), ago=False)


def utc(ns: int, digits: int = 3) -> str:
    """Return a time as `2026-03-01 12:00:00.123`, in UTC; `digits` of the second are cut, not rounded."""
    seconds, rest = divmod(ns, 10**9)
    fraction = f".{rest:09d}"[: digits + 1] if digits else ""
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}{fraction}"


def since(ns: int) -> str:
    """Return ` since 2026-03-01 12:00:00 UTC`, or nothing where a window has no start."""
    return f" since {utc(ns, 0)} UTC" if ns else ""


def _nanoseconds(text: str, time: re.Match[str]) -> int:
    date, clock, fraction, _, sign, hours, minutes = time.groups()
    try:
        whole = datetime.fromisoformat(f"{date}T{clock}+00:00")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {error}") from None
    seconds = (whole - _EPOCH) // timedelta(seconds=1)
    if sign:
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))
