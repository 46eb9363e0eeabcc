"""Breaches: which service owns their time, what their evidence is made of, and which of them are alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.span_tree import CLIENT, SERVER, aggregated, path_of, span_tree
from stagetrace.causes import cause
from stagetrace.policy.verdict import peer_of
from stagetrace.semconv import number, stage_totals, text

if TYPE_CHECKING:
    from stagetrace.analysis.base import Source

# --- Which service owns the time of a breach: from its slowest stage down the trace, call by call.
#
# Spans are as `span_tree` describes them, with `name`, `attributes` and `duration_ns` beside.

WIRE: Final = "wire"  # in place of a stage: between a call as its client and as its server saw it


class Hop(NamedTuple):
    """One step down: the slowest stage of a service, or the wire from it (`service`) to another (`peer`)."""

    service: str
    stage: str | None
    duration_ms: float
    peer: str | None = None  # the callee that the stage waited for most of its time


@dataclass(frozen=True)
class Owner:
    """Where the time of a breach went. `path` leads down to it; where the trace ends too early, there is a `reason`."""

    path: tuple[Hop, ...]
    reason: str | None = None

    @property
    def last(self) -> Hop:
        """Return the last step: the owner, as far as the trace goes."""
        return self.path[-1]

    @property
    def complete(self) -> bool:
        """Return whether the trace goes as far as the calls do."""
        return self.reason is None


def owner_of(entry: Any, spans: Sequence[Any]) -> Owner:
    """Return the owner of the time of a breached entry span; `spans` are those of its trace.

    Where its slowest stage waited for one peer during at least half of its time, that peer's entry spans are
    examined in the same way, unless the wire in between took longer than they did.
    """
    below: dict[str, list[Any]] = {}
    for span in spans:
        if span.parent_span_id is not None:
            below.setdefault(span.parent_span_id, []).append(span)
    path: list[Hop] = []
    entries, seen = [entry], {entry.span_id}
    while True:
        service = entries[0].service
        stage, visits = _slowest(entries, spans, below)
        calls = list(_calls(visits, below))
        took_ns = sum(span.duration_ns for span in visits)
        peer, _ = peer_of(
            [(span.start_unix_nano, span.end_unix_nano) for span in visits],
            [(_peer(call), call.start_unix_nano, call.end_unix_nano) for call in calls],
        )
        path.append(Hop(service, stage, took_ns / 1e6, peer))
        if peer is None:
            return Owner(tuple(path))
        calls = [call for call in calls if _peer(call) == peer]
        served = [
            (call, server)
            for call in calls
            for server in below.get(call.span_id, ())
            if server.kind == SERVER and server.span_id not in seen
        ]
        called_ns, served_ns = _total(call for call, _ in served), _total(server for _, server in served)
        if 2 * called_ns < _total(calls) or not served:
            return Owner(tuple(path), f"{peer}, which {service} waited for, has left no trace here")
        if called_ns > 2 * served_ns:
            return Owner((*path, Hop(service, WIRE, (called_ns - served_ns) / 1e6, served[0][1].service)))
        entries = [server for _, server in served]
        seen.update(server.span_id for server in entries)


def on_path(entry: Any, spans: Sequence[Any]) -> Hop:
    """Return the span that takes most of the critical path of a request: where no stage says where its time went."""
    place = next(place for place, span in enumerate(spans) if span is entry)
    portions = aggregated([path_of(span_tree(spans), place)])
    if not portions:
        return Hop(entry.service, entry.name, entry.duration_ns / 1e6)
    return Hop(portions[0].service, portions[0].name, portions[0].duration_ns / 1e6)


def _total(spans: Iterable[Any]) -> int:
    return sum(span.duration_ns for span in spans)


def _peer(call: Any) -> str:
    return semconv.peer(call.attributes) or call.name


def _slowest(entries: Sequence[Any], spans: Sequence[Any], below: dict[str, list[Any]]) -> tuple[str | None, list[Any]]:
    """Return the stage of these entry spans that is to blame, and its spans: without stages, they themselves."""
    stage = text(entries[0].attributes, semconv.SLA_BREACH_STAGE) if len(entries) == 1 else None
    if stage is None:
        totals: dict[str, float] = {}
        for entry in entries:
            for name, total in stage_totals(entry, spans).items():
                totals[name] = totals.get(name, 0.0) + total
        stage = max(totals, key=lambda name: totals[name], default=None)
    visits = [
        span
        for entry in entries
        for span in below.get(entry.span_id, ())
        if stage is not None and text(span.attributes, semconv.ML_STAGE) == stage
    ]
    return (stage, visits) if visits else (stage, list(entries))


# --- What the evidence of a breach is made of: how its time divides, and which spans it is about.
#
# Spans are as `span_tree` describes them.


def _calls(tops: Iterable[Any], below: dict[str, list[Any]]) -> Iterator[Any]:
    """Yield the outermost calls to others beneath these spans, within the same service."""
    pending = [child for top in tops for child in below.get(top.span_id, ())]
    seen: set[str] = set()
    while pending:
        span = pending.pop()
        if span.span_id in seen or span.kind == SERVER:
            continue
        seen.add(span.span_id)
        if span.kind == CLIENT:
            if not semconv.is_embedded(span.attributes):
                yield span
        else:
            pending += below.get(span.span_id, ())


_PEER: Final = {
    "queued there": semconv.SLA_BREACH_PEER_QUEUE_MS,
    "computing there": semconv.SLA_BREACH_PEER_COMPUTE_MS,
    "otherwise there": semconv.SLA_BREACH_PEER_OTHER_MS,
    "beyond its own time": semconv.SLA_BREACH_PEER_NETWORK_MS,
    "until its responses ended": semconv.SLA_BREACH_PEER_RESPONSE_MS,
}
_LEAST_MS: Final = 0.001  # as it is shown
_STAGE_OF_BOUND: Final = {
    "first_chunk": semconv.NETWORK_SEND,
    "per_chunk": semconv.NETWORK_SEND,
    "first_token": semconv.INFERENCE,
    "per_token": semconv.INFERENCE,
}


class TimeOf(NamedTuple):
    """A part of a breach's time: its word, what that means, and how long it took."""

    word: str
    phrase: str
    took_ms: float


