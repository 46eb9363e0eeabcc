"""Headers with a meaning of their own: `Server-Timing`, those of load balancers, those that a span carries."""

from __future__ import annotations

import functools
import re
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log, settings
from stagetrace.guard import guarded
from stagetrace.request.serving_process import ignored_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stagetrace.request.request import Request

# --- The header `Server-Timing`, by which a service reports the stages of a request to its caller.
#
#     server-timing: queue;dur=1.204, preprocess;dur=0.811, inference;dur=40.093, total;dur=42.108
#
# Over HTTP it goes out with the response's headers, and holds the time until then; of an RPC it is trailing metadata.
# Where only stagetrace is to have it, `stagetrace` stands in front: a service that hands on all headers of the
# responses that it gets would else show it to its own callers. Such a caller names itself by a request header of its
# own, not by a member of `tracestate`, which services pass on to their own callees.

HEADER: Final = "server-timing"
NAMES: Final = (HEADER, HEADER.encode())
CALLER: Final = "stagetrace-caller"  # a header of requests that our clients make: their reader understands ours
TOTAL: Final = "total"
ASKED: Final = "stagetrace"  # a metric without a value, before those that the caller has asked for
OTHER: Final = "other"
MAX_METRICS: Final = 16  # stages beyond are summed, so that the header stays small

# --- The headers `X-Request-Start` and `X-Queue-Start` of load balancers: how long a request waited before the server.
#
#     Heroku      1700000000123               nginx   t=1700000000.123 ($msec)
#     Apache      t=1700000000123456 D=17     others  the same in seconds, milli-, micro- or nanoseconds, with fractions
#
# Two machines' clocks are compared, so this is an attribute of the entry span and no part of its duration.

MAX_CHARACTERS: Final = 4_096  # of a header that is looked at
_OURS: Final = re.compile(rf'(?<![^,\s]){ASKED}, [^"]{{0,1500}}?{TOTAL};dur=[0-9.]+')
_NO_TOKEN: Final = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")  # what no name of a metric may hold


@functools.cache
def wanted() -> bool | None:
    """Return whether every response carries the header, or none; None: each whose caller is stagetrace."""
    return settings.SERVER_TIMING.read()


def asks() -> bool:
    """Return whether requests that we make tell that their caller is stagetrace."""
    return wanted() is not False


def is_for(caller: object) -> bool:
    """Return whether a response carries the header, where the request's header CALLER has this value, None: none."""
    always = wanted()
    return caller is not None if always is None else always


has_received = False  # whether any response to this process had ASKED


def with_timing(
    headers: Iterable[tuple[Any, Any]], caller: object, request: Request, name: str | bytes
) -> list[Any] | None:
    """Return the headers of a response as they are to be sent; None: as they are.

    They get one of this `name` with the stages of its request, if its caller wants that, and lose what a callee has
    reported to this process. All are bytes, or str, as the name is.
    """
    sent = _handed_on(headers) if has_received else None
    if is_for(caller):
        timing = timing_of(request)
        sent = [*(headers if sent is None else sent), (name, timing if isinstance(name, str) else timing.encode())]
    return sent


def _handed_on(headers: Iterable[tuple[Any, Any]]) -> list[Any] | None:
    sent, has_changed = [], False
    for header in headers:
        name, value = header
        if name.lower() in NAMES:
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            own = without_asked(text)
            if own != text:
                has_changed = True
                if own:
                    sent.append((name, own.encode("latin-1") if isinstance(value, bytes) else own))
                continue
        sent.append(header)
    return sent if has_changed else None


def without_asked(value: str) -> str:
    """Return the value of the header without what was meant for this process alone."""
    if len(value) > MAX_CHARACTERS or f"{ASKED}, " not in value:
        return value
    return ", ".join(filter(None, (part.strip(", \t") for part in _OURS.split(value))))


def timing_of(request: Request) -> str:
    """Return the value of the header: the stages of a request until now, ms; only the total where others may follow."""
    now = time_ns()
    stages = request.totals_until(now)
    durations: dict[str, int] = {}
    for stage, took in (stages or {}).items():
        if not took:
            continue
        name = _name(stage)
        if name not in durations and len(durations) >= MAX_METRICS:
            name = OTHER
        durations[name] = durations.get(name, 0) + took
    durations[TOTAL] = max(now - request.started, 0) if stages is None else sum(durations.values())
    metrics = ", ".join(f"{name};dur={took / 1e6:.3f}" for name, took in durations.items())
    return metrics if wanted() else f"{ASKED}, {metrics}"


@functools.lru_cache(maxsize=256)
def _name(stage: str) -> str:
    """Return a stage's name as that of a metric, which is a token."""
    name = _NO_TOKEN.sub("_", stage) or "_"
    return f"{name}_" if name in (TOTAL, ASKED) else name


# --- The stages of an RPC in its trailing metadata, `server-timing`, for a caller that is to have them.


class StageReport:
    """What one RPC sends of its stages, beside the handler's own trailing metadata."""

    context: Any = None  # gRPC's, once the handler has begun
    trailing: Any = None  # the handler's own metadata, where gRPC's context does not tell it

    def __init__(self, request: Request) -> None:
        self._request = request

    @guarded
    def note_trailing(self, metadata: Any) -> None:
        """Note what the handler has set itself."""
        if iter(metadata) is metadata:  # nobody can read it again
            self.context = None
        else:
            self.trailing = tuple(metadata)

    @guarded
    def renew(self) -> None:
        """Set the metadata to the stages until now: the handler has ended, or what it returned is serialised."""
        context = self.context
        if context is None:
            return
        timing = HEADER, timing_of(self._request)
        if self.trailing is None:
            tell = getattr(context, "trailing_metadata", None)
            self.trailing = tuple((tell() if tell is not None else None) or ())
        context.set_trailing_metadata((*self.trailing, timing))


HEADERS: Final = ("x-request-start", "x-queue-start")
LONGEST_S: Final = 600  # longer than any load balancer lets a request wait: a clock or a unit is wrong
MAX_QUEUE_CHARACTERS: Final = 200
_TIME: Final = re.compile(r"(?:t\s*=\s*)?([0-9]{10,19})(\.[0-9]{1,9})?(?:\s+\w=\S*)*")
# Nanoseconds in one of the header's unit, by how many digits a time between 2001 and 2286 has in it.
_UNITS_NS: Final = {10: 1_000_000_000, 13: 1_000_000, 16: 1_000, 19: 1}

UNREADABLE, FUTURE, TOO_OLD = "unreadable", "in the future", "too old"


def waited_ns(value: str, now_ns: int) -> int | str:
    """Return how long a request with this header has waited, in ns; or the reason why the value is not plausible.

    Where several load balancers have added theirs, the request has waited since the first.
    """
    earliest = None
    for part in value[:MAX_QUEUE_CHARACTERS].split(","):
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


# The attribute for the value of a header, by the header's name in lower case.
RECORDED: Final[dict[str, str]] = {}


def header_attributes(header: Callable[[str], str | None]) -> dict[str, str]:
    """Return the attributes of RECORDED that a request has; `header` returns its header of that name, if any."""
    values = ((attribute, header(name)) for name, attribute in RECORDED.items())
    return {attribute: value for attribute, value in values if value is not None}
