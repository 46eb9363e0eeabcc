"""Trace ids on the command line: a whole id, its first digits, or `latest`."""

from __future__ import annotations

import argparse
import re
import time
from typing import Final

from stagetrace.cli.base import UsageError
from stagetrace.errors import StoreError
from stagetrace.store.base import CANDIDATES, Reader, Selection
from stagetrace.store.follow import newest

LATEST: Final = "latest"
_DIGITS: Final = 32
_HOUR_NS: Final = 3600 * 10**9


def whole_id(reader: Reader, given: str, service: str | None, *, breached: bool) -> str:
    """Return the id of the trace that is meant. Raise StagetraceError where there is none, or more than one.

    `given`: an id, its first digits, or `latest`: the newest request, of a service and breached if these are given.
    """
    if given == LATEST:
        return latest(reader, service, breached=True if breached else None)
    if len(given) == _DIGITS:
        return given
    found = reader.trace_ids(given)
    if not found.ids:
        why = "it may have been sampled out, or be elsewhere" if found.reason is None else found.reason
        raise StoreError(f"there is no trace whose id begins with {given}\n{why}\ngive the whole id, of 32 digits")
    if len(found.ids) > 1:
        more = ", and maybe more" if len(found.ids) == CANDIDATES else ""
        raise UsageError(
            f"{given} begins the ids of {len(found.ids)} traces{more}: {', '.join(found.ids)}\ngive more of it"
        )
    return found.ids[0]


def latest(reader: Reader, service: str | None, *, breached: bool | None) -> str:
    """Return the trace of the newest request. Raise StoreError where there is none."""
    now = time.time_ns()
    for since_ns in (now - _HOUR_NS, now - 30 * 24 * _HOUR_NS, 0):  # a Jaeger looks through less in the shorter ones
        wanted = Selection(since_ns, now + 24 * _HOUR_NS, service=service, breached=breached, limit=1)
        if found := newest(reader, wanted, []):
            return found[-1].trace_id
    what = "breach" if breached else "request"
    raise StoreError(
        f"the store holds no {what}{'' if service is None else f' of {service}'}\nsend one, or name another store"
    )


def trace_id(text: str) -> str:
    """Return an id, its first digits or `latest`."""
    if text == LATEST:
        return text
    if not re.fullmatch(r"[0-9a-fA-F]{4,32}", text) or text == "0" * _DIGITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {LATEST} nor a trace id: 32 hex digits, or the first of them"
        )
    return text.lower()
