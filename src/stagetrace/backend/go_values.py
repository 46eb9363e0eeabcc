"""Query parameters as Go writes them: RFC 3339 times to the nanosecond, durations such as `1m30.5s`, booleans."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Final

_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)",
)
_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART: Final = r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_MAX_NS: Final = 2**63 - 1
_NS_DIGITS: Final = 9


def time_ns(text: str) -> int:
    """Return an RFC 3339 time in ns since 1970. Raise ValueError."""
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f'parsing time "{text}" as "2006-01-02T15:04:05.999999999Z07:00": cannot parse it')
    seconds, fraction, zone = match.groups()
    moment = datetime.fromisoformat(seconds + ("+00:00" if zone == "Z" else zone))
    whole = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(seconds=1)
    return whole * 10**9 + int((fraction or "")[:_NS_DIGITS].ljust(_NS_DIGITS, "0"))


def duration_ns(text: str) -> int:
    """Return a duration in ns. Raise ValueError."""
    sign = -1 if text.startswith("-") else 1
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    if unsigned == "0":
        return 0
    if not re.fullmatch(f"(?:{_PART})+", unsigned, re.ASCII):
        raise ValueError(f'time: invalid duration "{text}"')
    total = sum(int(Decimal(number) * _UNITS[unit]) for number, unit in re.findall(_PART, unsigned, re.ASCII))
    if total > _MAX_NS:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * total


def boolean(text: str) -> bool:
    """Return a boolean as strconv.ParseBool reads it. Raise ValueError."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def integer(text: str) -> int:
    """Return an integer as strconv.Atoi reads it. Raise ValueError."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise ValueError(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def trace_id(text: str) -> str:
    """Return a trace id as 32 lower-case hex digits; shorter ones get zeros in front. Raise ValueError."""
    if len(text) > 32:  # noqa: PLR2004
        raise ValueError(f"TraceID cannot be longer than 32 hex characters: {text}")
    if not re.fullmatch("[0-9a-fA-F]+", text):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    return text.lower().zfill(32)
