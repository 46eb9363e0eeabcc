"""Times, durations and numbers as text, and times on the command line; estimates out of samples."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.analysis.estimates import Attainment, Sample
    from stagetrace.analysis.onset import Release

# --- Times on the command line: `15m` (that long ago), a time to the nanosecond, or a day: its start.
#
# A time without an offset, and every time that is shown, is one of the zone that `--tz` names: UTC unless it is given.

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
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(?:(:\d\d)(?:\.(\d{1,9})\d*)?)?(?:([Zz])|([+-])([01]\d|2[0-3]):([0-5]\d))?",
    re.ASCII,
)
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
FORMS: Final = (
    "a duration (30s, 15m, 2h, 7d: that long ago) or a time (2026-03-01, 2026-03-01T12:00, 2026-03-01T12:00:00Z)"
)
_EXPECTED: Final = f"write {FORMS}"


@dataclass(frozen=True)
class Zone:
    """A time zone and the name under which its times are shown; `info` None: the one of this machine."""

    name: str
    info: tzinfo | None

    def wall(self, seconds: int) -> datetime:
        """Return the time of day in the zone at a time in seconds since 1970."""
        if self.info is None:
            return datetime.fromtimestamp(seconds)  # noqa: DTZ006 -- the machine's own zone is what is asked for
        return (_EPOCH + timedelta(seconds=seconds)).astimezone(self.info)

    def seconds(self, wall: datetime) -> int:
        """Return the seconds since 1970 at which clocks of the zone show `wall`; the first time of two."""
        return round(wall.replace(tzinfo=self.info).timestamp())


UTC: Final = Zone("UTC", timezone.utc)


def zone(text: str) -> Zone:
    """Return the zone of this name, `local` for the machine's own. Raise ArgumentTypeError where there is none."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    if text.lower() == "local":
        return Zone("/".join(dict.fromkeys(time.tzname)), None)
    if text.upper() == UTC.name:
        return UTC
    try:
        return Zone(text, ZoneInfo(text))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        message = f"there is no time zone {text!r}: write local, UTC, or a name as Europe/Berlin"
        raise argparse.ArgumentTypeError(message) from None


@dataclass(frozen=True)
class Moment:
    """A point in time: `ns` after 1970, or, if `ago`, before the time at which the command runs.

    `wall`: as clocks of a zone show it, which is not known yet. `text`: as it was given.
    """

    ns: int
    ago: bool
    wall: bool = False
    text: str = field(default="", compare=False)

    def at(self, now_ns: int, zone: Zone = UTC) -> int:
        """Return it in nanoseconds since 1970; earlier times become 1970."""
        if self.wall:
            seconds, rest = divmod(self.ns, 10**9)
            wall = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None)
            return max(0, zone.seconds(wall) * 10**9 + rest)
        return max(0, now_ns - self.ns if self.ago else self.ns)


def moment(text: str) -> Moment:
    """Return the moment that `text` names. Raise ArgumentTypeError with the accepted forms."""
    if duration := _DURATION.fullmatch(text):
        number, unit = duration.groups()
        return Moment(int(Fraction(number) * _UNIT_NS[unit]), ago=True, text=text)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} has no unit: {_EXPECTED}")
    found = _TIME.fullmatch(f"{text}T00:00" if _DAY.fullmatch(text) else text)
    if found is None:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {_EXPECTED}")
    is_wall = found[5] is None and found[6] is None
    return Moment(_nanoseconds(text, found), ago=False, wall=is_wall, text=text)


def shown(ns: int, zone: Zone = UTC, digits: int = 3) -> str:
    """Return a time as `2026-03-01 12:00:00.123`; `digits` of the second are cut, not rounded."""
    seconds, rest = divmod(ns, 10**9)
    fraction = f".{rest:09d}"[: digits + 1] if digits else ""
    return f"{zone.wall(seconds):%Y-%m-%d %H:%M:%S}{fraction}"


def utc(ns: int, digits: int = 3) -> str:
    """Return a time as `shown` does, in UTC."""
    return shown(ns, digits=digits)


def window(since_ns: int, until_ns: int, zone: Zone = UTC) -> str:
    """Return ` between 2026-03-01 12:00:00 and 2026-03-01 13:00:00 UTC`, or ` since` where the end is to come."""
    ends = until_ns < time.time_ns()
    if ends and since_ns:
        return f" between {shown(since_ns, zone, 0)} and {shown(until_ns, zone, 0)} {zone.name}"
    if ends:
        return f" before {shown(until_ns, zone, 0)} {zone.name}"
    return f" since {shown(since_ns, zone, 0)} {zone.name}" if since_ns else ""


