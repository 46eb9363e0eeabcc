"""Which service is to blame where traces are slow or fail: their excess of time and errors over the normal, by service.

The critical path of a trace divides its whole duration among spans, so that the differences of their shares between
slow and normal traces add up to the difference of the whole. What a span does itself is its service's; the time between
a call as its client and as its server saw it belongs to the edge, and so to one of its ends (as in network delay). Both
are compared within traces of one kind, or a mix of routes would be taken for a cause. Similar: MicroRank (Yu et al.,
WWW 2021) and TraceRCA (Li et al., IWQoS 2021) rank by traces that pass through a service, without its own time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log1p
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace import semconv
from stagetrace.analysis.span_tree import CLIENT, CONSUMER, SERVER, Tree, path_of, span_tree
from stagetrace.analysis.statistics import NONE, Compared, Excess, Timed, benjamini_hochberg, mix

LEAST: Final = 5  # traces on each side
ALPHA: Final = 0.05  # share of false ones among the services named
_Z: Final = 1.96
_OF_ERRORS: Final = 2.0  # score of a service that fails first in each trace
_MS: Final = 1e6
_PRODUCER: Final = "PRODUCER"
_ERROR: Final = "ERROR"
_RESPONSES: Final = ("http.response.status_code", "http.status_code")
_SERVER_ERROR: Final = 500
_RPC_STATUS: Final = "rpc.grpc.status_code"
_RPC_GOOD: Final = ("0", "OK")
# A service that hardly varies is not suspect for a little: its normal variation is taken for at least so much.
_LEAST_MS: Final = 0.1
_LEAST_SHARE: Final = 0.05
_ALWAYS: Final = 0.8  # of the traces of an operation: a call that as many have belongs to it
_SELDOM: Final = 0.5  # of that share
_FLIP: Final = 0.3  # of an edge's excess: evidence that its caller must show in other calls to be blamed for it


@dataclass(frozen=True)
class Culprit:
    """The excess of one service in the slow traces; ms are means over traces, along the critical path."""

    service: str
    operation: str  # the one with most of it
    excess_ms: float
    interval_ms: tuple[float, float]  # of 95 %
    normal_ms: float
    self_ms: float  # of the excess: in its own spans
    edge_ms: float  # of the excess: between it and those that it calls or that call it
    errors: float  # share of the traces in which it was the first to fail, beyond the normal share
    score: float  # from 0 on; 1 and more: it explains most of the excess, far beyond its normal variation
    q_value: float  # of its time or errors being no more than normal; corrected over all services
    peers: tuple[str, ...] = ()  # the other ends of the edges that are slower
    operations: Mapping[str, float] = field(default_factory=dict)  # each with an excess -> ms


@dataclass(frozen=True)
class Localised:
    """Services by score, the greatest first; none where slow traces differ from normal ones in nothing."""

    culprits: tuple[Culprit, ...]
    slow: int  # traces compared
    normal: int
    slow_ms: float | None  # mean durations, of the mix of the slow traces
    normal_ms: float | None
    unlike: int = 0  # slow traces of a kind that no normal trace is of: compared with all of them
    unrooted: int = 0  # traces without a whole path: left out
    services: frozenset[str] = frozenset()  # all that the traces pass through, those called without spans included
    stopped: tuple[Stopped, ...] = ()  # calls that normal traces have, those that most lack first


@dataclass(frozen=True)
class Stopped:
    """Calls that traces of the caller's operation nearly always had, and now seldom have; shares of these traces."""

    caller: str
    operation: str
    callee: str
    share: float
    normal_share: float


class _Edge(NamedTuple):
    caller: str
    callee: str


class _Seen(NamedTuple):
    """A trace: its times, and what it calls."""

    timed: Timed
    operations: frozenset[tuple[str, str]]  # of services
    calls: frozenset[tuple[str, str, str]]  # each an operation, and the service that it calls


def localise(slow: Iterable[Sequence[Any]], normal: Iterable[Sequence[Any]]) -> Localised:
    """Return which services explain that some traces are slower than, or fail where, normal ones do not.

    Each trace is a sequence of spans as `store.base.SpanRow`, all spans of one trace, in any order. Span kinds may be
    missing: a span with one child, of another service, then is a call.
    """
    trees = [[span_tree(spans) for spans in traces] for traces in (slow, normal)]
    callees = _callees(tree for some in trees for tree in some)
    seen = [[one for tree in some if (one := _seen(tree, callees)) is not None] for some in trees]
    unrooted = sum(map(len, trees)) - sum(map(len, seen))
    ours, theirs = ([one.timed for one in some] for some in seen)
    if len(ours) < LEAST or len(theirs) < LEAST:
        return Localised((), len(ours), len(theirs), None, None, unrooted=unrooted)
    roots = {one.kind[:2] for one in theirs}
    alike = [one for one in ours if one.kind[:2] in roots]
    if len(alike) >= LEAST:  # like with like: a mix of other routes is no fault
        ours = alike
    weights, unlike = mix(ours, theirs)
    compared = Compared(ours, theirs, weights)
    whole = compared.excess({None: [one.took_ms for one in ours]}, {None: [one.took_ms for one in theirs]})[None]
    culprits = _culprits(compared, whole)
    services = {name for some in seen for one in some for name in _services(one)}
    return Localised(
        *(tuple(culprits), len(seen[0]), len(theirs), whole.normal + whole.more, whole.normal),
        unlike=unlike + len(seen[0]) - len(ours),
        unrooted=unrooted,
        services=frozenset(services),
        stopped=_stopped(*seen),
    )


