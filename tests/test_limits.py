"""Runaway code in a request: the recorded data is bounded, discarded data is counted, and no request is harmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services import Service, run_service
from stagetrace.request import limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Request, Sink

pytestmark = pytest.mark.usefixtures("services")

LONGEST = limits.DEFAULT_LONGEST
JAEGERS_LIMIT = 65_000


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(STAGETRACE_SLA="* within 1us", STAGETRACE_RECORD_QUERY="1")
    with run_service(folder, "runaway", env=env) as running:
        yield running
        assert "failed (" not in running.log


def traced(service: Service, sink: Sink, path: str, **kwargs: Any) -> Request:
    request, response = sink.traced(service, "GET", path, **kwargs)
    assert response.json() == {"ok": True}
    return request


def longest(attributes: dict[str, Any]) -> int:
    return max(len(str(value)) for value in attributes.values())


def test_a_runaway_loop_of_stages_is_summed(service: Service, sink: Sink) -> None:
    """100,000 visits to new stages, each with attributes: 128 are shown one by one, the rest summed by name."""
    request = traced(service, sink, "/stages")
    assert len(request.stages) <= 128 + 40
    visits = sum(stage.attributes.get("ml.stage.coalesced", 1) for stage in request.stages)
    assert visits >= 100_000
    assert len(request.entry.attributes) < 128 + 64


def test_stages_within_stages_without_end_are_harmless(service: Service, sink: Sink) -> None:
    request = traced(service, sink, "/nested-stages")
    assert len(request.stages) <= 128 + 40


@pytest.mark.parametrize("path", ["/long/current", "/long/list", "/long/event"])
def test_ten_megabytes_on_the_current_span_are_cut(path: str, service: Service, sink: Sink) -> None:
    request = traced(service, sink, path)
    entry = request.entry
    assert entry.attributes["stagetrace.truncated_attributes"] == 1
    assert longest(entry.attributes) <= LONGEST * 2
    assert size_of(sink, entry.span_id) < JAEGERS_LIMIT


def test_ten_megabytes_on_a_stage_are_cut(service: Service, sink: Sink) -> None:
    request = traced(service, sink, "/long/stage")
    stage = next(one for one in request.stages if one.name == "long")
    assert stage.attributes["stagetrace.truncated_attributes"] == 1
    assert stage.attributes["long"] == "x" * LONGEST
    assert "stagetrace.truncated_attributes" not in request.entry.attributes


def test_ten_megabytes_on_a_child_are_cut(service: Service, sink: Sink) -> None:
    entry = traced(service, sink, "/long/child").entry
    child = sink.span(entry.trace_id, "child")
    assert child.attributes["stagetrace.truncated_attributes"] == 1
    assert child.attributes["long"] == "x" * LONGEST
    assert child.attributes["exact"] == "y" * LONGEST
    assert size_of(sink, child.span_id) < JAEGERS_LIMIT


def test_what_a_client_sends_is_cut_too(service: Service, sink: Sink) -> None:
    request = traced(service, sink, f"/any/{'p' * 20_000}?q={'q' * 20_000}", headers={"user-agent": "u" * 20_000})
    attributes = request.entry.attributes
    assert attributes["stagetrace.truncated_attributes"] == 3
    assert {len(attributes[name]) for name in ("url.path", "url.query", "user_agent.original")} == {LONGEST}
    assert size_of(sink, request.entry.span_id) < JAEGERS_LIMIT


def test_objects_of_all_kinds_are_recorded_as_far_as_they_can_be(service: Service, sink: Sink) -> None:
    """A cycle, an object whose `str` fails, one whose `str` opens a span, a number beyond 64 bits, too many at once."""
    request = traced(service, sink, "/objects")
    by_name = {stage.name: stage.attributes for stage in request.stages}
    assert by_name["cycle"]["value"] == "[[...]]"
    assert by_name["raises"] == {"ml.stage": "raises", "after": 1, "stagetrace.dropped_attributes": 1}
    assert by_name["opens"]["value"] == "opened"
    assert by_name["huge"]["value"] == str(2**70)
    assert by_name["many"]["stagetrace.dropped_attributes"] == 1000 - 128
    assert len(by_name["many"]) == 128 + 2
    sink.wait_for(lambda all_: any(s.name == "opened by __str__" for s in all_))
    assert request.entry.attributes["after"] == "all"
    assert request.entry.attributes["stagetrace.dropped_attributes"] == 6  # two cycles and no text, each twice


def size_of(sink: Sink, span_id: str) -> int:
    return next(int(proto.ByteSize()) for proto in sink.protos if proto.span_id.hex() == span_id)


def test_a_hundred_thousand_spans_in_one_request_are_counted(service: Service, sink: Sink) -> None:
    """If the head sampler dropped the request, 1000 of them are kept, and the breach has the number of missing ones."""
    trace_id = "ab" * 16
    response = service.client.get("/spans/100000", headers={"traceparent": f"00-{trace_id}-{'cd' * 8}-00"})
    assert response.json() == {"ok": True}
    sink.wait_for(lambda all_: sum(s.trace_id == trace_id and s.name == "detail" for s in all_) >= 1000)
    request = sink.request(trace_id)
    assert request.entry.attributes["sla.upgraded"] is True
    assert request.entry.attributes["stagetrace.dropped_spans"] == 100_000 - len(request.others)
    assert len(request.others) == 1000


def test_the_limit_of_the_environment_holds(sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="10", OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="3")
    with run_service(tmp_path, "runaway", env=env) as service:
        entry = traced(service, sink, "/long/current").entry
        assert entry.attributes["long"] == "x" * 10
        assert entry.attributes["stagetrace.truncated_attributes"] == 3  # the path and the user agent too
        child, _ = service.call("GET", "/long/child")
        attributes = sink.span(child, "child").attributes
        assert (attributes["long"], attributes["exact"]) == ("x" * 10, "y" * 10)
