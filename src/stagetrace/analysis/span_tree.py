"""One trace: the tree of its spans on one clock, its critical path, and the unseen time of its stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.causes import cause
from stagetrace.columns import names_of
from stagetrace.semconv import number, text

# --- The tree that the spans of one trace form, on one clock: the start of every analysis of a trace.
#
# Spans are duck-typed (`store.base.SpanRow` is one): `span_id`, `parent_span_id`, `service`, `kind`, `start_unix_nano`,
# `end_unix_nano`, and, if they have them, `attributes`, `resource` and `follows`. A span is known by its place in the
# sequence given, since ids may repeat.

CLIENT: Final = "CLIENT"
SERVER: Final = "SERVER"
CONSUMER: Final = "CONSUMER"
_FILLED: Final = 0.9  # a detail span whose calls took this share of its time is one call
_SERVICE: Final = "service"
_HOST: Final = ("host.id", "host.ip", "host.name")  # in the order in which Jaeger asks for them


@dataclass(frozen=True)
class Tree:
    """Spans by place: their children and their times in ns, on the clock of their root."""

    spans: Sequence[Any]
    roots: tuple[int, ...]  # without a parent here: first those that name none, then by start, the longest first
    children: Mapping[int, Sequence[int]]  # a place without children is absent
    starts: Sequence[int]
    ends: Sequence[int]  # never before the start
    shifted_ns: Mapping[int, int]  # place -> what its clock was corrected by; absent where it was not
    copies: int  # spans that repeat the id, service and kind of an earlier one: left out
    circular: int  # spans below no root, since their parents form a circle: left out

    def below(self, root: int) -> list[int]:
        """Return the places of a span and all below it, each parent before its children."""
        return _below(self.children, root)


def span_tree(spans: Sequence[Any]) -> Tree:
    """Return the tree of the spans of one trace, which may come in any order.

    Client and server of one call may share an id (Zipkin): the server span is then below the client span. A child is
    below the span with its parent's id that is of its own service, else below the server's.

    Clock skew is corrected as by Jaeger's query service (`adjuster/clockskew.go`, 2.13). A server span, for which its
    caller waits, that starts before its parent or ends after it is moved to the middle of it; one that is longer than
    its parent, to the parent's start if it starts before that. Any other span of another clock is moved alike if it
    starts before its parent, which no effect can; it is not for its end, since it may be asynchronous. A clock is that
    of a host (`host.id`, `host.ip` or `host.name` of the resource), else of a service. What is below a span, on the
    same clock, moves along.
    """
    first: dict[tuple[str, str, str], int] = {}
    for place, span in enumerate(spans):
        first.setdefault((span.span_id, span.service, span.kind), place)
    parents = _parents(spans, list(first.values()))
    children: dict[int, list[int]] = {}
    for place, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, []).append(place)
    tops = (place for place, parent in parents.items() if parent is None)
    roots = tuple(sorted(tops, key=lambda place: _by_rank(spans[place])))
    starts = [span.start_unix_nano for span in spans]
    ends = [max(span.start_unix_nano, span.end_unix_nano) for span in spans]
    ordered = [place for root in roots for place in _below(children, root)]
    shifted = _corrected(spans, parents, ordered, starts, ends)
    copies, circular = len(spans) - len(parents), len(parents) - len(ordered)
    return Tree(spans, roots, children, starts, ends, shifted, copies, circular)


def is_asynchronous(span: Any) -> bool:
    """Return whether a parent does not wait for a span: it takes a message, or only follows (OpenTracing)."""
    return span.kind == CONSUMER or getattr(span, "follows", False)


def is_spread(span: Any) -> bool:
    """Return whether a span stands for several calls that were not all of its time: what it did between is unknown."""
    attributes = getattr(span, "attributes", {})
    calls, took_ms = number(attributes, semconv.DETAIL_CALLS), number(attributes, semconv.DETAIL_TIME_MS)
    if calls is None or took_ms is None or calls <= 1:
        return False
    return bool(took_ms * 1e6 < _FILLED * (span.end_unix_nano - span.start_unix_nano))


def _by_rank(span: Any) -> tuple[bool, int, int, str]:
    return bool(span.parent_span_id), span.start_unix_nano, -span.end_unix_nano, span.span_id


def _below(children: Mapping[int, Sequence[int]], root: int) -> list[int]:
    found = [root]
    for place in found:
        found += children.get(place, ())
    return found


def _parents(spans: Sequence[Any], places: Sequence[int]) -> dict[int, int | None]:
    """Return place -> place of the parent, None where that is not in the trace."""
    by_id: dict[str, list[int]] = {}
    for place in places:
        by_id.setdefault(spans[place].span_id, []).append(place)
    parents: dict[int, int | None] = {}
    for place in places:
        span = spans[place]
        same = by_id[span.span_id]
        if span.kind == SERVER and len(same) > 1:
            client = next((one for one in same if spans[one].kind == CLIENT), None)
            if client is not None:
                parents[place] = client
                continue
        named = [one for one in by_id.get(span.parent_span_id, ()) if one != place]
        parents[place] = max(named, key=lambda one: _fitness(spans[one], span), default=None)
    return parents


def _fitness(parent: Any, child: Any) -> tuple[bool, bool, int]:
    return parent.service == child.service, parent.kind == SERVER, -parent.start_unix_nano


def _corrected(
    spans: Sequence[Any], parents: Mapping[int, int | None], ordered: Sequence[int], starts: list[int], ends: list[int]
) -> dict[int, int]:
    """Move `starts` and `ends` to the clock of the root, each parent before its children; return by how much."""
    clocks = [_clock(span) for span in spans]
    shifted: dict[int, int] = {}
    for place in ordered:
        parent = parents[place]
        if parent is None:
            continue
        is_call = spans[place].kind == SERVER
        # Two processes of one service may call each other, and have two clocks unless their host is known.
        may_differ = is_call and spans[parent].kind == CLIENT and clocks[place][0] == _SERVICE
        if clocks[place] == clocks[parent] and not may_differ:
            delta = shifted.get(parent, 0)
        else:
            inner, outer = (starts[place], ends[place]), (starts[parent], ends[parent])
            delta = 0 if is_asynchronous(spans[place]) else _skew(inner, outer, is_call=is_call)
        if delta:
            shifted[place] = delta
            starts[place] += delta
            ends[place] += delta
    return shifted


def _clock(span: Any) -> tuple[str, str]:
    resource = getattr(span, "resource", None) or {}
    return next(((key, str(resource[key])) for key in _HOST if resource.get(key)), (_SERVICE, span.service))


def _skew(inner: tuple[int, int], outer: tuple[int, int], *, is_call: bool) -> int:
    """Return the correction of a span's times that makes it fit its parent."""
    if inner[0] >= outer[0] and not (is_call and inner[1] > outer[1]):
        return 0
    spare = (outer[1] - outer[0]) - (inner[1] - inner[0])
    if spare < 0:
        return max(0, outer[0] - inner[0])
    return outer[0] + spare // 2 - inner[0]


