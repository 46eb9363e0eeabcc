"""Who owns the time of a breach, and what its evidence is, on literal traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli import literal
from cli.running import printed
from cli.test_waterfall import span
from messages import of_rows
from stagetrace import semconv
from stagetrace.analysis.breach_details import Hop, evidence_of, owner_of, places_of_bound
from stagetrace.otlp.decode.json import encode
from stagetrace.store.base import SpanRow

if TYPE_CHECKING:
    from pathlib import Path

    from stagetrace.analysis.breach_details import Owner

BLAMED: dict[str, Any] = {semconv.SLA_BREACH_STAGE: "handler"}
GATE = span(1, "GET /", 0, 100, service="gate", kind="SERVER", **BLAMED)


def stage(number: int, name: str, start: float, end: float, parent: int = 1, service: str = "gate") -> SpanRow:
    return span(number, name, start, end, parent, service=service, **{semconv.ML_STAGE: name})


def call(number: int, start: float, end: float, parent: int = 2, peer: str = "down:80", **more: Any) -> SpanRow:
    host, _, port = peer.partition(":")
    attributes = {"server.address": host, "server.port": int(port), "service": "gate", **more}
    return span(number, "GET", start, end, parent, kind="CLIENT", **attributes)


def served(number: int, start: float, end: float, parent: int, service: str = "down") -> SpanRow:
    return span(number, "GET /x", start, end, parent, service=service, kind="SERVER")


HANDLER, SEND = stage(2, "handler", 0, 96), stage(3, "network.send", 96, 100)


def owner(*spans: SpanRow) -> Owner:
    return owner_of(GATE, [GATE, HANDLER, SEND, *spans])


def test_a_stage_that_calls_nobody_owns_its_time() -> None:
    assert owner().path == (Hop("gate", "handler", 96.0),)
    assert owner().complete


def test_a_call_of_less_than_half_of_the_stage_is_not_followed() -> None:
    assert owner(call(4, 10, 57), served(5, 11, 56, 4)).path == (Hop("gate", "handler", 96.0),)


def test_a_call_of_half_of_it_leads_to_the_slowest_stage_of_whom_it_called() -> None:
    spans = (
        call(4, 10, 60),
        served(5, 11, 59, 4),
        stage(6, "queue", 11, 41, 5, "down"),
        stage(7, "inference", 41, 59, 5),
    )
    found = owner(*spans)
    assert found.path == (Hop("gate", "handler", 96.0, "down:80"), Hop("down", "queue", 30.0))
    assert found.complete


def test_a_database_within_the_process_is_not_waited_for() -> None:
    assert owner(span(4, "SELECT", 0, 90, 2, kind="CLIENT", **{"db.system": "sqlite"})).path == (
        Hop("gate", "handler", 96.0),
    )


def test_calls_lead_on_from_there() -> None:
    """A span of the user's own may stand between stage and call."""
    spans = (
        *(call(4, 0, 90), served(5, 1, 89, 4), stage(6, "preprocess", 1, 89, 5, "down")),
        *(span(7, "load", 1, 88, 6, service="down"), call(8, 2, 87, 7, "deep:81", service="down")),
        *(served(9, 3, 86, 8, "deep"), stage(10, "inference", 3, 86, 9, "deep")),
    )
    assert owner(*spans).path == (
        Hop("gate", "handler", 96.0, "down:80"),
        Hop("down", "preprocess", 88.0, "deep:81"),
        Hop("deep", "inference", 83.0),
    )


def test_the_wire_owns_what_neither_end_has() -> None:
    found = owner(call(4, 0, 90), served(5, 50, 90, 4), stage(6, "handler", 50, 90, 5, "down"))
    assert found.path == (Hop("gate", "handler", 96.0, "down:80"), Hop("gate", "wire", 50.0, "down"))


def test_clocks_that_differ_change_nothing() -> None:
    found = owner(call(4, 0, 90), served(5, 5000, 5080, 4), stage(6, "handler", 5000, 5080, 5, "down"))
    assert found.last == Hop("down", "handler", 80.0)


