"""`stagetrace breaches`: how many requests missed their objective, which, by how much and in which stage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments import ALONE, NEWEST, list_size, next_command, selection_options
from stagetrace.cli.ask import LONG, reading
from stagetrace.cli.output import show, show_json, show_short, warn
from stagetrace.cli.registry import ANSWERED, BAD, NO_ANSWER, Option
from stagetrace.output import breaches, units
from stagetrace.output.answer import join_reasons
from stagetrace.output.breaches import (
    as_json,
    blame_text,
    groups_as_json,
    owners_of,
    stage_of,
    summary,
    worst_paths,
)
from stagetrace.output.table import COMMON, TIME, TRACE, Column, Table, numeric, table_of
from stagetrace.output.units import Zone, milliseconds, threshold
from stagetrace.store.base import Breaches, Entry, Reader, Selection, Tally
from stagetrace.store.entries import request_text

if TYPE_CHECKING:
    from stagetrace.analysis.breach_details import Group, Groups, Owner

DESCRIPTION: Final = (
    "Show how many of the judged requests missed their latency objective, and which stages and causes took the time;\n"
    "those of the same service, route, stage, cause and line of code are one group each. With --each, list the newest\n"
    "one by one: where the slowest stage waited for another service, the trace is followed down to the service that\n"
    "owns the time, the wire in between included."
)
EXAMPLE: Final = "stagetrace breaches --store jaeger://localhost:16685 --service api --since 15m"

OPTIONS: Final = (
    *selection_options(limit=NEWEST),
    Option(
        "--each",
        "list each breach, newest first, in place of groups of those that are alike; --limit is then of breaches",
    ),
    LONG,
    Option("--fail", "exit with 1 if there is a breach, and with 2 if no request was judged"),
)


def run(args: argparse.Namespace) -> int:
    """Print the breaches and return the exit code."""
    with reading(args) as (reader, selected):
        wanted = replace(selected, limit=list_size(args))
        print_breaches = _print_list if args.each else _print_groups
        tally, is_complete = print_breaches(args, reader, wanted)
    return _fail_code(tally, is_complete=is_complete) if args.fail else ANSWERED


def _print_list(args: argparse.Namespace, reader: Reader, wanted: Selection) -> tuple[Tally, bool]:
    """Print each breach; return the outcomes of all requests, and whether no breach is missing."""
    answer = reader.breaches(wanted)
    owners = owners_of(reader, answer.breaches)
    cuts = [reason for reason in (answer.reason, answer.tally.reason) if reason is not None]
    if args.json:
        show_json(as_json(answer, owners))
    else:
        parts: list[Table | str] = [*summary(reader, answer.tally, wanted, args.tz)]
        if answer.breaches:
            listed = list(zip(answer.breaches, owners, strict=True))
            parts += ["", _table(listed, args.tz), "", *_list_steps(answer, args)]
        parts += [f"Not followed: {reason}." for reason in sorted({one.reason for one in owners if one.reason})]
        show(*parts)
        # A list that ends with the limit has its own line for that.
        cuts = [cut for reason in cuts for cut in reason.split("; ") if not cut.startswith("limit ")]
    warn(join_reasons(cuts))
    return answer.tally, answer.complete


def _print_groups(args: argparse.Namespace, reader: Reader, wanted: Selection) -> tuple[Tally, bool]:
    """Print the groups of breaches; return what `_print_list` does."""
    from stagetrace.analysis import breach_details

    tally = reader.breaches(replace(wanted, limit=1)).tally
    with reader.relations(replace(wanted, breached=True, limit=None)) as relations:
        found = breach_details.ask(relations, wanted.limit)
    cuts = [reason for reason in (relations.reason, tally.reason) if reason is not None]
    if args.json:
        answer = groups_as_json(found, tally, relations.reason, wanted.limit)
        show_json(answer)
        cuts = [answer["reason"]] if "reason" in answer else []
    else:
        said = summary(reader, tally, wanted, args.tz)
        paths = worst_paths(reader, found.groups)
        table = [_group_table(found.groups, paths, args.tz)] if found.groups else []
        steps = _group_steps(found, args) if found.groups else []
        if args.long:
            show(*said, *(one for part in table for one in ("", part)), *(["", *steps] if steps else []))
        else:
            show_short(said, table, steps, has_more=False)
    warn(join_reasons(cuts))
    return tally, relations.complete


def _fail_code(tally: Tally, *, is_complete: bool) -> int:
    """Return the exit code of `--fail`, and report why there is no answer where the output does not."""
    if tally.missed:
        return BAD
    if not tally.judged:
        sys.stderr.write("stagetrace: no request was judged, so that --fail has no answer\n")
        return NO_ANSWER
    return ANSWERED if is_complete else NO_ANSWER


def _table(listed: Sequence[tuple[Entry, Owner]], zone: Zone) -> Table:
    return table_of(
        listed,
        (
            (Column(f"time ({zone.name})", kind=TIME), lambda one: units.shown(one[0].start_unix_nano, zone)),
            (Column("service", kind=COMMON, leaves=3), lambda one: one[0].service),
            (Column("request"), lambda one: request_text(one[0].name, one[0].route)),
            (numeric("took"), lambda one: breaches.column(one[0])),
            (
                Column("allowed", is_number=True, kind=COMMON, leaves=4),
                lambda one: threshold(one[0].threshold_ms),
            ),
            (numeric("over by", 1), lambda one: milliseconds(one[0].overrun_ms)),
            (Column("stage"), lambda one: blame_text(*one)),
            (Column("line of code", kind=COMMON), lambda one: one[0].code or "-"),
            (Column("severity", kind=COMMON, leaves=2), lambda one: one[0].severity or "-"),
            (Column("trace", kind=TRACE), lambda one: one[0].trace_id),
        ),
    )


def _group_table(groups: Sequence[Group], paths: Mapping[tuple[str, str], str], zone: Zone) -> Table:
    return table_of(
        groups,
        (
            (numeric("breaches"), lambda one: f"{one.breaches:,}"),
            (Column("service", kind=COMMON, leaves=3), lambda one: one.service),
            (Column("request"), lambda one: one.route),
            (Column("stage"), lambda one: stage_of(one, paths)),
            (Column("line of code", kind=COMMON), lambda one: one.code or "-"),
            (numeric("median over"), lambda one: milliseconds(one.median_overrun_ms)),
            (numeric("worst over", 1), lambda one: milliseconds(one.worst_overrun_ms)),
            (
                Column(f"first ({zone.name})", kind=TIME, leaves=2),
                lambda one: units.shown(one.first_unix_nano, zone, 0),
            ),
            (Column(f"last ({zone.name})", kind=TIME), lambda one: units.shown(one.last_unix_nano, zone, 0)),
            (Column("worst", kind=TRACE), lambda one: one.worst_trace_id),
        ),
    )


def _list_steps(answer: Breaches, args: argparse.Namespace) -> list[str]:
    newest, count = answer.breaches[0], len(answer.breaches)
    more = _more(count, answer.tally.missed, f"newest {count} of {answer.tally.missed:,}")
    return [*more, f"Next: {next_command(args, 'trace', newest.trace_id, **ALONE)}"]


def _group_steps(found: Groups, args: argparse.Namespace) -> list[str]:
    worst, count = found.groups[0].worst_trace_id, len(found.groups)
    more = _more(count, found.different, f"largest {count} of {found.different:,} groups")
    return [*more, f"Next: {next_command(args, 'why', worst, **ALONE)}"]


def _more(count: int, total: int, which: str) -> list[str]:
    """Return how to see more than the list has."""
    return [f"These are the {which}; --limit {total} shows all."] if count < total else []