# --- The critical path of a trace: which span the end waited for, at each moment.
#
# Source: CRISP (Zhang et al., "CRISP: Critical Path Analysis of Large-Scale Microservice Architectures", USENIX ATC
# 2022, section 3) and Jaeger UI (`TracePage/CriticalPath`). Unlike Jaeger UI a sibling that ends exactly where the next
# one starts is on the path: stages tile a request without a gap.

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


# --- The unseen time of each stage of a trace: waiting that no span beneath it shows, and in which its thread had no
# CPU.
#
# What is known of it was measured by length, not by place: it is drawn at the end of the times that no span covers.
# Spans are as `span_tree` describes them.

_NETWORK: Final = {semconv.NETWORK_RECEIVE: cause.SLOW_UPLOAD, semconv.NETWORK_SEND: cause.SLOW_DOWNLOAD}
_WAITS: Final = frozenset(word for word, one in cause.CAUSES.items() if one.is_wait)
_BLOCKED: Final = "blocked by a lock, the GIL, a device, or input or output"


class Unseen(NamedTuple):
    """What is not seen of one stage span: how long for what, and where it is drawn, in ns on the span's own clock."""

    waits: tuple[tuple[str, int], ...]
    intervals: tuple[tuple[int, int], ...]
    at_most: bool = False  # the wait is of the whole request, and most of it lies in this stage


