"""`stagetrace requests`: single requests, by time, duration, overrun or the time of one stage."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from stagetrace.cli.arguments import SHOWN, Suggested, count, list_size, selection_options, utf8
from stagetrace.cli.ask import reading
from stagetrace.cli.output import remark, show_result
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output.answer import no_requests
from stagetrace.output.table import Table, numeric
from stagetrace.output.table_rows import cells, columns
from stagetrace.output.units import Zone, milliseconds
from stagetrace.store.follow import newest_root
from stagetrace.store.reductions import STAGE_COLUMNS
from stagetrace.text import printable

DESCRIPTION: Final = "List requests, the newest first or the slowest, with the time allowed and the verdict."
EXAMPLE: Final = "stagetrace requests --slowest 10 --route /predict"
_LAST: Final = 9  # where there is a column for one stage, the one that names the slowest may leave
_ORDERS: Final = ("start", "duration", "overrun")

_VERDICT: Final = "verdict"
OPTIONS: Final = (
    *selection_options(),
    Option(
        "--sort BY",
        f"greatest first by one of {', '.join(_ORDERS)}, or by the time in a stage, by its name ("
        f"{', '.join(STAGE_COLUMNS)}, or one of your own; other: all of those); default: start",
        utf8,
        choices=Suggested((*_ORDERS, *STAGE_COLUMNS, "other")),
    ),
    Option("--top N", f"show only the first N of that order; default: {SHOWN}, with --json or --limit all", count),
    Option("--slowest N", "short for --sort duration --top N", count),
    Option("--breached", "only those that missed their objective", alone=_VERDICT),
    Option("--kept", "only those that did not, judged or not", alone=_VERDICT),
)


def run(args: argparse.Namespace) -> int:
    """Print the requests and return the exit code."""
    if args.top and args.slowest:
        raise UsageError("--slowest N is a --top already\ngive one of them")
    sort, top = args.sort or ("duration" if args.slowest else "start"), args.top or args.slowest or list_size(args)
    if args.limit is not None and not (args.top or args.slowest):
        top = None  # all of those that are meant
    breached = True if args.breached else False if args.kept else None
    with reading(args, breached=breached) as (reader, wanted), reader.relations(wanted) as relations:
        from stagetrace.store import answers

        found = answers.requests(relations, sort, top)
        if found and sort not in answers.SORTS and sort not in found[0]["stages"]:
            names = ", ".join(map(printable, (*_ORDERS, *answers.stage_names(relations))))
            raise UsageError(f"cannot sort by {sort!r}: no request here has a stage of this name\nthere are {names}")
        root = None if found else newest_root(reader, wanted)
        total = len(found) if top is None or len(found) < top else answers.count(relations)
    more = [f"{len(found)} of {total:,} requests shown; more: --top N"] if total > len(found) else []
    parts: list[Table | str] = [_table(found, sort, args.tz), *more] if found else [no_requests(wanted, args.tz)]
    code = show_result(args, {"total": total, "requests": found}, parts, relations.reason)
    if root is not None:
        remark(f"{root.note}: stagetrace trace {root.trace_id}")
    return code


def _table(found: Sequence[dict[str, Any]], sort: str, zone: Zone) -> Table:
    """Return the table, with a column for the stage that it is sorted by."""
    from stagetrace.store.answers import SORTS

    heads, rows = columns(zone), [cells(one, zone) for one in found]
    if sort in _ORDERS:
        return Table(heads, rows)
    totals = [one[SORTS[sort]] if sort in SORTS else one["stages"].get(sort) for one in found]
    rows = [(*row[:-1], milliseconds(total), row[-1]) for row, total in zip(rows, totals, strict=True)]
    *first, stage, trace = heads
    return Table((*first, stage._replace(leaves=_LAST), numeric(sort), trace), rows)
