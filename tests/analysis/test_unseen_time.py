"""Unseen time: what a stage waited for, as far as it is known, and where it is drawn."""

from __future__ import annotations

from typing import Any

from stagetrace.analysis.span_tree import Unseen, unseen_times
from stagetrace.store.base import SpanRow

MS = 10**6
CPU = {"stagetrace.cpu.time_ms": 30.0, "stagetrace.cpu.wait_ms": 15.0, "stagetrace.cpu.blocked_ms": 40.0}


def span(number: int, parent: int, name: str, start: int, end: int, **attributes: Any) -> SpanRow:
    kind = "SERVER" if not parent else "INTERNAL"
    return SpanRow(
        "t", str(number), str(parent) if parent else None, name, "svc", kind, start * MS, end * MS, attributes
    )


def stage(name: str, attributes: dict[str, Any] | None = None, *, until: int = 100) -> SpanRow:
    return span(2, 1, name, 0, until, **{"ml.stage": name, **(attributes or {})})


def of_stage(*spans: SpanRow, entry: dict[str, Any] | None = None) -> Unseen | None:
    """Return the unseen time of a stage that lasts 100 ms, with spans below it."""
    return unseen_times([span(1, 0, "POST /", 0, 100, **(entry or {})), *spans]).get(1)


def test_a_queue_waits_all_of_its_time() -> None:
    assert of_stage(stage("queue", {"queue.reason": "socket"})) == Unseen(
        (("in the socket, until the server read it", 100 * MS),), ((0, 100 * MS),)
    )
    found = of_stage(stage("queue", {"queue.reason": "thread_pool"}))
    assert found is not None
    assert found.waits == (("waiting for a thread", 100 * MS),)


def test_what_cpu_time_does_not_explain_is_unseen() -> None:
    """Of 100 ms 30 were computed, 15 lacked a CPU, 40 were blocked; 15 are unknown. By its old names, too."""
    found = of_stage(stage("inference", CPU))
    assert found is not None
    assert [took for _, took in found.waits] == [15 * MS, 40 * MS, 15 * MS]
    assert found.waits[-1][0] == "for an unknown reason"
    assert found.intervals == ((30 * MS, 100 * MS),)
    assert (
        of_stage(stage("inference", {name.removeprefix("stagetrace."): value for name, value in CPU.items()})) == found
    )


def test_spans_below_explain_time_and_are_not_hatched() -> None:
    """Two calls leave 40 ms free; it is drawn at the end of each free time, in proportion."""
    calls = (span(3, 2, "GET", 10, 40), span(4, 2, "GET", 30, 70))
    found = of_stage(stage("inference", {**CPU, "stagetrace.cpu.time_ms": 20.0}), *calls)
    assert found is not None
    assert sum(took for _, took in found.waits) == 20 * MS
    assert found.intervals == ((5 * MS, 10 * MS), (85 * MS, 100 * MS))


def test_spread_calls_explain_as_long_as_they_took() -> None:
    spread = span(3, 2, "tokenize x5", 0, 100, **{"stagetrace.detail.calls": 5, "stagetrace.detail.time_ms": 45.0})
    found = of_stage(stage("inference", CPU), spread)
    assert found is not None
    assert sum(took for _, took in found.waits) == 25 * MS


def test_a_device_that_computed_is_not_waited_for() -> None:
    assert of_stage(stage("inference", {**CPU, "stagetrace.device.time_ms": 100.0})) is None


def test_a_stage_without_readings_has_what_its_breach_is_blamed_on() -> None:
    """At most: the wait is the whole request's. Of a good request, and of another stage, nothing is known."""
    blame = {"sla.breach.stage": "handler", "sla.breach.cause": "io_wait", "sla.breach.part.io_wait_ms": 80.0}
    found = of_stage(stage("handler"), entry=blame)
    assert found == Unseen(
        (("blocked in a socket, a file, a sleep or a subprocess", 80 * MS),), ((20 * MS, 100 * MS),), at_most=True
    )
    assert of_stage(stage("handler"), entry={**blame, "sla.breach.stage": "preprocess"}) is None
    assert of_stage(stage("handler"), entry={**blame, "sla.breach.cause": "compute"}) is None
    assert of_stage(stage("handler")) is None
    assert of_stage(stage("handler", until=0), entry=blame) is None
