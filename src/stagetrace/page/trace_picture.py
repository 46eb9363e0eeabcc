"""What the pictures of a trace are drawn of: a row for each span, in the order of the tree. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv
from stagetrace.analysis.critical_path import path_of
from stagetrace.analysis.span_tree import Tree, span_tree
from stagetrace.analysis.unseen_time import Unseen, unseen_times
from stagetrace.output.path_notes import notes
from stagetrace.output.span_lines import Line, calls, is_blamed, lines_of, share, visits
from stagetrace.page.span_keys import key_of
from stagetrace.page.trace_stalls import marks_of
from stagetrace.printable import printable
from stagetrace.span_attributes import text
from stagetrace.store.base import SERVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.analysis.critical_path import Path
    from stagetrace.store.base import Trace

_NUMBERS: Final = ("depth", "at", "took")  # of a row, which are there if they are 0, too


def picture(trace: Trace) -> tuple[dict[str, Any], list[str]]:
    """Return what a trace is drawn of, and notes on what is odd about it.

    Times are ns from its begin, on the clock of its root. Of a row is left out what is absent, empty or false, and a
    service that is the one of the row above it in the tree.
    """
    tree = span_tree(trace.spans)
    paths = [path_of(tree, root) for root in tree.roots]
    lines = lines_of(trace.spans, {place for path in paths for place in path.places})
    start, end = min(tree.starts), max(tree.ends)
    found = [*notes(tree, paths[0] if paths else path_of(tree)), *_missing(lines)]
    return {"took": end - start, "rows": list(_rows(tree, lines, _segments(paths), start))}, found


def _missing(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a note on parents that are missing."""
    missing = sum(one.note is not None and "not in this store" in one.note for one in lines)
    if missing:
        what = "1 span has a parent that is" if missing == 1 else f"{missing:,} spans have parents that are"
        yield f"{what} not in this store."


def _rows(
    tree: Tree, lines: Sequence[Line], segments: Mapping[int, Sequence[tuple[int, int]]], start: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    places = {id(span): place for place, span in enumerate(tree.spans)}
    unseen = unseen_times(tree.spans)
    above: list[tuple[str | None, str | None]] = []  # stage and service of the lines above, by depth
    for line in lines:
        span, place = line.span, places[id(line.span)]
        del above[line.depth :]
        stage, service = above[-1] if above else (None, None)
        own = text(span.attributes, semconv.ML_STAGE)
        above.append((None if span.kind == SERVER else own or stage, span.service))
        row = {
            "key": key_of(span),
            "depth": line.depth,
            "name": printable(span.name) or "(no name)",
            "service": None if span.service == service else printable(span.service) or "(no service)",
            "at": tree.starts[place] - start,
            "took": tree.ends[place] - tree.starts[place],
            "kind": "entry" if span.kind == SERVER else "stage" if own else "detail",
            "stage": above[-1][0],
            **_marks(line),
            "path": [(begin - start, end - start) for begin, end in segments.get(place, ())],
            **_unseen(unseen.get(place), tree.shifted_ns.get(place, 0) - start),
            "stalls": marks_of(span, start - tree.shifted_ns.get(place, 0)) if span.kind == SERVER else (),
        }
        yield {name: value for name, value in row.items() if value or name in _NUMBERS}


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


def _segments(paths: Iterable[Path]) -> dict[int, list[tuple[int, int]]]:
    """Return place -> its parts of the critical path of its root."""
    found: dict[int, list[tuple[int, int]]] = {}
    for path in paths:
        for one in path.segments:
            found.setdefault(one.place, []).append((one.start_unix_nano, one.end_unix_nano))
    return found
