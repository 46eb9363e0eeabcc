"""The entry span as the request's code meets it: an OpenTelemetry span, for any call at any time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Span, SpanContext, SpanKind, StatusCode, TraceFlags

from stagetrace import guard
from stagetrace.bridge.entry import SeenSpan
from stagetrace.request.context import open_entry
from stagetrace.request.own_span import Identity
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.native

START = 10**18
OWN: Any = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))


@pytest.fixture(autouse=True)
def _no_failures() -> Iterator[None]:
    guard.failures.clear()
    yield
    assert guard.failures == {}


class Recorder:
    """Draws one identity, after doing what a test wants done meanwhile."""

    has_others = False

    def __init__(self, meanwhile: Callable[[Request], Any] = lambda _: None) -> None:
        self.calls = 0
        self._meanwhile = meanwhile

    def identify(self, request: Request) -> Identity:
        self.calls += 1
        self._meanwhile(request)
        return Identity(OWN, None, is_sampled=True)


def entry_of(recorder: Recorder) -> SeenSpan:
    request = Request(start=START)
    open_entry(request, "GET", Context(), recorder)  # type: ignore[arg-type]
    return SeenSpan(request)


def test_ids_are_drawn_when_somebody_asks_and_once() -> None:
    recorder = Recorder()
    entry = entry_of(recorder)
    entry.set_attribute("k", "v")
    entry.update_name("GET /x")
    assert (recorder.calls, entry.request.ids is not None) == (0, False)
    assert entry.context == entry.request.entry == OWN  # type: ignore[attr-defined]
    assert (recorder.calls, entry.request.ids is not None, entry.parent) == (1, True, None)


def test_many_threads_that_ask_at_once_get_the_same_ids() -> None:
    asking = threading.Barrier(8)
    recorder = Recorder(lambda _: threading.Event().wait(0.05))
    entry = entry_of(recorder)
    found: list[SpanContext] = []

    def ask() -> None:
        asking.wait()
        found.append(entry.context)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [OWN] * 8
    assert recorder.calls == 1


def test_a_sampler_that_looks_at_the_span_it_decides_on_sees_nobody() -> None:
    seen: list[Any] = []
    recorder = Recorder(lambda request: seen.extend([SeenSpan(request).get_span_context(), request.identity.context]))
    entry = entry_of(recorder)
    assert entry.get_span_context().trace_id == 1
    assert seen == [INVALID_SPAN_CONTEXT] * 2
    assert recorder.calls == 1


def test_a_sampler_that_fails_costs_its_decision_alone() -> None:
    def fail(_: Request) -> None:
        raise ValueError("no rules")

    entry = entry_of(Recorder(fail))
    context = entry.get_span_context()
    assert context.is_valid
    assert not entry.request.identity.is_sampled
    assert entry.context.trace_id == context.trace_id
    assert guard.failures.pop("stagetrace.request.own_span") == 1


def test_children_hang_under_the_open_stage_and_after_the_end_under_the_entry() -> None:
    entry = entry_of(Recorder())
    entry.request.enter("inference")
    stage = entry.get_span_context()
    assert (stage.trace_id, stage.trace_flags) == (OWN.trace_id, OWN.trace_flags)
    assert stage.span_id not in (OWN.span_id, 0)
    assert entry.get_span_context() == stage
    entry.request.close(START, START + 10**6)  # type: ignore[attr-defined]
    assert entry.get_span_context() == OWN


def test_what_is_set_is_there_to_be_read() -> None:
    entry = entry_of(Recorder())
    assert (dict(entry.attributes), entry.status.is_unset, entry.kind) == ({}, True, SpanKind.SERVER)
    entry.set_attributes({"a": 1, "b": [1, 2]})
    entry.add_event("event", {"k": "v"}, 5)
    entry.add_link(OWN, {"k": "v"})
    entry.record_exception(ValueError("noticed"), timestamp=6)
    entry.set_status(StatusCode.ERROR, "why")
    assert dict(entry.attributes) == {"a": 1, "b": (1, 2)}
    assert entry.request.notes is not None
    assert [event.name for event in entry.request.notes.events] == ["event", "exception"]
    assert [link.context for link in entry.request.notes.links] == [OWN]
    assert (entry.status.status_code, entry.status.description) == (StatusCode.ERROR, "why")


def test_the_answers_failure_shows_where_nobody_has_said_otherwise() -> None:
    entry = entry_of(Recorder())
    entry.request.failed = True
    assert entry.status.status_code == StatusCode.ERROR
    entry.set_status(StatusCode.OK)
    assert entry.status.is_ok


def test_ending_it_is_the_servers_business() -> None:
    entry = entry_of(Recorder())
    entry.end()
    assert entry.is_recording()
    assert entry.end_time is None
    assert isinstance(entry, Span)


def test_what_comes_after_the_end_is_ignored() -> None:
    entry = entry_of(Recorder())
    entry.set_attribute("before", 1)
    entry.request.is_over = True
    entry.set_attribute("after", 1)
    entry.add_event("after")
    entry.set_status(StatusCode.ERROR)
    entry.update_name("after")
    assert not entry.is_recording()
    assert (dict(entry.attributes), entry.status.status_code, entry.name) == ({"before": 1}, StatusCode.UNSET, "GET")


def test_values_that_have_no_text_are_counted_and_the_code_goes_on() -> None:
    class Raises:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    cycle: list[Any] = []
    cycle.append(cycle)
    entry = entry_of(Recorder())
    entry.set_attribute("cycle", cycle)
    entry.add_event("raises", {"k": Raises()})
    entry.set_attribute("after", 1)
    assert dict(entry.attributes) == {"stagetrace.dropped_attributes": 2, "after": 1}
