"""What the pictures of a trace are drawn of: a row for each span, in the order of the tree. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.span_tree import Tree, Unseen, path_of, span_tree, unseen_times
from stagetrace.output.trace import (
    REQUEST,
    Line,
    Stall,
    calls,
    is_blamed,
    lines_of,
    notes,
    share,
    stall_sentence,
    stalls_of,
    visits,
)
from stagetrace.semconv import number, text
from stagetrace.store.base import SERVER
from stagetrace.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stagetrace.analysis.span_tree import Path
    from stagetrace.store.base import SpanRow, Trace

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


# --- The stacks of a late request as the view of a trace shows them: on a card, and as marks in the waterfall. Pure.

MOST: Final = 50  # of a request; the panel of its span has all
_LONGEST: Final = 10_000  # characters of a stack


class Stack(NamedTuple):
    """One stack: `key` names its element and its mark, `spans` are the keys of those that light up with it."""

    key: str
    stall: Stall
    text: str
    stage: str | None
    after: str
    spans: tuple[str, ...]

    @property
    def frames(self) -> int:
        """Return how many places the text has."""
        return self.text.count("\n") + 1


class Stood(NamedTuple):
    """Where a request stood: whose -> stacks, as many as are shown of `distinct`; and how many were not recorded."""

    kinds: Sequence[tuple[str, Sequence[Stack]]]
    distinct: int
    dropped: int

    @property
    def shown(self) -> int:
        """Return how many stacks are shown."""
        return sum(len(stacks) for _, stacks in self.kinds)


def stood_of(place: int, spans: Sequence[SpanRow], otherwise: tuple[str, ...]) -> Stood:
    """Return where the request of the entry span at this place stood; `otherwise`: spans to light without a stage."""
    entry = spans[place]
    found = stalls_of(entry)
    stages = [
        span for span in spans if span.parent_span_id == entry.span_id and text(span.attributes, semconv.ML_STAGE)
    ]
    stacks = [_stack(at, one, entry, stages, otherwise) for at, one in enumerate(found[:MOST])]
    kinds = [(whose, list(alike)) for whose, alike in groupby(stacks, lambda one: one.stall.whose)]
    return Stood(kinds, len(found), round(number(entry.attributes, semconv.STAGETRACE_DROPPED_STALLS) or 0))


def marks_of(entry: SpanRow, begin: int) -> list[tuple[int, str, bool, str]]:
    """Return time after `begin`, key, whether it is the request's own, and text of each stack of an entry span."""
    return [
        (one.at_unix_nano - begin, _key(entry, at), one.of == REQUEST, printable(stall_sentence(one, entry)))
        for at, one in enumerate(stalls_of(entry)[:MOST])
    ]


def _stack(at: int, one: Stall, entry: SpanRow, stages: Sequence[SpanRow], otherwise: tuple[str, ...]) -> Stack:
    time = one.at_unix_nano
    stage = next((span for span in stages if span.start_unix_nano <= time < span.end_unix_nano), None)
    return Stack(
        _key(entry, at),
        one,
        one.stack[:_LONGEST],
        None if stage is None else stage.name,
        one.after(entry),
        otherwise if stage is None else (key_of(stage),),
    )


def _key(entry: SpanRow, at: int) -> str:
    return f"{key_of(entry)}-{at}"


def key_of(span: SpanRow) -> str:
    """Return what a URL names a span by: client and server of one call may share an id (Zipkin)."""
    return f"{span.span_id}-{span.kind.lower()}" if span.kind == SERVER else span.span_id


def spans_by_key(spans: Sequence[SpanRow]) -> dict[str, SpanRow]:
    """Return the spans by what a URL names them by: with the kind, or by id alone."""
    found: dict[str, SpanRow] = {}
    for span in spans:
        found.setdefault(span.span_id, span)
    return found | {key_of(span): span for span in spans}
