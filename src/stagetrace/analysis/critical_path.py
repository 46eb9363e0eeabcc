"""The critical path of a trace: which span the end waited for, at each moment.

Source: CRISP (Zhang et al., "CRISP: Critical Path Analysis of Large-Scale Microservice Architectures", USENIX ATC 2022,
section 3) and Jaeger UI (`TracePage/CriticalPath`). Unlike Jaeger UI a sibling that ends exactly where the next one
starts is on the path: stages tile a request without a gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stagetrace.analysis.span_tree import Tree, is_asynchronous, is_spread, span_tree

_TICK: Final = 100  # of the parent's duration, one of so many parts: CRISP's 1 %, by which siblings may overlap
_TOGETHER: Final = 2  # overlaps of more than one part in so many of a sibling's own time are no tick


@dataclass(frozen=True)
class Segment:
    """A part of the path, [start, end) on the clock of the root, which is never empty."""

    span_id: str
    start_unix_nano: int
    end_unix_nano: int
    service: str
    name: str
    place: int  # of the span in what was given, for ids may repeat

    @property
    def duration_ns(self) -> int:
        """Return end minus start."""
        return self.end_unix_nano - self.start_unix_nano


@dataclass(frozen=True)
class Path:
    """The critical path of one root, and the corrections of the spans."""

    segments: tuple[Segment, ...]  # by time; they partition the root's interval
    places: frozenset[int]  # of the spans on it, and of those above these
    root: int | None  # its place; None where no span is without a parent
    shifted_ns: dict[int, int]  # place -> correction of clock skew, of spans below this root
    negative: int  # spans below this root that end before they start: taken for spans of no duration
    other_roots: int  # spans of the trace without a parent that this is not the path of
    circular: int  # spans whose parents form a circle: on no path


@dataclass(frozen=True)
class Portion:
    """The share of the spans of one service and name in several critical paths."""

    service: str
    name: str
    duration_ns: int
    share: float  # of the time of all these paths
    paths: int  # on how many it is


def aggregated(paths: Iterable[Path]) -> list[Portion]:
    """Return the spans that take the time of several critical paths, most time first; shares add up to 1."""
    took: Counter[tuple[str, str]] = Counter()
    on: Counter[tuple[str, str]] = Counter()
    for path in paths:
        for segment in path.segments:
            took[segment.service, segment.name] += segment.duration_ns
        on.update({(segment.service, segment.name) for segment in path.segments})
    whole = sum(took.values())
    found = [Portion(*key, spent, spent / whole, on[key]) for key, spent in took.items()]
    return sorted(found, key=lambda one: (-one.duration_ns, one.service, one.name))


def on_path(spans: Sequence[Any]) -> set[int]:
    """Return the places of the spans that are on the critical path of each root, or above one that is."""
    tree = span_tree(spans)
    return {place for root in tree.roots for place in path_of(tree, root).places}


def path_of(tree: Tree, root: int | None = None) -> Path:
    """Return the critical path of a span and its descendants; `root` is its place, by default the trace's root.

    From the end of a span back: the child that ended last, at or before this moment, is waited for, and the path goes
    on within it; then, before its start, the child that ended last at or before that. Where no child is waited for, the
    span itself is on the path. Clocks tick, so that a child may end a little later than the one starts that waited for
    it: by up to 1 % of their parent, as in CRISP, unless that is most of either; it is on the path up to that start. Of
    children that end together the one that started first is taken. A child that begins
    before its parent or outlives it is on the path within its parent alone. What is asynchronous is not waited for: a
    CONSUMER span, and one that only follows its parent (OpenTracing's FOLLOWS_FROM); nor is a span of no duration, nor
    a detail span of several calls with time between them, which is its stage's. The trace's root is the span without a
    parent id that starts first (the longest of these); where all name a parent that is missing, that among those.
    """
    if root is None:
        if not tree.roots:
            return Path((), frozenset(), None, {}, 0, 0, tree.circular)
        root = tree.roots[0]
    backwards: list[Segment] = []
    places = set()
    for place, start, end in _walk(tree, root):
        places.add(place)
        if start < end:
            span = tree.spans[place]
            backwards.append(Segment(span.span_id, start, end, span.service, span.name, place))
    below = tree.below(root)
    shifted = {place: tree.shifted_ns[place] for place in below if place in tree.shifted_ns}
    negative = sum(tree.spans[place].end_unix_nano < tree.spans[place].start_unix_nano for place in below)
    others = len(tree.roots) - (root in tree.roots)
    return Path(tuple(backwards[::-1]), frozenset(places), root, shifted, negative, others, tree.circular)


def _walk(tree: Tree, root: int) -> Iterator[tuple[int, int, int]]:
    """Yield (place, start, end) of the parts of the path, the last one first, empty ones included.

    A stack and no recursion: traces may be deeper than the interpreter's limit.
    """
    stack = [(root, tree.starts[root], _waited(tree, root, tree.starts[root], tree.ends[root]))]
    moment = tree.ends[root]
    taken: dict[int, int] = {}  # place -> duration of its child that the path has come from, whole
    while stack:
        place, start, waited = stack[-1]
        tick = min((tree.ends[place] - tree.starts[place]) // _TICK, taken.get(place, 0) // _TOGETHER)
        # Children that end after the moment ran beside what the path has taken since.
        child = next((one for one in waited if one[2] <= moment + _least(tick, one) and one[1] < moment), None)
        if child is None:
            yield place, start, moment
            moment = start
            stack.pop()
            continue
        taken[place] = child[2] - child[1]
        end = min(child[2], moment)
        yield place, end, moment
        moment = end
        stack.append((child[0], child[1], _waited(tree, child[0], child[1], end)))


def _least(tick: int, child: tuple[int, int, int]) -> int:
    return min(tick, (child[2] - child[1]) // _TOGETHER)


def _waited(tree: Tree, place: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the children that can have been waited for, cut to [start, end] of their parent, the last to end first."""
    found = []
    for child in tree.children.get(place, ()):
        begin, until = max(start, tree.starts[child]), min(end, tree.ends[child])
        if begin < until and not is_asynchronous(tree.spans[child]) and not is_spread(tree.spans[child]):
            found.append((child, begin, until))
    found.sort(key=lambda one: (-one[2], one[1], tree.spans[one[0]].span_id, tree.spans[one[0]].kind))
    return iter(found)
