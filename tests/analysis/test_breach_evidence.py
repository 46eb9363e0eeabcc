"""The evidence of a breach: its numbers, and the spans that it is about."""

from __future__ import annotations

from typing import Any

from stagetrace.analysis.breach_details import evidence_of, places_of_bound
from stagetrace.store.base import SpanRow

BREACH = {
    "sla.breach.cause": "downstream",
    "sla.breach.stage": "handler",
    "sla.breach.peer": "db:5432",
    "sla.breach.peer.queue_ms": 7.0,
    "sla.breach.part.compute_ms": 60.0,
    "sla.breach.part.downstream_ms": 40.0,
    "sla.breach.part.gc_ms": 0.0004,
}


def span(number: int, parent: int, name: str, kind: str = "INTERNAL", **attributes: Any) -> SpanRow:
    return SpanRow("t", str(number), str(parent) if parent else None, name, "svc", kind, 0, 100, attributes)


SPANS = (
    span(1, 0, "POST /", "SERVER", **BREACH),
    span(2, 1, "handler", **{"ml.stage": "handler"}),
    span(3, 1, "network.send", **{"ml.stage": "network.send"}),
    span(4, 2, "SELECT", "CLIENT", **{"peer.service": "db:5432"}),
    span(5, 2, "GET", "CLIENT", **{"peer.service": "cache"}),
    span(6, 9, "handler", **{"ml.stage": "handler"}),  # of another request
)


def test_the_part_of_the_cause_comes_first() -> None:
    """Then the longest; one that is shown as no time is left out."""
    found = evidence_of(0, SPANS)
    assert [(one.word, one.took_ms) for one in found.times] == [("downstream", 40.0), ("compute", 60.0)]
    assert found.peer == "db:5432"
    assert found.peer_times == (("queued there", 7.0),)


def test_it_is_about_the_stage_and_the_calls_to_the_peer() -> None:
    assert evidence_of(0, SPANS).places == (1, 3)


def test_a_bound_is_about_the_stage_that_has_its_time() -> None:
    assert places_of_bound(0, SPANS, "first_chunk") == [2]
    assert places_of_bound(0, SPANS, "first_token") == [0]  # there is no inference: the request itself
