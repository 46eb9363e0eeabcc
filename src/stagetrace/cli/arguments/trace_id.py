"""Trace ids on the command line: a whole id, its first digits, or `latest`."""

from __future__ import annotations

import argparse
import re
from typing import Final

from stagetrace.cli.arguments.options import Suggested
from stagetrace.cli.registry import UsageError
from stagetrace.errors import UnknownTrace
from stagetrace.store.base import CANDIDATES, Reader
from stagetrace.store.follow import Latest, latest

LATEST: Final = "latest"
_DIGITS: Final = 32


def add_trace_id(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a trace."""
    parser.add_argument(
        "id",
        metavar="ID",
        type=trace_id,
        choices=Suggested((LATEST,)),
        help="trace id, or its first digits (4 or more), or latest: the newest request, else root",
    )


def whole_id(reader: Reader, given: str, service: str | None, *, breached: bool) -> Latest:
    """Return the trace that is meant. Raise StagetraceError where there is none, or more than one.

    `given`: an id, its first digits, or `latest`: the newest request, of a service and breached if these are given;
    where there is no request, the newest root, which its note says.
    """
    if given == LATEST:
        return latest(reader, service, breached=True if breached else None)
    if len(given) == _DIGITS:
        return Latest(given)
    found = reader.trace_ids(given)
    if not found.ids:
        why = "it may have been sampled out, or be elsewhere" if found.reason is None else found.reason
        raise UnknownTrace(f"there is no trace whose id begins with {given}\n{why}\ngive the whole id, of 32 digits")
    if len(found.ids) > 1:
        more = ", and maybe more" if len(found.ids) == CANDIDATES else ""
        raise UsageError(
            f"{given} begins the ids of {len(found.ids)} traces{more}: {', '.join(found.ids)}\ngive more of it"
        )
    return Latest(found.ids[0])


def trace_id(text: str) -> str:
    """Return an id, its first digits or `latest`."""
    if text == LATEST:
        return text
    if not re.fullmatch(r"[0-9a-fA-F]{4,32}", text) or text == "0" * _DIGITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {LATEST} nor a trace id: 32 hex digits, or the first of them"
        )
    return text.lower()