def _services(one: _Seen) -> Iterator[str]:
    yield from (service for service, _ in one.operations)
    yield from (callee for *_, callee in one.calls)


def _callees(trees: Iterable[Tree]) -> dict[tuple[str, str], str]:
    """Return the callees of the calls of one service and name, as far as any trace has the other side."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for tree in trees:
        for place, span in enumerate(tree.spans):
            other = _other_side(tree, place)
            if other is not None:
                found[span.service, span.name][other] += 1
    return {key: counts.most_common(1)[0][0] for key, counts in found.items()}


def _other_side(tree: Tree, place: int) -> str | None:
    """Return the service that a span calls, if it is a call that the other side has a span of."""
    span, children = tree.spans[place], tree.children.get(place, ())
    others = [tree.spans[child].service for child in children if tree.spans[child].service != span.service]
    if not others:
        return None
    if span.kind in (CLIENT, _PRODUCER):
        return str(others[0])
    is_call = span.kind not in (SERVER, CONSUMER) and len(children) == 1 and place not in tree.roots
    return str(others[0]) if is_call else None


def _seen(tree: Tree, callees: Mapping[tuple[str, str], str]) -> _Seen | None:
    path = path_of(tree)
    if path.root is None or not path.segments:
        return None
    parts: dict[tuple[str | _Edge, str], float] = defaultdict(float)
    for segment in path.segments:
        parts[_part(tree, segment.place, callees)] += segment.duration_ns / _MS
    took = (tree.ends[path.root] - tree.starts[path.root]) / _MS
    places = tree.below(path.root)
    passes = frozenset(_part(tree, place, callees) for place in places)
    operation: dict[int, tuple[str, str]] = {}  # of each span: the first span of its service there
    calls = set()
    for place in places:
        span = tree.spans[place]
        mine = operation.setdefault(place, (span.service, span.name))
        owner, _ = _part(tree, place, callees)
        if isinstance(owner, _Edge):
            calls.add((*mine, owner.callee))
        for child in tree.children.get(place, ()):
            if tree.spans[child].service == span.service:
                operation[child] = mine
            else:
                calls.add((*mine, tree.spans[child].service))
    timed = Timed(_kind(tree, path.root), took, parts, failed=_first_failed(tree, callees), passes=passes)
    return _Seen(timed, frozenset(operation.values()), frozenset(calls))


def _part(tree: Tree, place: int, callees: Mapping[tuple[str, str], str]) -> tuple[str | _Edge, str]:
    """Return the service, or the edge to the one that it calls, to which a span's own time belongs, and its name."""
    span = tree.spans[place]
    callee = _other_side(tree, place)
    if callee is None and span.kind == CLIENT:
        callee = callees.get((span.service, span.name)) or semconv.peer(span.attributes)
    return span.service if callee is None or callee == span.service else _Edge(span.service, callee), span.name


def _stopped(slow: Sequence[_Seen], normal: Sequence[_Seen]) -> tuple[Stopped, ...]:
    """Return the calls that operations nearly always make, and do not in most slow traces."""
    from scipy.stats import fisher_exact

    passing = [Counter(name for one in some for name in one.operations) for some in (slow, normal)]
    calling = [Counter(name for one in some for name in one.calls) for some in (slow, normal)]
    found, tests = [], 0
    for (service, operation, callee), count in calling[1].items():
        of = [some[service, operation] for some in passing]
        if min(of) < LEAST:
            continue
        tests += 1
        now, before = calling[0][service, operation, callee] / of[0], count / of[1]
        if before >= _ALWAYS and now <= _SELDOM * before:
            called = calling[0][service, operation, callee]
            table = np.array([[called, count], [of[0] - called, of[1] - count]])
            found.append(
                (fisher_exact(table, alternative="less").pvalue, Stopped(service, operation, callee, now, before))
            )
    surely = [one for p_value, one in found if p_value * tests <= ALPHA]
    return tuple(sorted(surely, key=lambda one: (one.share - one.normal_share, one.caller, one.callee)))


