"""Text forms for objectives: shares, counts, lengths of time, and estimates."""

from __future__ import annotations

from math import ceil, log10
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stagetrace.analysis.attainment import Attained, Counts

_LENGTHS: Final = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))
_TWO: Final = 1.95  # of a unit, or the smaller one is used
_MOST_DIGITS: Final = 6


def percent(share: float) -> str:
    """Return a share near 1 with enough digits to show the missing part: 99.2 %, 99.995 %; 100 % means exactly all."""
    missing = 100 * abs(1 - share)
    digits = 1 if missing == 0 else min(_MOST_DIGITS, max(1, ceil(-log10(missing))))
    text = f"{100 * share:.{digits}f}"
    return "100 %" if share == 1 else f"{'> 99.999999' if text.startswith('100') and share < 1 else text} %"


def interval(known: Attained) -> str:
    """Return the interval of an attainment."""
    return f"[{percent(known.low).removesuffix(' %')}, {percent(known.high).removesuffix(' %')}]"


def wanted(share: float) -> str:
    """Return a target as a policy has it."""
    return f"{100 * share:.12g} %"


def length(seconds: float) -> str:
    """Return a length of time in its unit: 6.1 days."""
    size, unit = next((one for one in _LENGTHS if seconds >= _TWO * one[0]), _LENGTHS[-1])
    if any(seconds == one for one, _ in _LENGTHS):
        size, unit = next(one for one in _LENGTHS if seconds == one[0])
    number = f"{seconds / size:.1f}".removesuffix(".0")
    return f"{number} {unit}{'' if number == '1' else 's'}"


def times(factor: float) -> str:
    """Return how many times over: 11 times over, 1.4 times over."""
    return f"{factor:.{0 if factor >= 10 else 1}f} times over"  # noqa: PLR2004 -- two digits


def requests(count: float, what: str = "request") -> str:
    """Return a count in words: 1 request, 2,000 requests."""
    return f"{round(count):,} {what}{'' if round(count) == 1 else 's'}"


def breaches(count: float) -> str:
    """Return a count of breaches with its verb: is 1 breach, are 20 breaches."""
    return "is 1 breach" if round(count) == 1 else f"are {round(count):,} breaches"


def about(count: float, found: Counts) -> str:
    """Return a count, with `~` where it is an estimate and `>=` where more is not known."""
    return f"{'>=' if found.is_unknown else '~' if found.is_sampled and found.most > 1 else ''}{round(count):,}"
