"""`stagetrace trace`: one request, stage by stage."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis.critical_path import on_path
from stagetrace.cli.base import ANSWERED, UsageError
from stagetrace.cli.options import Suggested, add_json, add_store, add_zone, store_url, utf8
from stagetrace.cli.output import terminal
from stagetrace.cli.output.lines import completeness, warn
from stagetrace.cli.output.waterfall import ASCII, BLOCKS, render
from stagetrace.cli.tail import recent
from stagetrace.errors import StoreError
from stagetrace.store import Selection, open_store
from stagetrace.store.base import CANDIDATES
from stagetrace.store.rows import json_value

if TYPE_CHECKING:
    from stagetrace.store.base import Reader, SpanRow, Trace

DESCRIPTION: Final = (
    "Draw one trace: the verdict on each entry span, then every span with its time, its share of the entry span,\n"
    "and whether it is on the critical path."
)
EXAMPLE: Final = "stagetrace trace 4bf92f35 --store jaeger://localhost:16685"
LATEST: Final = "latest"
_DIGITS: Final = 32
_HOUR_NS: Final = 3600 * 10**9


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "id",
        metavar="ID",
        type=trace_id,
        choices=Suggested((LATEST,)),
        help="trace id, or its first digits (4 or more), or latest: the newest request",
    )
    add_store(parser)
    parser.add_argument("--breached", action="store_true", help="with latest: the newest breach")
    parser.add_argument("--service", metavar="NAME", type=utf8, help="with latest: only requests of this service")
    add_zone(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the trace and return the exit code."""
    if args.id != LATEST and (args.breached or args.service is not None):
        raise UsageError("--breached and --service choose the latest, and an id is given\nleave them out")
    with open_store(store_url(args)) as reader:
        trace = reader.trace(whole_id(reader, args.id, args.service, breached=args.breached))
    if args.json:
        lines = [json.dumps(as_json(trace), allow_nan=False)]
    else:
        look = BLOCKS if terminal.shows_blocks() else ASCII
        lines = render(trace, terminal.width(), look, args.tz, wrapped=terminal.is_bounded())
    sys.stdout.write("\n".join([*lines, ""]))
    warn(trace.complete, trace.reason)
    return ANSWERED


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
        if newest := recent(reader, wanted, []):
            return newest[-1].trace_id
    what = "breach" if breached else "request"
    raise StoreError(
        f"the store holds no {what}{'' if service is None else f' of {service}'}\nsend one, or name another store"
    )


def as_json(trace: Trace) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    critical = on_path(trace.spans)
    return {
        "trace_id": trace.trace_id,
        **completeness(trace.complete, trace.reason),
        "spans": [_span_json(span, place in critical) for place, span in enumerate(trace.spans)],
    }


def _span_json(span: SpanRow, is_critical: bool) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "service": span.service,
        "kind": span.kind,
        "status": span.status,
        "start_unix_nano": span.start_unix_nano,
        "end_unix_nano": span.end_unix_nano,
        "duration_ms": span.duration_ns / 1e6,
        "is_critical": is_critical,
        "attributes": {key: json_value(value) for key, value in span.attributes.items()},
    }


def trace_id(text: str) -> str:
    """Return an id, its first digits or `latest`."""
    if text == LATEST:
        return text
    if not re.fullmatch(r"[0-9a-fA-F]{4,32}", text) or text == "0" * _DIGITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither {LATEST} nor a trace id: 32 hex digits, or the first of them"
        )
    return text.lower()