def _kind(tree: Tree, root: int) -> tuple[str, str, str]:
    """Return the kind of a trace: its root, and the first operation of another service (a gateway's is vague)."""
    top = tree.spans[root]
    others = [place for place in tree.below(root) if tree.spans[place].service != top.service]
    first = min(others, key=lambda place: tree.starts[place], default=None)
    return top.service, top.name, "" if first is None else tree.spans[first].name


def _first_failed(tree: Tree, callees: Mapping[tuple[str, str], str]) -> frozenset[str]:
    """Return the services whose spans failed with none below them; of a call without other side, its callee."""
    failed = {place for place, span in enumerate(tree.spans) if _has_failed(span)}
    origins = set()
    for place in failed:
        if any(child in failed for child in tree.children.get(place, ())):
            continue
        span = tree.spans[place]
        callee = None
        if span.kind == CLIENT and not tree.children.get(place):
            callee = callees.get((span.service, span.name)) or semconv.peer(span.attributes)
        origins.add(callee or span.service)
    return frozenset(origins)


def _has_failed(span: Any) -> bool:
    """Return whether a span failed, by its status or by the response's."""
    if span.status == _ERROR:
        return True
    codes = (span.attributes.get(key) for key in _RESPONSES)
    return any(str(code).isdigit() and int(str(code)) >= _SERVER_ERROR for code in codes) or (
        str(span.attributes.get(_RPC_STATUS, 0)) not in _RPC_GOOD
    )


def _culprits(compared: Compared, whole: Excess) -> list[Culprit]:
    """Return the services that differ, by score: the share of the excess, by how abnormal it is; and errors."""
    from scipy.special import ndtr

    alone = compared.among_passing(lambda part: None if isinstance(part[0], _Edge) else part[0])
    edges = compared.among_passing(lambda part: part[0] if isinstance(part[0], _Edge) else None)
    blamed = _blamed(alone, edges)
    owned = compared.among_passing(lambda part: blamed.get(part[0], part[0]))
    operations = compared.among_passing(lambda part: (blamed.get(part[0], part[0]), part[1]))
    failed = _failures(compared)
    services = sorted({**owned, **failed})
    # Three statistics: of time by means and by ranks, and of errors.
    tests = [min(1.0, 3 * ndtr(-max(owned.get(one, NONE).z, failed.get(one, NONE).z))) for one in services]
    total = sum(one.sure for one in owned.values()) or 1.0
    slower = min(1.0, total / max(whole.normal, _LEAST_MS))
    made = []
    for service, q_value in zip(services, benjamini_hochberg(tests), strict=True):
        one, errors = owned.get(service, NONE), failed.get(service, NONE)
        unusual = one.sure / one.share / (one.spread + _LEAST_SHARE * one.normal / one.share + _LEAST_MS)
        score = slower * one.sure / total * log1p(unusual) + _OF_ERRORS * errors.sure
        if q_value > ALPHA or score <= 0:
            continue
        more = {name: each.more for (owner, name), each in operations.items() if owner == service and each.sure > 0}
        mine = {edge for edge, owner in blamed.items() if owner == service and edges[edge].sure > 0}
        culprit = Culprit(
            service=service,
            operation=max(more, key=lambda name: more[name], default=""),
            excess_ms=one.more,
            interval_ms=(one.more - _Z * one.error, one.more + _Z * one.error),
            normal_ms=one.normal,
            self_ms=alone[service].more if service in alone else 0.0,
            edge_ms=sum(edges[edge].more for edge in mine),
            errors=errors.more if errors.sure > 0 else 0.0,
            score=float(score),
            q_value=float(q_value),
            peers=tuple(sorted({end for edge in mine for end in edge} - {service})),
            operations=more,
        )
        made.append(culprit)
    return sorted(made, key=lambda one: (-one.score, one.service))


def _blamed(alone: Mapping[str, Excess], edges: Mapping[_Edge, Excess]) -> dict[_Edge, str]:
    """Return which end is to blame for each edge: the callee, unless the caller alone is slower in other calls."""
    touching: dict[str, float] = defaultdict(float)
    for edge, one in edges.items():
        for end in set(edge):
            touching[end] += one.sure
    blamed = {}
    for edge, one in edges.items():
        caller, callee = (
            touching[end] - one.sure + (alone[end].sure if end in alone else 0.0) for end in (edge.caller, edge.callee)
        )
        blamed[edge] = edge.caller if caller > callee and caller > _FLIP * one.sure else edge.callee
    return blamed


def _failures(compared: Compared) -> dict[str, Excess]:
    """Return in which share more of the slow traces than of the normal ones each service is the first to fail."""
    columns = []
    for traces in (compared.slow, compared.normal):
        names = {name for one in traces for name in one.failed}
        columns.append({name: np.array([name in one.failed for one in traces], float) for name in names})
    return compared.excess(*columns)
