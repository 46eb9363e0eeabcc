"""`stagetrace breaches`: how many requests missed their objective, which, by how much and in which stage."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from stagetrace.analysis.time_owner import WIRE, Hop, Owner, owner_of
from stagetrace.cli.arguments.options import NEWEST, add_selection, selection, shown, store_url
from stagetrace.cli.base import ANSWERED, BAD, NO_ANSWER
from stagetrace.cli.output.lines import show, show_json, warn
from stagetrace.cli.output.terminal import watched
from stagetrace.errors import StoreError
from stagetrace.output import missed_bounds, sampling, times
from stagetrace.output.keys import completeness, keys_of
from stagetrace.output.table_layout import COMMON, TIME, TRACE, Column, Table, numeric, table_of
from stagetrace.output.tally import summary
from stagetrace.output.times import Zone
from stagetrace.output.units import milliseconds, threshold
from stagetrace.sla.cause import DOWNSTREAM, UNKNOWN
from stagetrace.store import open_store
from stagetrace.store.base import Breaches, Entry, Reader, Trace
from stagetrace.store.entries import request_text

DESCRIPTION: Final = (
    "Show how many of the judged requests missed their latency objective, and which stages and causes took the time;\n"
    "list the newest of them, with the stage that took most of the time. Where that stage waited for another service,\n"
    "the trace is followed down to the service that owns the time, the wire in between included."
)
EXAMPLE: Final = "stagetrace breaches --store jaeger://localhost:16685 --service api --since 15m"

FOLLOWED: Final = 200  # traces that one answer looks into


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_selection(parser, limit=NEWEST)
    parser.add_argument(
        "--fail", action="store_true", help="exit with 1 if there is a breach, and with 2 if no request was judged"
    )


def run(args: argparse.Namespace) -> int:
    """Print the breaches and return the exit code."""
    url = store_url(args)
    wanted = replace(selection(args, url), limit=shown(args))
    with open_store(url) as reader, watched(reader):
        answer = reader.breaches(wanted)
        owners = owners_of(reader, answer.breaches)
        services = (wanted.service,) if wanted.service is not None else reader.services()
    cuts = [reason for reason in (answer.reason, answer.tally.reason) if reason is not None]
    if args.json:
        show_json(as_json(answer, owners))
    else:
        parts: list[Table | str] = [*summary(answer.tally, wanted, services, args.tz)]
        if answer.breaches:
            parts += ["", _table(list(zip(answer.breaches, owners, strict=True)), args.tz), "", *_steps(answer, url)]
        parts += [f"Not followed: {reason}." for reason in sorted({one.reason for one in owners if one.reason})]
        show(*parts)
        # A list that ends with the limit has its own line for that.
        cuts = [cut for reason in cuts for cut in reason.split("; ") if not cut.startswith("limit ")]
    warn("; ".join(cuts) or None)
    return _failed(answer) if args.fail else ANSWERED


def _failed(answer: Breaches) -> int:
    """Return the exit code of `--fail`, and report why there is no answer where the output does not."""
    if answer.tally.missed:
        return BAD
    if not answer.tally.judged:
        sys.stderr.write("stagetrace: no request was judged, so that --fail has no answer\n")
        return NO_ANSWER
    return ANSWERED if answer.complete else NO_ANSWER


def owners_of(reader: Reader, entries: Sequence[Entry]) -> list[Owner]:
    """Return the owner of the time of each breach; traces of those that waited for another service are read at once."""
    followed = list(dict.fromkeys(one.trace_id for one in entries if one.cause == DOWNSTREAM))
    traces: dict[str, Trace | str] = dict.fromkeys(
        followed[FOLLOWED:], f"only {FOLLOWED} traces are looked into, those of the newest"
    )
    followed = followed[:FOLLOWED]
    try:
        traces.update((one.trace_id, one) for one in (reader.traces(followed) if followed else ()))
    except StoreError as error:
        traces.update(dict.fromkeys(followed, str(error).partition("\n")[0]))
    return [_owner(entry, traces) for entry in entries]


def _owner(entry: Entry, traces: Mapping[str, Trace | str]) -> Owner:
    """Return the owner of the time of one breach, by its trace, or by the reason why that could not be followed."""
    if entry.cause != DOWNSTREAM:
        return _not_followed(entry)
    trace = traces.get(entry.trace_id, f"there is no trace {entry.trace_id}")
    if isinstance(trace, str):
        return _not_followed(entry, trace)
    top = next((span for span in trace.spans if span.span_id == entry.span_id), None)
    if top is None:
        return _not_followed(entry, f"trace {entry.trace_id} lacks its span")
    return owner_of(top, trace.spans)


def _not_followed(entry: Entry, reason: str | None = None) -> Owner:
    """Return the owner of a breach whose trace need not, or cannot, be followed: its own slowest stage."""
    took_ms = entry.duration_ms if entry.stage is None else entry.stages.get(entry.stage, 0.0)
    return Owner((Hop(entry.service, entry.stage, took_ms),), reason)


def as_json(answer: Breaches, owners: Sequence[Owner]) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    tally = answer.tally
    cuts = [reason for reason in (answer.reason, tally.reason) if reason is not None]
    return {
        **completeness("; ".join(cuts) or None),
        "requests": tally.requests,
        "judged": tally.judged,
        "missed": tally.missed,
        "excluded": tally.excluded,
        "overrun_ms": tally.overrun_ms,
        "lost": [{**asdict(one), "share": one.overrun_ms / (tally.overrun_ms or 1)} for one in tally.lost],
        "counted_all": tally.reason is None,
        **sampling.keys(tally.sample),
        "newest_request_unix_nano": tally.newest_unix_nano,
        "breaches": [_entry_json(entry, owner) for entry, owner in zip(answer.breaches, owners, strict=True)],
    }


def _entry_json(entry: Entry, owner: Owner) -> dict[str, Any]:
    return keys_of(
        entry,
        "end_unix_nano",
        duration_ms=entry.duration_ms,
        missed=missed_bounds.as_json(entry),
        peer=owner.path[0].peer,
        owner={**owner.last._asdict(), **completeness(owner.reason)},
        path=[hop._asdict() for hop in owner.path],
    )


def _table(listed: Sequence[tuple[Entry, Owner]], zone: Zone) -> Table:
    return table_of(
        listed,
        (
            (Column(f"time ({zone.name})", kind=TIME), lambda one: times.shown(one[0].start_unix_nano, zone)),
            (Column("service", kind=COMMON, leaves=3), lambda one: one[0].service),
            (Column("request"), lambda one: request_text(one[0].name, one[0].route)),
            (numeric("took"), lambda one: missed_bounds.column(one[0])),
            (
                Column("allowed", is_number=True, kind=COMMON, leaves=4),
                lambda one: "-" if one[0].threshold_ms is None else threshold(one[0].threshold_ms),
            ),
            (
                numeric("over by", 1),
                lambda one: "-" if one[0].overrun_ms is None else milliseconds(one[0].overrun_ms),
            ),
            (Column("stage"), lambda one: _blamed(*one)),
            (Column("severity", kind=COMMON, leaves=2), lambda one: one[0].severity or "-"),
            (Column("trace", kind=TRACE), lambda one: one[0].trace_id),
        ),
    )


def _blamed(entry: Entry, owner: Owner) -> str:
    """Return the slowest stage and its cause, or the way down to the owner of the time."""
    stage = entry.stage or "-"
    if owner.last.stage == WIRE:
        below = [f"{hop.service} {hop.stage}" for hop in owner.path[1:-1]]
        return " > ".join([stage, *below, f"wire to {owner.last.peer}"])
    below = [f"{hop.service} {hop.stage or '-'}" for hop in owner.path[1:]]
    if owner.last.peer is not None:
        below.append(f"{owner.last.peer} (no trace)")
    if below:
        return " > ".join([stage, *below])
    return stage if entry.cause in (None, UNKNOWN) else f"{stage} ({entry.cause})"


def _steps(answer: Breaches, url: str) -> list[str]:
    """Return how to see more than the list has."""
    steps = []
    if len(answer.breaches) < answer.tally.missed:
        of = f"the newest {len(answer.breaches)} of {answer.tally.missed:,}"
        steps.append(f"These are {of}; --limit {answer.tally.missed} shows all.")
    return [*steps, f"See the newest: stagetrace trace {answer.breaches[0].trace_id} --store {shlex.quote(url)}"]
