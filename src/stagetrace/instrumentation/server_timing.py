"""The header `Server-Timing`, by which a service reports the stages of a request to its caller (docs/decisions/050).

    server-timing: queue;dur=1.204, preprocess;dur=0.811, inference;dur=40.093, total;dur=42.108

Over HTTP it goes out with the response's headers, and holds the time until then; of an RPC it is trailing metadata.
"""

from __future__ import annotations

import functools
import re
from time import time_ns
from typing import TYPE_CHECKING, Final

from stagetrace import config

if TYPE_CHECKING:
    from stagetrace.recording.record import RequestRecord

HEADER: Final = "server-timing"
CALLER: Final = "stagetrace-caller"  # a header of requests that our clients make: their reader understands ours
TOTAL: Final = "total"
OTHER: Final = "other"
MAX_METRICS: Final = 16  # stages beyond are summed, so that the header stays small
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


def timing_of(record: RequestRecord) -> str:
    """Return the value of the header: the stages of a request until now, ms; only the total where others may follow."""
    now = time_ns()
    stages = record.totals_until(now)
    if stages is None:
        return f"{TOTAL};dur={max(now - record.started, 0) / 1e6:.3f}"
    durations: dict[str, int] = {}
    for stage, took in stages.items():
        name = _name(stage)
        if name not in durations and len(durations) >= MAX_METRICS:
            name = OTHER
        durations[name] = durations.get(name, 0) + took
    durations[TOTAL] = sum(durations.values())
    return ", ".join(f"{name};dur={took / 1e6:.3f}" for name, took in durations.items())


@functools.lru_cache(maxsize=256)
def _name(stage: str) -> str:
    """Return a stage's name as that of a metric, which is a token; a stage is not the total."""
    name = _NO_TOKEN.sub("_", stage) or "_"
    return f"{name}_" if name == TOTAL else name
