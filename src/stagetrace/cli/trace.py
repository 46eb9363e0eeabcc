"""`stagetrace trace`: one request, stage by stage."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli import terminal
from stagetrace.cli.base import ANSWERED
from stagetrace.cli.critical_path import critical_path
from stagetrace.cli.options import add_json, add_store, store_url
from stagetrace.cli.output import completeness, warn
from stagetrace.cli.waterfall import ASCII, BLOCKS, render
from stagetrace.store import open_store
from stagetrace.store.rows import json_value

if TYPE_CHECKING:
    from stagetrace.store.base import SpanRow, Trace

DESCRIPTION: Final = (
    "Draw one trace: the verdict on each entry span, then every span with its time, its share of the entry span,\n"
    "and whether it is on the critical path."
)
EXAMPLE: Final = "stagetrace trace 4bf92f3577b34da6a3ce929d0e0e4736 --store jaeger://localhost:16685"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("id", metavar="ID", type=_trace_id, help="trace id, 32 hex digits")
    add_store(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the trace and return the exit code."""
    with open_store(store_url(args)) as reader:
        trace = reader.trace(args.id)
    if args.json:
        lines = [json.dumps(as_json(trace), allow_nan=False)]
    else:
        lines = render(trace, terminal.width(), BLOCKS if terminal.shows_blocks() else ASCII)
    sys.stdout.write("\n".join([*lines, ""]))
    warn(trace.complete, trace.reason)
    return ANSWERED


def as_json(trace: Trace) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    critical = critical_path(trace.spans)
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


def _trace_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{32}", text) or not int(text, 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a trace id, which has 32 hex digits")
    return text.lower()
