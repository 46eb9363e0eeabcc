"""What the evidence of a breach is made of: how its time divides, and which spans it is about.

Spans are as `span_tree` describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.span_tree import CLIENT
from stagetrace.sla import cause
from stagetrace.span_attributes import number, text

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
        about += _calls(about, spans, peer)
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


def _calls(stages: Sequence[int], spans: Sequence[Any], peer: str) -> list[int]:
    """Return the places of the calls to a peer right beneath these spans."""
    parents = {spans[place].span_id for place in stages}
    return [
        at
        for at, span in enumerate(spans)
        if span.kind == CLIENT and span.parent_span_id in parents and semconv.peer(span.attributes) == peer
    ]
