"""Parts of PromQL: strings, durations, selectors, names of recorded series, days and months of a time zone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from stagetrace.policy.objective import SERVICE_KEY, Objective

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stagetrace.policy.objective import Calendar

# --- Parts of PromQL: strings, durations, selectors of series.

YOUNG_S: Final = 3_600  # a series without a sample in this time before a window has begun within the window
_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")  # of Go's regular expressions
_ESCAPE: Final = r"\\\g<0>"
_ESCAPED: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def quoted(text: str) -> str:
    """Return a string of PromQL that stands for this text."""
    return '"' + "".join(_ESCAPED.get(char, char if char.isprintable() else _code(char)) for char in text) + '"'


def _code(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x1_0000 else f"\\U{ord(char):08x}"  # noqa: PLR2004 -- of the first plane


def literal(text: str) -> str:
    """Return a regular expression that matches this text alone."""
    return _SPECIAL.sub(_ESCAPE, text)


def duration(seconds: float) -> str:
    """Return a duration, a millisecond at least: `5m`, `1h30m`, `3d`, `300ms`."""
    left, parts = max(1, round(seconds * 1_000)), []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts)


def number(value: float) -> str:
    """Return a number in plain digits."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if 1e-9 < abs(value) < 1e15 else f"{value:.12g}"  # noqa: PLR2004


def labels(objective: Objective, service: str = "") -> str:
    """Return the matchers of an objective's series, without braces.

    `job` is the service's name, behind its namespace where it has one.
    """
    globs = [one.glob for one in objective.conditions if one.key == SERVICE_KEY] or ([service] if service else [])
    jobs = (f"(.*/)?{'.*'.join(map(literal, glob.split('*')))}" for glob in globs)
    return ", ".join([f"sla_objective={quoted(objective.name)}", *(f"job=~{quoted(job)}" for job in jobs)])


def service_of(objective: Objective, service: str = "") -> str:
    """Return the one service that an objective is about, as far as it names one; else `service`."""
    named = (one.glob for one in objective.conditions if one.key == SERVICE_KEY and "*" not in one.glob)
    return next(named, service)


def counted(series: str, window: str, before: str) -> str:
    """Return how much each counter has counted in a window: exactly, between the last scrapes before its two ends.

    The first value counts, too, of a series that has begun within the window: one without a sample in the time
    `before` it. `increase` alone would lose it, and with it the first breach of each process, stage and segment; it
    also extrapolates. It remains for a counter that was reset within the window, or missing at its begin.
    """
    last, reset = f"last_over_time({series}[{window}])", f"resets({series}[{window}]) > 0"
    young = f"{last} unless present_over_time({series}[{before}] offset {window})"
    return (
        f"  (\n    (\n      {last} - {series} offset {window} >= 0\n      or {young}\n    )\n"
        f"    unless {reset}\n  )\n  or increase({series}[{window}])"
    )


def template(text: str) -> str:
    """Return text for a label or an annotation of an alert, in which Prometheus expands templates, as it is."""
    return text.replace("{{", '{{ "{{" }}')


# --- The names of what the recording rules record: level, metric and operations, as Prometheus' conventions have it.


class Level(NamedTuple):
    """What series are recorded by: the objective, or each of its segments."""

    prefix: str
    labels: tuple[str, ...]

    @property
    def by(self) -> str:
        """Return the labels, as they stand in `by (...)`."""
        return ", ".join(self.labels)

    def counts(self, window_s: float) -> str:
        """Return the name of the number of requests in a window, by their verdict: `good` or `breach`."""
        return f"{self.prefix}_verdict:sla_requests:increase{duration(window_s)}"

    def ratio(self, window_s: float) -> str:
        """Return the name of the share of breaches among the judged requests of a window; it is absent without any."""
        return f"{self.prefix}:sla_breaches:ratio_increase{duration(window_s)}"

    def counts_since(self, unit: str) -> str:
        """Return the name of the number of requests by verdict since the begin of the day, week, month ..."""
        return f"{self.prefix}_verdict:sla_requests:increase_{unit}"

    def ratio_since(self, unit: str) -> str:
        """Return the name of the share of breaches since then."""
        return f"{self.prefix}:sla_breaches:ratio_increase_{unit}"

    @property
    def step(self) -> str:
        """Return the name of the number of requests in five minutes by verdict, with the period of the calendar."""
        return f"{self.prefix}_verdict_period:sla_requests:increase5m"

    @property
    def budget_left(self) -> str:
        """Return the name of the share of the error budget left of the objective's window; negative: overspent."""
        return f"{self.prefix}:sla_error_budget_remaining:ratio"


