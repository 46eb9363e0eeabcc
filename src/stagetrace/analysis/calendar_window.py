"""When the day, week, month, quarter or year of a calendar window began, in its time zone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from stagetrace.sla.objective import Calendar

_NS: Final = 10**9
_IN_QUARTER: Final = 3


def began_ns(calendar: Calendar, until_ns: int) -> int:
    """Return when the period began that the last moment before `until_ns` is in, in ns since 1970.

    So a period that ends at `until_ns` is meant whole.
    """
    zone = ZoneInfo(calendar.timezone)
    last = datetime.fromtimestamp(max(until_ns - 1, 0) // _NS, zone)
    first = last.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if calendar.unit == "week":
        first -= timedelta(days=first.weekday())
    elif calendar.unit == "month":
        first = first.replace(day=1)
    elif calendar.unit == "quarter":
        first = first.replace(day=1, month=first.month - (first.month - 1) % _IN_QUARTER)
    elif calendar.unit == "year":
        first = first.replace(day=1, month=1)
    return max(0, int(first.timestamp())) * _NS
