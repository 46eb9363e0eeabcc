"""`stagetrace trace`: one request, stage by stage."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from stagetrace.cli import output
from stagetrace.cli.arguments import BREACHED, JSON, LATEST, STORE, TRACE, ZONE, store_url, utf8, whole_id
from stagetrace.cli.output import remark, show_json, warn
from stagetrace.cli.registry import ANSWERED, Option, UsageError
from stagetrace.output.trace import ASCII, BLOCKS, as_json, render
from stagetrace.store import open_store

DESCRIPTION: Final = (
    "Draw one trace: the verdict on each entry span, then every span with its time, its share of the entry span,\n"
    "and whether it is on the critical path."
)
EXAMPLE: Final = "stagetrace trace 4bf92f35 --store jaeger://localhost:16685"
OPTIONS: Final = (
    TRACE,
    STORE,
    BREACHED,
    Option("--service NAME", "with latest: only requests of this service", utf8),
    ZONE,
    JSON,
)


def run(args: argparse.Namespace) -> int:
    """Print the trace and return the exit code."""
    if args.id != LATEST and (args.breached or args.service is not None):
        raise UsageError("--breached and --service choose the latest, and an id is given\nleave them out")
    with open_store(store_url(args)) as reader:
        meant = whole_id(reader, args.id, args.service, breached=args.breached)
        trace = reader.trace(meant.trace_id)
    if args.json:
        show_json(as_json(trace))
    else:
        look = BLOCKS if output.shows_blocks() else ASCII
        lines = render(trace, output.terminal_width(), look, args.tz, wrapped=output.is_bounded())
        sys.stdout.write("\n".join([*lines, ""]))
    warn(trace.reason)
    remark(meant.note)
    return ANSWERED
