"""Calendar periods on the command line: `2026`, `2026-Q4`, `2026-10`, `2026-W48`, `2026-11-26`, in days of a zone."""

from __future__ import annotations

import argparse
import re
from datetime import date, datetime, timedelta
from typing import Final, NamedTuple

from stagetrace.output.times import Zone

FORMS: Final = "a year (2026), quarter (2026-Q4), month (2026-10), ISO week (2026-W48) or day (2026-11-26)"
_NS: Final = 10**9
_MONTHS: Final = 12
_IN_QUARTER: Final = 3


class Period(NamedTuple):
    """Days from `first` up to `after`, which is not one of them."""

    name: str
    first: date
    after: date

    def at(self, zone: Zone) -> tuple[int, int]:
        """Return when it begins and ends in a zone, in ns since 1970: its days are as long as they were there."""
        midnights = (datetime.combine(day, datetime.min.time()) for day in (self.first, self.after))
        begin, end = map(zone.seconds, midnights)
        return max(0, begin) * _NS, max(0, end) * _NS


def period(text: str) -> Period:
    """Return the period of this name. Raise ArgumentTypeError with the accepted forms."""
    try:
        if re.fullmatch(r"\d{4}", text, re.ASCII):
            return Period(text, date(int(text), 1, 1), date(int(text) + 1, 1, 1))
        if found := re.fullmatch(r"(\d{4})-[Qq]([1-4])", text, re.ASCII):
            first = date(int(found[1]), _IN_QUARTER * (int(found[2]) - 1) + 1, 1)
            return Period(f"{found[1]}-Q{found[2]}", first, _later(first, _IN_QUARTER))
        if found := re.fullmatch(r"(\d{4})-(\d\d)", text, re.ASCII):
            first = date(int(found[1]), int(found[2]), 1)
            return Period(text, first, _later(first, 1))
        if found := re.fullmatch(r"(\d{4})-[Ww](\d\d)", text, re.ASCII):
            first = date.fromisocalendar(int(found[1]), int(found[2]), 1)
            return Period(f"{found[1]}-W{found[2]}", first, first + timedelta(days=7))
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            first = date.fromisoformat(text)
            return Period(text, first, first + timedelta(days=1))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"there is no period {text!r}: {error}") from None
    raise argparse.ArgumentTypeError(f"cannot read the period {text!r}: write {FORMS}")


def last_month(now_ns: int, zone: Zone) -> Period:
    """Return the calendar month before the one that it is now."""
    today = zone.wall(now_ns // _NS).date()
    first = (today.replace(day=1) - timedelta(days=1)).replace(day=1)
    return Period(f"{first:%Y-%m}", first, today.replace(day=1))


def _later(first: date, months: int) -> date:
    """Return the first day of the month so many months later."""
    years, month = divmod(first.month - 1 + months, _MONTHS)
    return date(first.year + years, month + 1, 1)
