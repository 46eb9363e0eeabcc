"""The critical path of one trace, as `bottleneck --trace` shows it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis.critical_path import Path, aggregated, path_of
from stagetrace.analysis.span_tree import Tree, span_tree
from stagetrace.cli.arguments.trace_id import whole_id
from stagetrace.cli.output import terminal
from stagetrace.output.answer import Answer
from stagetrace.output.path_notes import notes
from stagetrace.output.table_layout import Column, Table
from stagetrace.output.units import milliseconds
from stagetrace.store.base import Reader, Trace

if TYPE_CHECKING:
    from stagetrace.store.follow import Latest

_CELLS: Final = 40
_MOST: Final = 60  # lines of the picture
_COLUMNS: Final = (
    Column("service"),
    Column("span"),
    Column("on the path"),
    Column("ms", is_number=True),
    Column("share", is_number=True),
)


def of_trace(reader: Reader, args: argparse.Namespace) -> Answer:
    """Return the critical path of the trace that `--trace` names."""
    return of_latest(reader, whole_id(reader, args.trace, args.service, breached=False))


def of_latest(reader: Reader, meant: Latest) -> Answer:
    """Return the critical path of one trace; where it stands for a request, the sentence says so."""
    trace = reader.trace(meant.trace_id)
    tree = span_tree(trace.spans)
    path = path_of(tree)
    return Answer(
        f"Critical path of trace {trace.trace_id}",
        "".join(filter(None, (meant.note and f"{meant.note[:1].upper()}{meant.note[1:]}: ", _sentence(trace, path)))),
        {"trace_id": trace.trace_id, **_keys(tree, path)},
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


def _keys(tree: Tree, path: Path) -> dict[str, Any]:
    return {
        "critical_path": [
            {
                "span_id": one.span_id,
                "start_unix_nano": one.start_unix_nano,
                "end_unix_nano": one.end_unix_nano,
                "service": one.service,
                "name": one.name,
                "duration_ms": one.duration_ns / 1e6,
            }
            for one in path.segments
        ],
        "adjusted": [
            {"span_id": tree.spans[place].span_id, "service": tree.spans[place].service, "by_ns": delta}
            for place, delta in sorted(path.shifted_ns.items())
        ],
        "negative_durations": path.negative,
        "other_roots": path.other_roots,
        "circular": path.circular,
    }


def _rows(tree: Tree, path: Path) -> Iterator[tuple[str, ...] | str]:
    """Yield a line for each span on the path, by when that comes to it: where on the path it is, and how long."""
    if not path.segments or path.root is None:
        return
    start, end = path.segments[0].start_unix_nano, path.segments[-1].end_unix_nano
    places: dict[int, list[tuple[int, int]]] = {}
    for one in path.segments:
        places.setdefault(one.place, []).append((one.start_unix_nano, one.end_unix_nano))
    mark, gap = ("█", "·") if terminal.shows_blocks() else ("#", ".")
    for place, intervals in list(places.items())[:_MOST]:
        cells = [gap] * _CELLS
        for low, high in intervals:
            first = (low - start) * _CELLS // (end - start)
            last = max(first + 1, -(-(high - start) * _CELLS // (end - start)))
            cells[first:last] = mark * (last - first)
        took = sum(high - low for low, high in intervals)
        span = tree.spans[place]
        share = f"{100 * took / (end - start):.1f} %"
        yield span.service, span.name, "".join(cells), milliseconds(took / 1e6), share
    if len(places) > _MOST:
        yield f"... and {len(places) - _MOST} more spans: --json has them all"
