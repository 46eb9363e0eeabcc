"""`stagetrace bottleneck`: which stage takes the time, at the median and in the tail, and the gain of shortening it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments.options import add_selection, utf8
from stagetrace.cli.arguments.trace_id import trace_id
from stagetrace.cli.base import UsageError
from stagetrace.cli.output.formats import add_format
from stagetrace.output.answer import Answer
from stagetrace.output.times import window

if TYPE_CHECKING:
    from stagetrace.analysis.bottleneck import Group
    from stagetrace.cli.bottleneck.view import Paths
    from stagetrace.store.base import Reader, Relations, Selection

DESCRIPTION: Final = (
    "Show where the time of requests goes: of those around p50, p95 and p99 of the total, each stage's share with its\n"
    "interval (95 %), waiting against service, what is on the critical path, and by how much each percentile would\n"
    "fall if a stage took 10 % less. With --trace, the critical path of one request."
)
EXAMPLE: Final = "stagetrace bottleneck --route /predict --since 1h"
TITLE: Final = "Bottleneck"
_NEWEST: Final = 200  # requests around each percentile whose critical paths are summed
_SHOWN: Final = 20  # groups, to people


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--by",
        metavar="KEY",
        type=utf8,
        action="append",
        default=[],
        help="also apart by path (the route, else the name), service, model, model_version or an attribute; may be "
        "repeated",
    )
    parser.add_argument(
        "--trace",
        metavar="ID",
        type=trace_id,
        help="the critical path of this trace instead: its id, its first digits (4 or more), or latest",
    )
    add_selection(parser)
    add_format(parser)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return where the time goes: of a selection, or of the trace that is named."""
    by = tuple(dict.fromkeys(args.by))
    if args.trace is not None:
        if by:
            raise UsageError("--trace asks for one request, and --by divides many\ngive one of them")
        from stagetrace.cli.bottleneck.one_trace import of_trace

        return of_trace(reader, args)
    from stagetrace.analysis import bottleneck
    from stagetrace.cli.bottleneck import view

    with reader.relations(wanted) as relations:
        whole = next(iter(bottleneck.ask(relations)), None)
        if whole is None:
            return _of_no_requests(reader, wanted, args, relations.reason)
        groups = _groups(relations, by) if by else []
        paths = _critical_paths(reader, relations, whole)
    return Answer(
        TITLE,
        view.sentence(whole),
        {**view.keys(whole, by), **view.path_keys(paths), "groups": [view.keys(group, by) for group in groups]},
        [*view.parts(whole), *view.path_parts(paths), *view.group_parts(groups, by, _SHOWN)],
        reason=relations.reason,
    )


def _of_no_requests(reader: Reader, wanted: Selection, args: argparse.Namespace, reason: str | None) -> Answer:
    """Return the critical path of the newest root where no span is a request, else that there are no requests."""
    from stagetrace.cli.bottleneck.one_trace import of_latest
    from stagetrace.store.follow import newest_root

    keys: dict[str, Any] = {"requests": 0, "stages": [], "groups": []}
    root = newest_root(reader, wanted)
    if root is None:
        return Answer(TITLE, f"No requests{window(wanted.since_ns, wanted.until_ns, args.tz)}.", keys, reason=reason)
    found = of_latest(reader, root)
    return replace(found, keys={**keys, **found.keys}, reason=reason or found.reason)


def _groups(relations: Relations, by: tuple[str, ...]) -> list[Group]:
    """Return each group. Raise UsageError where there are too many, or where no request has the key of the groups."""
    from stagetrace.analysis import bottleneck

    most = bottleneck.MOST_GROUPS
    largest = relations.reduce("largest_groups", by, most=most)
    count = largest[0]["groups"]
    if count > most:
        raise UsageError(
            f"--by {' --by '.join(by)} makes {count:,} groups, and {most} at most are supported\n"
            "choose some requests with --segment KEY=VALUE, or divide by something else"
        )
    for key in by:
        if all(row[key] is None for row in largest):
            raise UsageError(f"no request has {key}, which --by names\ngive a column or an attribute that they have")
    return bottleneck.ask(relations, by, count)


def _critical_paths(reader: Reader, relations: Relations, group: Group) -> dict[str, Paths]:
    """Return by percentile the spans that take the time of the newest requests around it, on their critical paths."""
    from stagetrace.analysis import critical_path
    from stagetrace.analysis.span_tree import SERVER, span_tree
    from stagetrace.cli.bottleneck import view

    chosen = {
        percentile: relations.reduce("newest_within", low=band.low_ms, high=band.high_ms, most=_NEWEST)
        for percentile, band in group.bands.items()
        if band is not None
    }
    wanted = list(dict.fromkeys(row["trace_id"] for rows in chosen.values() for row in rows))
    found: dict[tuple[str, str], critical_path.Path] = {}
    for trace in reader.traces(wanted):
        tree = span_tree(trace.spans)
        for place, span in enumerate(trace.spans):
            if span.kind == SERVER:
                found[trace.trace_id, span.span_id] = critical_path.path_of(tree, place)
    made = {}
    for percentile, rows in chosen.items():
        keys = {(row["trace_id"], row["span_id"]) for row in rows}
        paths = [found[key] for key in keys if key in found]
        made[percentile] = view.Paths(len(paths), critical_path.aggregated(paths))
    return made