WHOLE: Final = Level("job_objective", ("job", "sla_objective"))
SEGMENTS: Final = Level("job_objective_segment", (*WHOLE.labels, "sla_segment"))


def levels(objective: Objective) -> tuple[Level, ...]:
    """Return the levels of an objective."""
    return (WHOLE, SEGMENTS) if objective.segment_by else (WHOLE,)


# --- Which day, week, month, quarter or year it is in a time zone, as PromQL: it knows UTC alone.
#
# The offset of the zone is recorded out of the changes of its clocks in `YEARS`; later on, the last one stays. A period
# has a number as the value of a label: 202611 is November 2026.

PERIOD: Final = "sla_period"
YEARS: Final = (2026, 2041)
OFFSET: Final = "timezone:utc_offset:seconds"
CURRENT: Final = "calendar:sla_period:info"
_DAY: Final = timedelta(days=1)
# Out of `t`, the local time in seconds. The epoch began on a Thursday.
_PERIODS: Final = {
    "day": "floor({t} / 86400)",
    "week": "floor(({t} / 86400 + 3) / 7)",
    "month": "year({t}) * 100 + month({t})",
    "quarter": "year({t}) * 10 + ceil(month({t}) / 3)",
    "year": "year({t})",
}


def rules(calendars: Iterable[Calendar]) -> list[dict[str, Any]]:
    """Return the rules that record the current period of each calendar."""
    used = sorted(set(calendars))
    offsets = [
        {"record": OFFSET, "expr": _offset(zone), "labels": {"timezone": zone}}
        for zone in sorted({one.timezone for one in used})
    ]
    periods = [{"record": CURRENT, "expr": _current(one), "labels": {"calendar": one.text}} for one in used]
    return offsets + periods


def current(calendar: Calendar) -> str:
    """Return the series of value 1 whose label PERIOD is the current period."""
    return f"{CURRENT}{{calendar={quoted(calendar.text)}}}"


def _current(calendar: Calendar) -> str:
    local = f"(vector(time()) + on () {OFFSET}{{timezone={quoted(calendar.timezone)}}})"
    return f"count_values({quoted(PERIOD)}, {_PERIODS[calendar.unit].format(t=local)})"


def _offset(zone: str) -> str:
    """Return the offset of a zone from UTC in seconds."""
    first, *changes = _offsets(zone)
    terms = [
        f"{'+' if after > before else '-'} {abs(after - before)} * (vector(time()) >= bool {at})"
        for (_, before), (at, after) in zip([first, *changes], changes, strict=False)
    ]
    return "\n".join([f"vector({first[1]})", *terms])


@lru_cache(maxsize=64)
def _offsets(zone: str) -> list[tuple[int, int]]:
    """Return from when on, in seconds since the epoch, a zone has which offset."""
    return list(_changes(ZoneInfo(zone)))


def _changes(zone: ZoneInfo) -> Iterator[tuple[int, int]]:
    at, end = (datetime(year, 1, 1, tzinfo=timezone.utc) for year in YEARS)
    offset = _at(at, zone)
    yield int(at.timestamp()), offset
    while at < end:
        later = at + _DAY
        if _at(later, zone) != offset:
            low, high = int(at.timestamp()), int(later.timestamp())
            while high - low > 1:
                middle = (low + high) // 2
                same = _at(datetime.fromtimestamp(middle, timezone.utc), zone) == offset
                low, high = (middle, high) if same else (low, middle)
            offset = _at(later, zone)
            yield high, offset
        at = later


def _at(moment: datetime, zone: ZoneInfo) -> int:
    offset = moment.astimezone(zone).utcoffset()
    return 0 if offset is None else round(offset.total_seconds())
