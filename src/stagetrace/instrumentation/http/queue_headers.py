"""The headers `X-Request-Start` and `X-Queue-Start` of load balancers: how long a request waited before the server.

    Heroku      1700000000123               nginx   t=1700000000.123 ($msec)
    Apache      t=1700000000123456 D=17     others  the same in seconds, milli-, micro- or nanoseconds, with fractions

Two machines' clocks are compared, so this is an attribute of the entry span and no part of its duration.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.process_status.counts import ignored_headers

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADERS: Final = ("x-request-start", "x-queue-start")
LONGEST_S: Final = 600  # longer than any load balancer lets a request wait: a clock or a unit is wrong
MAX_CHARACTERS: Final = 200
_TIME: Final = re.compile(r"(?:t\s*=\s*)?([0-9]{10,19})(\.[0-9]{1,9})?(?:\s+\w=\S*)*")
# Nanoseconds in one of the header's unit, by how many digits a time between 2001 and 2286 has in it.
_UNITS_NS: Final = {10: 1_000_000_000, 13: 1_000_000, 16: 1_000, 19: 1}

UNREADABLE, FUTURE, TOO_OLD = "unreadable", "in the future", "too old"


def waited_ns(value: str, now_ns: int) -> int | str:
    """Return how long a request with this header has waited, in ns; or the reason why the value is not plausible.

    Where several load balancers have added theirs, the request has waited since the first.
    """
    earliest = None
    for part in value[:MAX_CHARACTERS].split(","):
        match = _TIME.fullmatch(part.strip())
        unit_ns = _UNITS_NS.get(len(match[1])) if match is not None else None
        if match is None or unit_ns is None:
            return UNREADABLE
        fraction = match[2] or ".0"
        since_ns = int(match[1]) * unit_ns + int(fraction[1:]) * unit_ns // 10 ** (len(fraction) - 1)
        earliest = since_ns if earliest is None else min(earliest, since_ns)
    waited = now_ns - (earliest or 0)
    if waited < 0:
        return FUTURE
    return waited if waited <= LONGEST_S * 1_000_000_000 else TOO_OLD


def time_in_queue_ms(values: Iterable[str], now_ns: int) -> float | None:
    """Return the longest plausible wait in a request's headers, in ms; count the others."""
    longest = None
    for value in values:
        waited = waited_ns(value, now_ns)
        if isinstance(waited, str):
            ignored_headers[waited] = ignored_headers.get(waited, 0) + 1
            _log(waited, value)
        else:
            longest = waited if longest is None else max(longest, waited)
    return None if longest is None else longest / 1e6


def _log(why: str, value: str) -> None:
    log.once(
        f"request start {why}",
        f"a load balancer's X-Request-Start or X-Queue-Start is ignored, it is {why}: {value[:40]!r}. "
        "All that is ignored is counted (stagetrace doctor). Expected: [t=]TIME, in s, ms or us since 1970.",
    )