def _nanoseconds(text: str, time: re.Match[str]) -> int:
    date, clock, second, fraction, _, sign, hours, minutes = time.groups()
    try:
        whole = datetime.fromisoformat(f"{date}T{clock}{second or ':00'}+00:00")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {error}") from None
    seconds = (whole - _EPOCH) // timedelta(seconds=1)
    if sign:
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def between(text: str) -> tuple[Moment, Moment]:
    """Return both ends of `SINCE..UNTIL`. Raise ArgumentTypeError where it is none."""
    since, dots, until = text.partition("..")
    if not dots or not since or not until:
        raise argparse.ArgumentTypeError(f"{text!r} is not SINCE..UNTIL, as 2h..1h or 2026-03-01..2026-03-02")
    return moment(since), moment(until)


def milliseconds(value: float | None) -> str:
    """Return a duration with its unit, always ms so that a column compares at a glance; `-` where it is not known."""
    if value is None:
        return "-"
    return f"{value:.3f} ms" if abs(value) < 1 else f"{value:.2f} ms"


def threshold(value: float | None) -> str:
    """Return a threshold with its unit in the form of a policy, `50 ms` and not `50.00 ms`; `-` where there is none."""
    if value is None:
        return "-"
    return f"{f'{value:.3f}'.rstrip('0').rstrip('.')} ms"


# --- Estimates out of sampled requests in output: `~` before a number, a line below, keys of `--json`.


def percent(share: float | None) -> str:
    """Return a share with two digits that count, `-` where it is not known."""
    if share is None:
        return "-"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"  # noqa: PLR2004 -- 10 %


def rounded_percent(share: float | None, digits: int = 0) -> str:
    """Return a share in percent with so many decimals, `-` where it is not known."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def chance(value: float | None) -> str:
    """Return how likely something is by chance, as far as it matters."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.2g}"  # noqa: PLR2004 -- as far as it is shown


def q_value(value: float) -> str:
    """Return the share of false ones among findings as sure as this one."""
    return "q < 0.001" if value < 0.001 else f"q = {value:.3f}"  # noqa: PLR2004 -- as far as it is shown


def release_name(release: Release) -> str:
    """Return `release 1.5.0`, `version 3 of model churn`, `the start of instance 7f3a` or `the mark "deploy"`."""
    if release.key == "mark":
        return f'the mark "{release.value}"'
    if release.key == "service.instance.id":
        return f"the start of instance {release.value}"
    return f"release {release.value}" if release.model is None else f"version {release.value} of model {release.model}"


def values_text(values: Mapping[str, str | None]) -> str:
    """Return values of attributes in words."""
    return " and ".join(f"without {key}" if value is None else f"{key} {value}" for key, value in values.items())


def since_text(at_unix_nano: int, release: Release | None, zone: Zone) -> str:
    """Return `release 1.5.0 at 2026-03-01 11:25:10 UTC`, or the time alone."""
    time = f"{shown(at_unix_nano, zone, 0)} {zone.name}"
    return time if release is None else f"{release_name(release)} at {time}"


def mark(sample: Sample) -> str:
    """Return the mark before a count: `~` for an estimate, `>=` for a lower bound."""
    return ">=" if sample.is_unknown else "~" if sample.is_estimate else ""


def about(count: int, sample: Sample) -> str:
    """Return a count with its mark, for people."""
    return f"{mark(sample)}{count}"


def attainment_percent(attainment: Attainment | None, sample: Sample) -> str:
    """Return an attainment for people; `?` where sampling makes it unknown."""
    if attainment is None:
        return "?" if sample.is_unknown else "-"
    return f"{'~' if attainment.low < attainment.high else ''}{100 * attainment.value:.2f} %"


def keys(sample: Sample) -> dict[str, Any]:
    """Return the keys of `--json` about the sample that counts are made of."""
    return {
        "stored": sample.rows,
        "counted": sample.is_counted,
        "estimated": sample.is_estimate,
        "sampling_known": not sample.is_unknown,
    }


def note(what: str, sample: Sample, attainment: Attainment | None = None) -> str | None:
    """Return the line on how far a group of requests is an estimate; None where it is exact."""
    if sample.is_unknown:
        return (
            f">= {what}: {_stored(sample)} of which it is not known how they were sampled; "
            "counts are of these alone (breaches are all there)"
        )
    if not sample.is_estimate:
        return f"= {what}: counted by the service; durations of {_stored(sample)}" if sample.is_counted else None
    interval = ""
    if attainment is not None:
        interval = f"; met, with 95 % confidence: {100 * attainment.low:.2f} to {100 * attainment.high:.2f} %"
    counted = "what the service has counted, and " if sample.is_counted else ""
    return f"~ {what}: estimated from {counted}{_stored(sample)} (breaches are all there){interval}"


def _stored(sample: Sample) -> str:
    return "1 sampled request" if sample.rows == 1 else f"{sample.rows} sampled requests"