def unseen_times(spans: Sequence[Any]) -> dict[int, Unseen]:
    """Return place -> unseen time, of the stage spans that have some."""
    below: dict[str, list[Any]] = {}
    for span in spans:
        if span.parent_span_id is not None:
            below.setdefault(span.parent_span_id, []).append(span)
    entries = {span.span_id: span for span in spans if span.kind == "SERVER"}
    found: dict[int, Unseen] = {}
    for place, span in enumerate(spans):
        stage = text(span.attributes, semconv.ML_STAGE)
        if stage is None or span.duration_ns <= 0:
            continue
        children = [child for child in below.get(span.span_id, ()) if child is not span]
        free = _free(span, children)
        # Of a detail span of calls with time between them it is known how long they took, and not when.
        calls = sum(_ns(child.attributes, semconv.DETAIL_TIME_MS) or 0 for child in children if is_spread(child))
        left = sum(end - start for start, end in free) - calls
        waits, at_most = _waits(span, stage, entries.get(span.parent_span_id), max(left, 0))
        if waits:
            drawn = _drawn(free, sum(took for _, took in waits))
            found[place] = Unseen(waits, drawn, at_most)
    return found


def _waits(span: Any, stage: str, entry: Any, left: int) -> tuple[tuple[tuple[str, int], ...], bool]:
    """Return what a stage waited for, at most `left` ns in all, and whether that is an upper bound."""
    attributes = span.attributes
    if stage == semconv.QUEUE:
        reason = text(attributes, semconv.QUEUE_REASON) or ""
        phrase = cause.WAITS_FOR.get(reason) or cause.PHRASES[cause.QUEUES.get(reason, cause.POOL_WAIT)]
        return _some((phrase, left)), False
    if stage in _NETWORK:
        return _some((cause.PHRASES[_NETWORK[stage]], left)), False
    computed = _ns(attributes, semconv.CPU_TIME_MS)
    if computed is None:
        return _some(_blamed(stage, entry, left)), True
    rest = max(left - max(computed, _ns(attributes, semconv.DEVICE_TIME_MS) or 0), 0)
    lacked = min(_ns(attributes, semconv.CPU_WAIT_MS) or 0, rest)
    blocked = min(_ns(attributes, semconv.CPU_BLOCKED_MS) or 0, rest - lacked)
    waits = [(cause.PHRASES[cause.CPU_WAIT], lacked), (_BLOCKED, blocked)]
    return _some(*waits, ("for an unknown reason", rest - lacked - blocked)), False


def _blamed(stage: str, entry: Any, left: int) -> tuple[str, int]:
    """Return the wait that a breach is blamed on, of the stage that it is blamed on: nothing else is known of it."""
    if entry is None or text(entry.attributes, semconv.SLA_BREACH_STAGE) != stage:
        return "", 0
    word = text(entry.attributes, semconv.SLA_BREACH_CAUSE)
    if word not in _WAITS:
        return "", 0
    took = number(entry.attributes, semconv.breach_part_ms(word))
    return cause.PHRASES[word], 0 if took is None else min(round(took * 1e6), left)


def _some(*waits: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(one for one in waits if one[1] > 0)


def _ns(attributes: Any, key: str) -> int | None:
    """Return a time of an attribute in ms, by either of its names, in ns."""
    found = next((took for name in names_of(key) if (took := number(attributes, name)) is not None), None)
    return None if found is None else round(found * 1e6)


def _free(span: Any, children: Iterable[Any]) -> list[tuple[int, int]]:
    """Return the times of a span that no child covers."""
    free, at = [], span.start_unix_nano
    for child in sorted(children, key=lambda one: one.start_unix_nano):
        if is_spread(child):
            continue
        if child.start_unix_nano > at:
            free.append((at, min(child.start_unix_nano, span.end_unix_nano)))
        at = max(at, child.end_unix_nano)
    free.append((at, span.end_unix_nano))
    return [(start, end) for start, end in free if end > start]


def _drawn(free: Sequence[tuple[int, int]], took: int) -> tuple[tuple[int, int], ...]:
    """Return a time of so many ns within `free`: of each the last part, in proportion."""
    whole = sum(end - start for start, end in free)
    return tuple((end - (end - start) * min(took, whole) // whole, end) for start, end in free)
