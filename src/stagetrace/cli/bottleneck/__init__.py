"""`stagetrace bottleneck`: which stage takes the time, at the median and in the tail, and the gain of shortening it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis.span_tree import SERVER, Path, Tree, aggregated, path_of, span_tree
from stagetrace.cli import output
from stagetrace.cli.arguments import next_command, selection_options, trace_id, utf8, whole_id
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output.answer import Answer, keys_of, no_requests
from stagetrace.output.table import Column, Table, numeric
from stagetrace.output.trace import notes
from stagetrace.output.units import milliseconds, rounded_percent
from stagetrace.store.base import Reader, Trace

if TYPE_CHECKING:
    from stagetrace.analysis.bottleneck import Group
    from stagetrace.cli.bottleneck.view import Paths
    from stagetrace.store.base import Relations, Selection
    from stagetrace.store.follow import Latest

DESCRIPTION: Final = (
    "Show where the time of requests goes: of those around p50, p95 and p99 of the total, each stage's share with its\n"
    "interval (95 %), waiting against service, what is on the critical path, and by how much each percentile would\n"
    "fall if a stage took 10 % less. With --trace, the critical path of one request."
)
EXAMPLE: Final = "stagetrace bottleneck --route /predict --since 1h"
OPTIONS: Final = (
    Option(
        "--by KEY",
        "also apart by path (the route, else the name), service, model, model_version or an attribute; may be repeated",
        utf8,
        repeats=True,
    ),
    Option(
        "--trace ID",
        "the critical path of this trace instead: its id, its first digits (4 or more), or latest",
        trace_id,
    ),
    *selection_options(),
    *PRINTED,
)
TITLE: Final = "Bottleneck"
_NEWEST: Final = 200  # requests around each percentile whose critical paths are summed


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return where the time goes: of a selection, or of the trace that is named."""
    by = tuple(dict.fromkeys(args.by))
    if args.trace is not None:
        if by:
            raise UsageError("--trace asks for one request, and --by divides many\ngive one of them")
        return _of_trace(reader, whole_id(reader, args.trace, args.service, breached=False))
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
        [*view.parts(whole), *view.path_parts(paths), *view.group_parts(groups, by)],
        reason=relations.reason,
        steps=[next_command(args, "why")],
    )


def _of_no_requests(reader: Reader, wanted: Selection, args: argparse.Namespace, reason: str | None) -> Answer:
    """Return the critical path of the newest root where no span is a request, else that there are no requests."""
    from stagetrace.store.follow import newest_root

    keys: dict[str, Any] = {"requests": 0, "stages": [], "groups": []}
    root = newest_root(reader, wanted)
    if root is None:
        return Answer(TITLE, no_requests(wanted, args.tz), keys, reason=reason)
    found = _of_trace(reader, root)
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
    from stagetrace.cli.bottleneck.view import Paths

    chosen = {
        percentile: relations.reduce("newest_within", low=band.low_ms, high=band.high_ms, most=_NEWEST)
        for percentile, band in group.bands.items()
        if band is not None
    }
    wanted = list(dict.fromkeys(row["trace_id"] for rows in chosen.values() for row in rows))
    found: dict[tuple[str, str], Path] = {}
    for trace in reader.traces(wanted):
        tree = span_tree(trace.spans)
        for place, span in enumerate(trace.spans):
            if span.kind == SERVER:
                found[trace.trace_id, span.span_id] = path_of(tree, place)
    made = {}
    for percentile, rows in chosen.items():
        spans = {(row["trace_id"], row["span_id"]) for row in rows}
        paths = [found[span] for span in spans if span in found]
        made[percentile] = Paths(len(paths), aggregated(paths))
    return made


# --- The critical path of one trace, as `bottleneck --trace` shows it.

_CELLS: Final = 40
_MOST: Final = 60  # lines of the picture
_COLUMNS: Final = (*map(Column, ("service", "span", "on the path")), numeric("ms"), numeric("share"))


def _of_trace(reader: Reader, meant: Latest) -> Answer:
    """Return the critical path of one trace; where it stands for a request, the sentence says so."""
    trace = reader.trace(meant.trace_id)
    tree = span_tree(trace.spans)
    path = path_of(tree)
    return Answer(
        f"Critical path of trace {trace.trace_id}",
        "".join(filter(None, (meant.note and f"{meant.note[:1].upper()}{meant.note[1:]}: ", _sentence(trace, path)))),
        {
            "trace_id": trace.trace_id,
            "critical_path": [keys_of(one, "place", duration_ms=one.duration_ns / 1e6) for one in path.segments],
            "adjusted": [
                {"span_id": tree.spans[place].span_id, "service": tree.spans[place].service, "by_ns": delta}
                for place, delta in sorted(path.shifted_ns.items())
            ],
            "negative_durations": path.negative,
            "other_roots": path.other_roots,
            "circular": path.circular,
        },
        [Table(_COLUMNS, list(_rows(tree, path))), *notes(tree, path)],
        reason=trace.reason,
    )


def _sentence(trace: Trace, path: Path) -> str:
    if path.root is None:
        return f"Trace {trace.trace_id} has no root: the parents of its spans form a circle."
    root = trace.spans[path.root]
    if not path.segments:
        return f"{root.service} {root.name} took no time, and nothing is on its critical path."
    most = aggregated([path])[0]
    return (
        f"{most.service} {most.name} is {100 * most.share:.0f} % of the critical path of {root.service} {root.name}, "
        f"{milliseconds(most.duration_ns / 1e6)} of {milliseconds(root.duration_ns / 1e6)}."
    )


def _rows(tree: Tree, path: Path) -> Iterator[tuple[str, ...] | str]:
    """Yield a line for each span on the path, by when that comes to it: where on the path it is, and how long."""
    if not path.segments or path.root is None:
        return
    start, end = path.segments[0].start_unix_nano, path.segments[-1].end_unix_nano
    places: dict[int, list[tuple[int, int]]] = {}
    for one in path.segments:
        places.setdefault(one.place, []).append((one.start_unix_nano, one.end_unix_nano))
    mark, gap = ("█", "·") if output.shows_blocks() else ("#", ".")
    for place, intervals in list(places.items())[:_MOST]:
        cells = [gap] * _CELLS
        for low, high in intervals:
            first = (low - start) * _CELLS // (end - start)
            last = max(first + 1, -(-(high - start) * _CELLS // (end - start)))
            cells[first:last] = mark * (last - first)
        took = sum(high - low for low, high in intervals)
        span = tree.spans[place]
        share = rounded_percent(took / (end - start), 1)
        yield span.service, span.name, "".join(cells), milliseconds(took / 1e6), share
    if len(places) > _MOST:
        yield f"... and {len(places) - _MOST} more spans: --json has them all"