def test_a_downstream_trace_that_is_missing_is_reported() -> None:
    found = owner(call(4, 0, 90))
    assert found.path == (Hop("gate", "handler", 96.0, "down:80"),)
    assert found.reason == "down:80, which gate waited for, has left no trace here"


def test_a_service_without_stages_is_one() -> None:
    assert owner(call(4, 0, 90), served(5, 1, 89, 4)).last == Hop("down", None, 88.0)


def test_many_calls_to_one_peer_count_together_and_those_at_once_once() -> None:
    """Nine of 10 ms, one after another, of which each spends 8 there; another peer's run beside them."""
    spans = []
    for number in range(9):
        at = number * 10
        spans += [call(10 + number, at, at + 10), served(30 + number, at + 1, at + 9, 10 + number)]
        spans += [stage(50 + number, "inference", at + 1, at + 9, 30 + number, "down")]
        spans += [call(70 + number, 0, 10, peer="other:82")]
    assert owner(*spans).path == (Hop("gate", "handler", 96.0, "down:80"), Hop("down", "inference", 72.0))


def test_calls_outside_of_the_slowest_stage_do_not_count() -> None:
    assert owner(call(4, 96, 100, 3), served(5, 96, 100, 4)).path == (Hop("gate", "handler", 96.0),)


def test_a_peer_is_named_as_the_caller_names_it() -> None:
    named: dict[str, Any] = {"peer.service": "users"}
    assert owner(call(4, 0, 90, **named)).last.peer == "users"


def test_people_see_who_owns_the_time_or_that_a_trace_is_missing(tmp_path: Path) -> None:
    """A breach that leads to nobody, in a file; the same with the other side's spans."""
    late = {semconv.SLA_BREACH_STAGE: "handler", semconv.SLA_BREACH_CAUSE: "downstream"}
    front = span(1, "GET /", 0, 100, service="gate", kind="SERVER", **literal.verdict(breached=True, **late))
    alone = [front, HANDLER, SEND, call(4, 0, 90)]
    whole = [*alone, served(5, 1, 89, 4), stage(6, "inference", 1, 89, 5, "down")]
    said = printed("breaches", "--each", "--store", literal.write(tmp_path, [encode(of_rows(alone))]))
    assert "  handler > down:80 (no trace)  " in said
    assert said.endswith("\nNot followed: down:80, which gate waited for, has left no trace here.\n")
    said = printed("breaches", "--each", "--store", literal.write(tmp_path, [encode(of_rows(whole))]))
    assert "  handler > down inference  " in said
    assert "Not followed" not in said


def test_a_circle_ends() -> None:
    spans = call(4, 0, 90), served(5, 1, 89, 4), stage(6, "handler", 1, 89, 5, "down")
    assert owner(*spans, call(7, 1, 88, 6), span(1, "GET /", 1, 88, 7, service="gate", kind="SERVER")).reason


# --- The evidence of a breach: its numbers, and the spans that it is about.

BREACH = {
    "sla.breach.cause": "downstream",
    "sla.breach.stage": "handler",
    "sla.breach.peer": "db:5432",
    "sla.breach.peer.queue_ms": 7.0,
    "sla.breach.part.compute_ms": 60.0,
    "sla.breach.part.downstream_ms": 40.0,
    "sla.breach.part.gc_ms": 0.0004,
}


def literal_span(number: int, parent: int, name: str, kind: str = "INTERNAL", **attributes: Any) -> SpanRow:
    return SpanRow("t", str(number), str(parent) if parent else None, name, "svc", kind, 0, 100, attributes)


SPANS = (
    literal_span(1, 0, "POST /", "SERVER", **BREACH),
    literal_span(2, 1, "handler", **{"ml.stage": "handler"}),
    literal_span(3, 1, "network.send", **{"ml.stage": "network.send"}),
    literal_span(4, 2, "SELECT", "CLIENT", **{"peer.service": "db:5432"}),
    literal_span(5, 2, "GET", "CLIENT", **{"peer.service": "cache"}),
    literal_span(6, 9, "handler", **{"ml.stage": "handler"}),  # of another request
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
