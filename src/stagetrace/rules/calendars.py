"""Which day, week, month, quarter or year it is in a time zone, as PromQL: it knows UTC alone.

The offset of the zone is recorded out of the changes of its clocks in `YEARS`; later on, the last one stays. A period
has a number as the value of a label: 202611 is November 2026.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from stagetrace.rules.promql import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stagetrace.sla.objective import Calendar

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
