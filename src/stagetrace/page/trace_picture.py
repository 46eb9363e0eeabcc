"""What the pictures of a trace are drawn of: a row for each span, in the order of the tree. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stagetrace import semconv
from stagetrace.analysis.critical_path import path_of
from stagetrace.analysis.span_tree import Tree, span_tree
from stagetrace.analysis.unseen_time import Unseen, unseen_times
from stagetrace.output.path_notes import notes
from stagetrace.output.span_lines import Line, calls, is_blamed, lines_of, share, visits
from stagetrace.printable import printable
from stagetrace.span_attributes import text
from stagetrace.store.base import SERVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagetrace.store.base import SpanRow, Trace


def key_of(span: SpanRow) -> str:
    """Return what a URL names a span by: client and server of one call may share an id (Zipkin)."""
    return f"{span.span_id}-{span.kind.lower()}" if span.kind == SERVER else span.span_id


def spans_by_key(spans: Sequence[SpanRow]) -> dict[str, SpanRow]:
    """Return the spans by what a URL names them by: with the kind, or by id alone."""
    found: dict[str, SpanRow] = {}
    for span in spans:
        found.setdefault(span.span_id, span)
    return found | {key_of(span): span for span in spans}


def picture(trace: Trace) -> dict[str, Any]:
    """Return the rows of a trace, and how long it took; times in ns from its begin, on the clock of its root."""
    tree = span_tree(trace.spans)
    start, end = min(tree.starts), max(tree.ends)
    return {"took": end - start, "rows": list(_rows(tree, start)), "trace": trace.trace_id}


def notes_of(trace: Trace) -> list[str]:
    """Return what is odd about a trace: clocks, parents that are missing, circles, several roots."""
    tree = span_tree(trace.spans)
    found = list(notes(tree, path_of(tree)))
    missing = sum(one.note is not None and "not in this store" in one.note for one in lines_of(trace.spans))
    if missing:
        what = "1 span has a parent that is" if missing == 1 else f"{missing:,} spans have parents that are"
        found.append(f"{what} not in this store.")
    return found


def _rows(tree: Tree, start: int) -> Iterator[dict[str, Any]]:
    """Yield the rows; what is absent, empty or false is left out."""
    places = {id(span): place for place, span in enumerate(tree.spans)}
    segments = _segments(tree)
    unseen = unseen_times(tree.spans)
    stages: list[str | None] = []  # of the lines above, by depth
    for line in lines_of(tree.spans):
        span, place = line.span, places[id(line.span)]
        own = text(span.attributes, semconv.ML_STAGE)
        above = stages[line.depth - 1] if line.depth else None
        del stages[line.depth :]
        stages.append(None if span.kind == SERVER else own or above)
        row = {
            "key": key_of(span),
            "depth": line.depth,
            "name": printable(span.name) or "(no name)",
            "service": printable(span.service),
            "at": tree.starts[place] - start,
            "took": tree.ends[place] - tree.starts[place],
            "kind": "entry" if span.kind == SERVER else "stage" if own else "detail",
            "stage": stages[-1],
            **_marks(line),
            "path": [(begin - start, end - start) for begin, end in segments.get(place, ())],
            **_unseen(unseen.get(place), tree.shifted_ns.get(place, 0) - start),
        }
        yield {name: value for name, value in row.items() if value or name in ("at", "took", "depth")}


def _marks(line: Line) -> dict[str, Any]:
    part = share(line)
    return {
        "share": None if part is None else round(part, 5),
        "count": visits(line.span) or calls(line.span),
        "error": line.span.status == "ERROR",
        "blamed": is_blamed(line),
        "critical": line.is_critical,
        "note": line.note,
    }


def _unseen(found: Unseen | None, shift: int) -> dict[str, Any]:
    if found is None:
        return {}
    waits = [(phrase, took / 1e6) for phrase, took in found.waits]
    return {
        "waits": waits,
        "most": found.at_most,
        "hatched": [(begin + shift, end + shift) for begin, end in found.intervals],
    }


def _segments(tree: Tree) -> dict[int, list[tuple[int, int]]]:
    """Return place -> its parts of the critical path of its root."""
    found: dict[int, list[tuple[int, int]]] = {}
    for root in tree.roots:
        for one in path_of(tree, root).segments:
            found.setdefault(one.place, []).append((one.start_unix_nano, one.end_unix_nano))
    return found
