"""`stagetrace watch`: a board of objectives, routes and stages that refreshes itself."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.cli import output
from stagetrace.cli.arguments import seconds, selection, selection_options, store_url
from stagetrace.cli.console import unescaped
from stagetrace.cli.output import clip, show_result, styled_text
from stagetrace.cli.registry import Option
from stagetrace.output import table_rows, units
from stagetrace.output.answer import keys_of, no_requests
from stagetrace.output.table import COMMON, Column, Table, numbers, numeric, table_of
from stagetrace.output.table_rows import cells, columns
from stagetrace.output.units import Moment, Zone, milliseconds, shown, window
from stagetrace.store import open_store
from stagetrace.store.base import COUNTS, Reader, Selection

if TYPE_CHECKING:
    from stagetrace.analysis.routes_and_stages import Group, Route

DESCRIPTION: Final = """Show how each objective, route and stage does, and the newest breaches, refreshed until Ctrl-C.

Where stdout is no terminal, with --once and with --json it is one snapshot."""
EXAMPLE: Final = "stagetrace watch --since 5m"
OPTIONS: Final = (
    *selection_options(since="15m", until=False, cause=False, sla=False),  # of breaches alone, none would seem kept
    Option("--interval SECONDS", "how often the store is asked; default: 2", seconds, 2.0),
    Option("--once", "show one snapshot"),
)
_QUARTER: Final = Moment(900 * 10**9, ago=True)
_NEWEST: Final = 5
_STAGES: Final = (Column("stage"), *numbers("p50", "p99", "share"))


class Board(NamedTuple):
    """One snapshot."""

    routes: list[Route]
    groups: list[Group]
    newest: list[dict[str, Any]]
    reason: str | None


def run(args: argparse.Namespace) -> int:
    """Show the board and return the exit code."""
    url = store_url(args)
    with open_store(url) as reader:
        if sys.stdout.isatty() and output.has_rich() and not (args.once or args.json):
            _refresh(reader, args, url)
        wanted = selection(args, url, since=_QUARTER)
        board = look(reader, wanted)
    keys = {
        "routes": [_route_json(route) for route in board.routes],
        "groups": [table_rows.as_json(group) for group in board.groups],
        "breaches": board.newest,
    }
    return show_result(args, keys, tables(board, wanted, args.tz), board.reason)


def look(reader: Reader, wanted: Selection) -> Board:
    """Return a snapshot of the selection."""
    from stagetrace.analysis import routes_and_stages
    from stagetrace.store import answers

    with reader.relations(wanted) as relations:
        newest = answers.requests(relations, top=_NEWEST, breached=True)
        found = routes_and_stages.ask(relations)
        # Services do not count by other keys.
        is_counted = COUNTS in reader.capabilities and not replace(wanted, service=None, route=None).is_filtered
        if is_counted and any(one.sample.is_estimate for one in found):
            found = routes_and_stages.exactly(relations, found, reader.counted(wanted))  # type: ignore[attr-defined]
        return Board(found, routes_and_stages.ask_stages(relations), newest, relations.reason)


def _route_json(route: Route) -> dict[str, Any]:
    known = route.attainment
    return keys_of(
        route,
        "sample",
        attainment=None if known is None else known.value,
        attainment_95=None if known is None else [known.low, known.high],
        **units.keys(route.sample),
    )


def tables(board: Board, wanted: Selection, zone: Zone) -> list[Table | str]:
    """Return the tables: routes, the stages that take most of each, the newest breaches."""
    if not board.routes:
        return [no_requests(wanted, zone)]
    parts: list[Table | str] = [_routes(board.routes)]
    notes = (units.note(f"{one.service} {one.route}", one.sample, one.attainment) for one in board.routes)
    parts += [text for text in notes if text]
    parts += ["", Table(_STAGES, [row for group in board.groups for row in _stages(group)], "Stages")]
    if board.newest:
        parts += ["", Table(columns(zone), [cells(one, zone) for one in board.newest], "Newest breaches")]
    return parts


def _routes(routes: Sequence[Route]) -> Table:
    return table_of(
        routes,
        (
            (Column("service", kind=COMMON, leaves=5), lambda one: one.service),
            (Column("route"), lambda one: one.route),
            (Column("model", kind=COMMON, leaves=4), lambda one: one.model or "-"),
            (Column("objective", kind=COMMON, leaves=2), lambda one: one.objective or "-"),
            (numeric("requests"), lambda one: units.about(one.requests, one.sample)),
            (numeric("errors", 1), lambda one: units.about(one.errors, one.sample) if one.errors else "0"),
            (numeric("p50", 3), lambda one: milliseconds(one.p50_ms)),
            (numeric("p99"), lambda one: milliseconds(one.p99_ms)),
            (numeric("breaches"), lambda one: str(one.breaches) if one.judged else "-"),
            (numeric("attainment"), lambda one: units.attainment_percent(one.attainment, one.sample)),
        ),
        "Objectives and routes",
    )


def _stages(group: Group) -> list[tuple[str, ...] | str]:
    rows: list[tuple[str, ...] | str] = [table_rows.heading(group)] if group.stages else []
    for stage in group.stages:
        times = (milliseconds(stage.p50_ms), milliseconds(stage.p99_ms))
        rows.append((f"  {stage.stage}", *times, units.rounded_percent(stage.share, 1)))
    return rows


def _refresh(reader: Reader, args: argparse.Namespace, url: str) -> None:
    """Draw the board again and again, until Ctrl-C ends the command."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=unescaped(sys.stdout)), screen=True, auto_refresh=False) as live:
        while True:
            wanted = selection(args, url, since=_QUARTER)
            board = look(reader, wanted)
            at = shown(time.time_ns(), args.tz, 0)[11:]
            head = [f"{url}{window(wanted.since_ns, wanted.until_ns, args.tz)}, at {at}; Ctrl-C ends"]
            head += [] if board.reason is None else [f"INCOMPLETE: {board.reason}"]
            parts = tables(board, wanted, args.tz)
            lines = clip([*head, "", *parts], *live.console.size)
            live.update(styled_text(lines), refresh=True)
            time.sleep(args.interval)
