"""The header `Server-Timing`, by which a service reports the stages of a request to its caller.

    server-timing: queue;dur=1.204, preprocess;dur=0.811, inference;dur=40.093, total;dur=42.108

Over HTTP it goes out with the response's headers, and holds the time until then; of an RPC it is trailing metadata.
Where only stagetrace is to have it, `stagetrace` stands in front: a service that hands on all headers of the responses
that it gets would else show it to its own callers. Such a caller names itself by a request header of its own, not by
a member of `tracestate`, which services pass on to their own callees.
"""

from __future__ import annotations

import functools
import re
from time import time_ns
from typing import TYPE_CHECKING, Final

from stagetrace import config

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from stagetrace.recording.record import RequestRecord

HEADER: Final = "server-timing"
NAMES: Final = (HEADER, HEADER.encode())
CALLER: Final = "stagetrace-caller"  # a header of requests that our clients make: their reader understands ours
TOTAL: Final = "total"
ASKED: Final = "stagetrace"  # a metric without a value, before those that the caller has asked for
OTHER: Final = "other"
MAX_METRICS: Final = 16  # stages beyond are summed, so that the header stays small
MAX_CHARACTERS: Final = 4_096  # of a header that is looked at
_OURS: Final = re.compile(rf'(?<![^,\s]){ASKED}, [^"]{{0,1500}}?{TOTAL};dur=[0-9.]+')
_NO_TOKEN: Final = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")  # what no name of a metric may hold


@functools.cache
def _wanted() -> bool | None:
    return config.SERVER_TIMING.read()


def asks() -> bool:
    """Return whether requests that we make tell that their caller is stagetrace."""
    return _wanted() is not False


def is_for(caller: object) -> bool:
    """Return whether a response carries the header, where the request's header CALLER has this value, None: none."""
    wanted = _wanted()
    return caller is not None if wanted is None else wanted


has_received = False  # whether any response to this process had ASKED


def with_timing(
    headers: Iterable[tuple[Any, Any]], caller: object, record: RequestRecord, name: str | bytes
) -> list[Any] | None:
    """Return the headers of a response as they are to be sent; None: as they are.

    They get one of this `name` with the stages of its request, if its caller wants that, and lose what a callee has
    reported to this process. All are bytes, or str, as the name is.
    """
    sent = _handed_on(headers) if has_received else None
    if is_for(caller):
        timing = timing_of(record)
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


def timing_of(record: RequestRecord) -> str:
    """Return the value of the header: the stages of a request until now, ms; only the total where others may follow."""
    now = time_ns()
    stages = record.totals_until(now)
    durations: dict[str, int] = {}
    for stage, took in (stages or {}).items():
        if not took:
            continue
        name = _name(stage)
        if name not in durations and len(durations) >= MAX_METRICS:
            name = OTHER
        durations[name] = durations.get(name, 0) + took
    durations[TOTAL] = max(now - record.started, 0) if stages is None else sum(durations.values())
    metrics = ", ".join(f"{name};dur={took / 1e6:.3f}" for name, took in durations.items())
    return metrics if _wanted() else f"{ASKED}, {metrics}"


@functools.lru_cache(maxsize=256)
def _name(stage: str) -> str:
    """Return a stage's name as that of a metric, which is a token."""
    name = _NO_TOKEN.sub("_", stage) or "_"
    return f"{name}_" if name in (TOTAL, ASKED) else name
