"""`stagetrace breaches`: which requests broke their objective, by how much and in which stage."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli import terminal
from stagetrace.cli.base import ANSWERED, BAD, NO_ANSWER
from stagetrace.cli.options import add_selection, selection, store_url
from stagetrace.cli.output import completeness, warn
from stagetrace.cli.terminal import milliseconds, printable, promise
from stagetrace.cli.times import since, utc
from stagetrace.store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from stagetrace.store.base import Breaches, Entry, Reader, Selection

DESCRIPTION: Final = "List the requests that broke their latency objective, newest first. Times are UTC."
EXAMPLE: Final = "stagetrace breaches --store jaeger://localhost:16685 --service api --since 15m"

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
        if args.json:
            lines = [json.dumps(as_json(answer))]
        elif answer.breaches:
            lines = [*_table(answer.breaches), "", *_summary(answer.breaches, wanted.since_ns, url)]
        else:
            lines = [_nothing(reader, wanted)]
    sys.stdout.write("\n".join([*lines, ""]))
    warn(answer.complete, answer.reason)
    if not args.fail:
        return ANSWERED
    return BAD if answer.breaches else ANSWERED if answer.complete else NO_ANSWER


def as_json(answer: Breaches) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {
        **completeness(answer.complete, answer.reason),
        "breaches": [_entry_json(entry) for entry in answer.breaches],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
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
        "model": entry.model,
        "stages": dict(entry.stages),
    }


def _table(entries: Sequence[Entry]) -> list[str]:
    """Return the lines for people: one per breach, or two where the terminal is too narrow for one."""
    rows = [_cells(entry) for entry in entries]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    if not terminal.is_bounded() or sum(widths) + len(_GAP) * (len(widths) - 1) <= terminal.width():
        return [_aligned(cells, widths) for cells in (_HEAD, *rows)]
    lines = ["time (UTC), service, request, severity; below: trace, took of promised, stage"]
    for when, service, request, took, promised, _, stage, severity, trace_id in rows:
        lines.append(_GAP.join((when, service, request, severity)))
        lines.append(f"  {trace_id}  {took} of {promised}, {stage}")
    return lines


def _cells(entry: Entry) -> tuple[str, ...]:
    request = entry.name if entry.route is None or entry.route in entry.name else f"{entry.name} {entry.route}"
    cause = f" ({entry.cause})" if entry.cause not in (None, "unknown") else ""
    cells = (
        utc(entry.start_unix_nano),
        entry.service,
        request,
        milliseconds(entry.duration_ms),
        "-" if entry.threshold_ms is None else promise(entry.threshold_ms),
        "-" if entry.overrun_ms is None else milliseconds(entry.overrun_ms),
        f"{entry.stage or '-'}{cause}",
        entry.severity or "-",
        entry.trace_id,
    )
    return tuple(printable(cell) for cell in cells)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if head in _NUMBERS else cell.ljust(width)
        for head, cell, width in zip(_HEAD, cells, widths, strict=True)
    )
    return _GAP.join(padded).rstrip()


def _summary(entries: Sequence[Entry], since_ns: int, url: str) -> list[str]:
    services = {entry.service for entry in entries}
    found = f"{len(entries)} breach{'es' if len(entries) > 1 else ''} in {', '.join(sorted(map(printable, services)))}"
    command = f"stagetrace trace {entries[0].trace_id} --store {shlex.quote(url)}"
    return [f"{found}{since(since_ns)}.", f"See the newest: {command}"]


def _nothing(reader: Reader, wanted: Selection) -> str:
    """Return what an empty answer means: an empty store must not read like a kept promise."""
    services = (wanted.service,) if wanted.service is not None else reader.services()
    if not services:
        return "The store holds no spans of any service yet."
    narrowed = " of those selected" if replace(wanted, service=None, limit=None).is_filtered else ""
    return f"No breaches{narrowed} in {', '.join(map(printable, services))}{since(wanted.since_ns)}."
