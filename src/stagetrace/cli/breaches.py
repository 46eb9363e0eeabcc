"""`stagetrace breaches`: which requests broke their objective, by how much and in which stage."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli import missed, terminal
from stagetrace.cli.base import ANSWERED, BAD, NO_ANSWER
from stagetrace.cli.downstream import WIRE, alone, owner_of
from stagetrace.cli.options import add_selection, selection, store_url
from stagetrace.cli.output import completeness, warn
from stagetrace.cli.terminal import milliseconds, printable, promise
from stagetrace.cli.times import since, utc
from stagetrace.errors import StoreError
from stagetrace.sla.cause import DOWNSTREAM, UNKNOWN
from stagetrace.store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from stagetrace.cli.downstream import Hop, Owner
    from stagetrace.store.base import Breaches, Entry, Reader, Selection, Trace

DESCRIPTION: Final = (
    "List the requests that broke their latency objective, newest first, with the stage that took most of the time.\n"
    "Where that stage waited for another service, the trace is followed down to whoever owns the time, the wire in\n"
    "between included. Times are UTC."
)
EXAMPLE: Final = "stagetrace breaches --store jaeger://localhost:16685 --service api --since 15m"

FOLLOWED: Final = 200  # traces that one answer looks into

_GAP: Final = "  "
_HEAD: Final = ("time (UTC)", "service", "request", "took", "promised", "over by", "stage", "severity", "trace")
_NUMBERS: Final = frozenset({"took", "promised", "over by"})


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_selection(parser)
    parser.add_argument("--fail", action="store_true", help="exit with 1 if there is a breach")


def run(args: argparse.Namespace) -> int:
    """Print the breaches and return the exit code."""
    url = store_url(args)
    wanted = selection(args, url)
    with open_store(url) as reader:
        answer = reader.breaches(wanted)
        owners = owners_of(reader, answer.breaches)
        if args.json:
            lines = [json.dumps(as_json(answer, owners))]
        elif answer.breaches:
            lines = [*_table(answer.breaches, owners), "", *_summary(answer.breaches, wanted.since_ns, url)]
            lines += [f"Not followed: {reason}." for reason in sorted({one.reason for one in owners if one.reason})]
        else:
            lines = [_nothing(reader, wanted)]
    sys.stdout.write("\n".join([*lines, ""]))
    warn(answer.complete, answer.reason)
    if not args.fail:
        return ANSWERED
    return BAD if answer.breaches else ANSWERED if answer.complete else NO_ANSWER


def owners_of(reader: Reader, entries: Sequence[Entry]) -> list[Owner]:
    """Return who owns the time of each breach."""
    traces: dict[str, Trace | str] = {}
    return [_owner(reader, entry, traces) for entry in entries]


def _owner(reader: Reader, entry: Entry, traces: dict[str, Trace | str]) -> Owner:
    """Return who owns the time of one breach; `traces` remembers those looked into, or why that could not be."""
    if entry.cause != DOWNSTREAM:
        return alone(entry)
    if entry.trace_id not in traces:
        if len(traces) >= FOLLOWED:
            return alone(entry, f"only {FOLLOWED} traces are looked into, those of the newest")
        try:
            traces[entry.trace_id] = reader.trace(entry.trace_id)
        except StoreError as error:
            traces[entry.trace_id] = str(error).partition("\n")[0]
    trace = traces[entry.trace_id]
    if isinstance(trace, str):
        return alone(entry, trace)
    top = next((span for span in trace.spans if span.span_id == entry.span_id), None)
    return alone(entry, f"trace {entry.trace_id} lacks its span") if top is None else owner_of(top, trace.spans)


def as_json(answer: Breaches, owners: Sequence[Owner]) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {
        **completeness(answer.complete, answer.reason),
        "breaches": [_entry_json(entry, owner) for entry, owner in zip(answer.breaches, owners, strict=True)],
    }


def _entry_json(entry: Entry, owner: Owner) -> dict[str, Any]:
    return {
        "trace_id": entry.trace_id,
        "span_id": entry.span_id,
        "service": entry.service,
        "name": entry.name,
        "route": entry.route,
        "start_unix_nano": entry.start_unix_nano,
        "duration_ms": entry.duration_ms,
        "threshold_ms": entry.threshold_ms,
        "overrun_ms": entry.overrun_ms,
        "objective": entry.objective,
        "stage": entry.stage,
        "severity": entry.severity,
        "cause": entry.cause,
        "evidence": entry.evidence,
        "missed": missed.as_json(entry),
        "model": entry.model,
        "stages": dict(entry.stages),
        "peer": owner.path[0].peer,
        "owner": {**_hop_json(owner.last), **completeness(owner.complete, owner.reason)},
        "path": [_hop_json(hop) for hop in owner.path],
    }


def _hop_json(hop: Hop) -> dict[str, Any]:
    return {"service": hop.service, "stage": hop.stage, "duration_ms": hop.duration_ms, "peer": hop.peer}


def _table(entries: Sequence[Entry], owners: Sequence[Owner]) -> list[str]:
    """Return the lines for people: one per breach, or two where the terminal is too narrow for one."""
    rows = [_cells(entry, owner) for entry, owner in zip(entries, owners, strict=True)]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    if not terminal.is_bounded() or sum(widths) + len(_GAP) * (len(widths) - 1) <= terminal.width():
        return [_aligned(cells, widths) for cells in (_HEAD, *rows)]
    lines = ["time (UTC), service, request, severity; below: trace, took of promised, stage"]
    for when, service, request, took, promised, _, stage, severity, trace_id in rows:
        lines.append(_GAP.join((when, service, request, severity)))
        lines.append(f"  {trace_id}  {took} of {promised}, {stage}")
    return lines


def _cells(entry: Entry, owner: Owner) -> tuple[str, ...]:
    request = entry.name if entry.route is None or entry.route in entry.name else f"{entry.name} {entry.route}"
    cells = (
        utc(entry.start_unix_nano),
        entry.service,
        request,
        missed.column(entry),
        "-" if entry.threshold_ms is None else promise(entry.threshold_ms),
        "-" if entry.overrun_ms is None else milliseconds(entry.overrun_ms),
        _blamed(entry, owner),
        entry.severity or "-",
        entry.trace_id,
    )
    return tuple(printable(cell) for cell in cells)


def _blamed(entry: Entry, owner: Owner) -> str:
    """Return the slowest stage and its cause, or the way down to who owns the time."""
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


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if head in _NUMBERS else cell.ljust(width)
        for head, cell, width in zip(_HEAD, cells, widths, strict=True)
    )
    return _GAP.join(padded).rstrip()


def _summary(entries: Sequence[Entry], since_ns: int, url: str) -> list[str]:
    services = {entry.service for entry in entries}
    found = f"{len(entries)} breach{'es' if len(entries) > 1 else ''} in {', '.join(sorted(map(printable, services)))}"
    causes = Counter(printable(entry.cause) for entry in entries if entry.cause is not None)
    by_cause = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    command = f"stagetrace trace {entries[0].trace_id} --store {shlex.quote(url)}"
    return [f"{found}{since(since_ns)}{by_cause and ': '}{by_cause}.", f"See the newest: {command}"]


def _nothing(reader: Reader, wanted: Selection) -> str:
    """Return what an empty answer means: an empty store must not read like a kept promise."""
    services = (wanted.service,) if wanted.service is not None else reader.services()
    if not services:
        return "The store holds no spans of any service yet."
    narrowed = " of those selected" if replace(wanted, service=None, limit=None).is_filtered else ""
    return f"No breaches{narrowed} in {', '.join(map(printable, services))}{since(wanted.since_ns)}."