class BreachEvidence(NamedTuple):
    """The numbers of one breach, and the places of the spans that it is about."""

    times: tuple[TimeOf, ...]  # that of the cause first, then the longest
    peer: str | None  # the service that was waited for
    peer_times: tuple[tuple[str, float], ...]  # how its time divides, by its own report
    places: tuple[int, ...]


def evidence_of(place: int, spans: Sequence[Any]) -> BreachEvidence:
    """Return the evidence of the breach of the entry span at this place."""
    attributes = spans[place].attributes
    word = text(attributes, semconv.SLA_BREACH_CAUSE)
    times = [
        TimeOf(part, phrase, took)
        for part, phrase in cause.PHRASES.items()
        if (took := number(attributes, semconv.breach_part_ms(part))) is not None and took >= _LEAST_MS
    ]
    times.sort(key=lambda one: (one.word != word, -one.took_ms))
    peer = text(attributes, semconv.SLA_BREACH_PEER)
    theirs = tuple((phrase, took) for phrase, key in _PEER.items() if (took := number(attributes, key)) is not None)
    stage = text(attributes, semconv.SLA_BREACH_STAGE)
    about = places_of_stage(place, spans, stage)
    if peer is not None:
        about += _calls_below(about, spans, peer)
    return BreachEvidence(tuple(times), peer, theirs, tuple(about))


def places_of_bound(place: int, spans: Sequence[Any], bound: str) -> list[int]:
    """Return the places of the spans that a missed bound is about: those of the stage that has its time, or all."""
    return places_of_stage(place, spans, _STAGE_OF_BOUND.get(bound)) or [place]


def places_of_stage(place: int, spans: Sequence[Any], stage: str | None) -> list[int]:
    """Return the places of the spans of one stage of an entry span."""
    entry = spans[place].span_id
    return [
        at
        for at, span in enumerate(spans)
        if stage is not None and span.parent_span_id == entry and text(span.attributes, semconv.ML_STAGE) == stage
    ]


def _calls_below(stages: Sequence[int], spans: Sequence[Any], peer: str) -> list[int]:
    """Return the places of the calls to a peer right beneath these spans."""
    parents = {spans[place].span_id for place in stages}
    return [
        at
        for at, span in enumerate(spans)
        if span.kind == CLIENT and span.parent_span_id in parents and semconv.peer(span.attributes) == peer
    ]


# --- Breaches that are alike, as one group each: of one service, route, stage, cause and line of code.

_ALL: Final = 2**62


@dataclass(frozen=True)
class Group:
    """The breaches of one group, a row of the reduction. What they lack is None; times are starts of requests."""

    service: str
    route: str  # of requests without one: their name
    stage: str | None
    cause: str | None
    code: str | None
    breaches: int
    first_unix_nano: int
    last_unix_nano: int
    median_overrun_ms: float | None
    worst_overrun_ms: float | None
    lost_ms: float  # over what was allowed, in all
    worst_trace_id: str


@dataclass(frozen=True)
class Groups:
    """The largest groups, by the number of their breaches, of `different` ones."""

    groups: tuple[Group, ...]
    different: int


def ask(source: Source, most: int | None = None) -> Groups:
    """Return the groups of the breaches, at most `most`."""
    rows = [tuple(row.values()) for row in source.reduce("breach_groups", most=_ALL if most is None else most)]
    return Groups(tuple(Group(*row[:-1]) for row in rows), rows[0][-1] if rows else 0)
