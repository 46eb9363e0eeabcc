"""`stagetrace tail`: the newest requests, and with -f those that come, as they come."""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

from stagetrace.cli import output
from stagetrace.cli.arguments import seconds, selection, selection_options, store_url
from stagetrace.cli.output import show_json, show_result, warn
from stagetrace.cli.registry import ANSWERED, Option
from stagetrace.output.answer import join_reasons, no_requests
from stagetrace.output.table import Table
from stagetrace.output.table_rows import cells, columns
from stagetrace.output.units import Zone
from stagetrace.store import open_store
from stagetrace.store.answers import request_of
from stagetrace.store.base import SpanRow
from stagetrace.store.follow import follow, newest
from stagetrace.text import printable

DESCRIPTION: Final = """Show the newest requests, the newest last, and with -f go on with those that come, until Ctrl-C.

Jaeger does not report what is new, so there -f queries the last two minutes again and again: what arrives later
than that after its start is not shown."""
EXAMPLE: Final = "stagetrace tail -f --route /predict"
_NEWEST: Final = 10
_REMEMBERED: Final = 10_000
_WIDTHS: Final = (12, 10, 22, 10, 6, 9, 7, 7, 10, 8)  # of `columns`

OPTIONS: Final = (
    *selection_options(until=False, sla=False),
    Option("-f --follow", "go on; with --json, one object on each line"),
    Option("--interval SECONDS", "how often -f asks the store; default: 1", seconds, 1.0),
)


def run(args: argparse.Namespace) -> int:
    """Print requests and return the exit code."""
    url = store_url(args)
    wanted = selection(args, url)
    with open_store(url) as reader:
        comes = follow(reader, wanted, args.interval) if args.follow else None
        if comes is not None:
            next(comes)  # from here on nothing new is missed
        cuts: list[str] = []
        found = newest(reader, replace(wanted, limit=args.limit or _NEWEST), cuts)
        if comes is None:
            requests = [request_of(span) for span in found]
            table = Table(columns(args.tz), [cells(one, args.tz) for one in requests])
            parts = [table if found else no_requests(wanted, args.tz)]
            return show_result(args, {"requests": requests}, parts, join_reasons(cuts))
        warn(join_reasons(cuts))
        _go_on(found, comes, None if args.json else Lines(args.tz, only_one=wanted.service is not None))
    return ANSWERED


def _go_on(newest: list[SpanRow], comes: Iterator[list[SpanRow]], lines: Lines | None) -> None:
    """Print one line for each request, for ever; one that comes again soon, delivered twice, is not printed again."""
    if lines is not None:
        sys.stdout.write(lines.head())
    printed: OrderedDict[tuple[str, str], None] = OrderedDict()
    for spans in chain((newest,), comes):
        for span in spans:
            if (span.trace_id, span.span_id) not in printed:
                printed[span.trace_id, span.span_id] = None
                if lines is None:
                    show_json(request_of(span))
                else:
                    sys.stdout.write(lines.of(span))
        while len(printed) > _REMEMBERED:
            printed.popitem(last=False)
        sys.stdout.flush()


class Lines:
    """Lines of requests as they come: their widths are fixed, since the rows to come are not known."""

    def __init__(self, zone: Zone, *, only_one: bool) -> None:
        """Omit the service where there is `only_one`, and columns that do not fit a narrow terminal."""
        self._zone = zone
        self._columns = columns(zone)
        self._day = ""
        keep = [place for place, column in enumerate(self._columns) if not (only_one and column.name == "service")]
        for place in sorted(keep, key=lambda place: self._columns[place].leaves):
            if not output.is_bounded() or sum(_WIDTHS[one] + 2 for one in keep) - 2 <= output.terminal_width():
                break
            if self._columns[place].leaves:
                keep.remove(place)
        self._keep = keep

    def of(self, span: SpanRow) -> str:
        """Return the line of a request, below its day if that is another than the one before's."""
        row = list(cells(request_of(span), self._zone))
        day, _, row[0] = row[0].partition(" ")
        row[-1] = row[-1][: _WIDTHS[-1]]
        head = "" if day == self._day else f"{day}\n"
        self._day = day
        return f"{head}{self._line(row)}"

    def head(self) -> str:
        """Return the line above all."""
        return self._line([column.name for column in self._columns])

    def _line(self, row: Sequence[str]) -> str:
        cells = ((printable(row[place]), _WIDTHS[place], self._columns[place].is_number) for place in self._keep)
        padded = (text.rjust(width) if is_number else text.ljust(width) for text, width, is_number in cells)
        return "  ".join(padded).rstrip() + "\n"
