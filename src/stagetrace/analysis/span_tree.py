"""The tree that the spans of one trace form, on one clock: the start of every analysis of a trace.

Spans are duck-typed (`store.base.SpanRow` is one): `span_id`, `parent_span_id`, `service`, `kind`, `start_unix_nano`,
`end_unix_nano`, and, if they have them, `attributes`, `resource` and `follows`. A span is known by its place in the
sequence given, since ids may repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stagetrace import semconv
from stagetrace.span_attributes import number

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
    spans: Sequence[Any],
    parents: Mapping[int, int | None],
    ordered: Sequence[int],
    starts: list[int],
    ends: list[int],
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
