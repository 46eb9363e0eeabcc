"""The processor that encodes each span as it ends: everything arrives, once, or is counted."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from at_once import at_once
from otlp.clients import PROTOCOLS, client
from otlp.sending import ENCODED, RESOURCE, assert_all_accounted_for, names_in, processor_of, sdk_spans, span_named
from stagetrace import guard, settings
from stagetrace.otlp.encode import encode_span
from stagetrace.otlp.export import batch_processor, queue, sender
from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
from stagetrace.otlp.export.response import Outcome
from stagetrace.otlp.export.sender import ENOUGH_SPANS

if TYPE_CHECKING:
    from otlp.receiver import Receiver

SCOPES = [InstrumentationScope("one"), InstrumentationScope("two", "2")]


@pytest.fixture(autouse=True)
def _no_failures() -> None:
    guard.failures.clear()


class Keeping:
    """A transport that keeps requests; takes its time, or fails, as a test asks."""

    def __init__(self, pause_s: float = 0, error: Exception | None = None) -> None:
        self.requests: list[bytes] = []
        self._pause_s = pause_s
        self._error = error
        self.ended = False

    def send(self, request: bytes) -> Outcome:
        time.sleep(self._pause_s)
        if self._error is not None:
            raise self._error
        self.requests.append(request)
        return Outcome(delivered=True)

    def close(self) -> None:
        self.ended = True

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in ExportTraceServiceRequest.FromString(request).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def provider_of(transport: Keeping, **kwargs: Any) -> tuple[TracerProvider, EncodingSpanProcessor]:
    return provider_with(processor_of(transport, **kwargs))


def provider_with(made: EncodingSpanProcessor) -> tuple[TracerProvider, EncodingSpanProcessor]:
    provider = TracerProvider(resource=Resource({"service.name": "encoded"}), shutdown_on_exit=False)
    provider.add_span_processor(made)  # type: ignore[arg-type]  # it has the methods of one
    return provider, made


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_spans_arrive_at_a_receiver(protocol: str, receiver: Receiver) -> None:
    provider, made = provider_with(EncodingSpanProcessor(client(protocol, receiver)))
    tracers = [provider.get_tracer("one"), provider.get_tracer("two")]
    for number in range(1000):
        tracers[number % 2].start_span(f"span {number % 7}", attributes={"number": number}).end()
    assert made.force_flush()
    spans = receiver.spans()
    assert sorted(span.attributes[0].value.int_value for span in spans) == list(range(1000))
    resources = [one for data in receiver.requests for one in ExportTraceServiceRequest.FromString(data).resource_spans]
    assert {scope.scope.name for one in resources for scope in one.scope_spans} == {"one", "two"}
    assert {
        pair.value.string_value for one in resources for pair in one.resource.attributes if pair.key == "service.name"
    } == {"encoded"}
    provider.shutdown()


def test_what_is_not_sampled_is_not_sent() -> None:
    transport = Keeping()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(processor_of(transport))  # type: ignore[arg-type]
    provider.get_tracer("t").start_span("x").end()
    provider.shutdown()
    assert transport.requests == []
    assert transport.ended


def test_a_full_queue_drops_counts_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    transport = Keeping(pause_s=0.3)
    provider, made = provider_of(transport, max_spans=10)
    tracer = provider.get_tracer("t")
    for number in range(200):
        tracer.start_span(str(number)).end()
    provider.shutdown()
    counts = made.counts()
    assert counts["dropped"] > 0
    assert len(transport.spans) == counts["delivered"]
    assert_all_accounted_for(made, 200)
    assert capfd.readouterr().err.count("spans were dropped so far") == 1


def test_bytes_are_bounded_as_spans_are() -> None:
    transport = Keeping(pause_s=0.2)
    provider, made = provider_of(transport, max_bytes=10_000)
    for _ in range(500):
        provider.get_tracer("t").start_span("x", attributes={"text": "x" * 1000}).end()
        made.counts()
        assert made._queue.bytes <= 10_000
    provider.shutdown()
    assert made.counts()["dropped"] >= 400
    assert_all_accounted_for(made, 500)


def test_what_is_not_sorted_in_yet_is_bounded_too() -> None:
    """An exporter that hangs: callers keep the bounds themselves, though no thread of ours has time for it."""
    _, made = provider_of(Keeping(pause_s=30), max_spans=50)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 10)
    try:
        for _ in range(50_000):
            made.put(RESOURCE, None, ENCODED, 1, breach=False)
            assert len(made._queue._incoming) < 20_000  # as many as come in some switches between threads
    finally:
        sys.setswitchinterval(interval)
    assert_all_accounted_for(made, 50_000)


def test_breaches_are_sent_first() -> None:
    transport = Keeping()
    provider, made = provider_of(transport)
    tracer = provider.get_tracer("t")
    for number in range(5):
        attributes = {"sla.verdict": "breach"} if number == 3 else {"sla.verdict": "good"}
        tracer.start_span(str(number), attributes=attributes).end()
    provider.shutdown()
    assert [span.name for span in transport.spans] == ["3", "0", "1", "2", "4"]
    assert_all_accounted_for(made, 5)


def test_who_sends_often_sends_more_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough spans leave before the delay is over; until a while after that, only a full batch does."""
    monkeypatch.setattr(sender, "_OFTEN_S", 30.0)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    transport = Keeping()
    _, made = provider_of(transport)

    def put(spans: int) -> None:
        for _ in range(spans // 8):
            made.put(RESOURCE, SCOPES[0], ENCODED * 8, 8, breach=False)

    def sent(requests: int, within_s: float = 60) -> bool:
        until = time.monotonic() + within_s
        while len(transport.requests) < requests and time.monotonic() < until:
            time.sleep(0.01)
        return len(transport.requests) >= requests

    put(ENOUGH_SPANS + 64)
    assert sent(1)
    put(ENOUGH_SPANS + 64)
    assert not sent(2, within_s=0.3)
    put(ENOUGH_SPANS)
    assert sent(2)
    size = settings.BATCH_SIZE.default
    assert size - 8 < len(names_in(transport.requests[1])) <= size
    made.shutdown()
    assert made.counts()["delivered"] == 3 * ENOUGH_SPANS + 128


def test_put_takes_spans_that_are_joined_already() -> None:
    transport = Keeping()
    _, made = provider_of(transport)
    for request in range(300):
        encoded = b"".join(span_named(f"{request}.{number}") for number in range(7))
        made.put(RESOURCE, SCOPES[request % 2], encoded, 7, breach=request % 10 == 0)
    made.put_spans(sdk_spans(3), breach=True)
    assert made.force_flush()
    assert sorted(span.name for span in transport.spans) == sorted(
        [f"{request}.{number}" for request in range(300) for number in range(7)] + ["0", "1", "2"]
    )
    assert max(len(names_in(request)) for request in transport.requests) <= settings.BATCH_SIZE.default
    assert_all_accounted_for(made, 2103)
    made.shutdown()


def test_scopes_without_end_are_not_kept() -> None:
    """As a service makes them that calls `get_tracer` with a name of its own for each request."""
    transport = Keeping()
    _, made = provider_of(transport)
    for number in range(10_000):
        made.put(RESOURCE, InstrumentationScope(f"scope {number}"), span_named(str(number)), 1, breach=False)
        made.put(RESOURCE, InstrumentationScope("always the same"), span_named("same"), 1, breach=False)
    made.shutdown()
    assert len(made._queue._groups) <= 4096
    assert len(made._queue._known) <= 1024
    scopes = [
        scope.scope.name
        for request in transport.requests
        for resource in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope in resource.scope_spans
        for _ in scope.spans
    ]
    expected = [f"scope {number}" for number in range(10_000)] + ["always the same"] * 10_000
    dropped = made.counts()["dropped"]
    assert len(scopes) + dropped == len(expected)
    assert not Counter(scopes) - Counter(expected)


def test_a_span_that_ends_in_a_finalizer_does_not_hang() -> None:
    """`put` interrupted by itself at any point, as a collection of garbage does to it."""
    transport = Keeping()
    _, made = provider_of(transport)

    class Ends:
        def __del__(self) -> None:
            made.put(RESOURCE, None, ENCODED, 1, breach=False)

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(2000):
            one = Ends()
            one.itself = one  # type: ignore[attr-defined]
            del one
            made.put(RESOURCE, None, ENCODED, 1, breach=False)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert made.force_flush()
    assert_all_accounted_for(made, 4000)
    made.shutdown()


def test_many_threads_lose_nothing() -> None:
    transport = Keeping()
    provider, made = provider_of(transport)
    tracer = provider.get_tracer("t")

    def work(_: int) -> None:
        for _ in range(500):
            tracer.start_span("x").end()

    at_once(work, range(8))
    assert made.force_flush()
    assert len({span.span_id for span in transport.spans}) == 4000
    provider.shutdown()


def test_an_exporter_that_raises_does_not_end_the_thread(capfd: pytest.CaptureFixture[str]) -> None:
    transport = Keeping(error=RuntimeError("no"))
    provider, made = provider_of(transport)
    for _ in range(2):
        provider.get_tracer("t").start_span("x").end()
        assert made.force_flush()
    transport._error = None
    provider.get_tracer("t").start_span("arrives").end()
    provider.shutdown()
    assert [span.name for span in transport.spans] == ["arrives"]
    assert made.counts()["refused"] == 2
    assert_all_accounted_for(made, 3)
    assert capfd.readouterr().err.count("RuntimeError: no") == 1


def test_a_batch_that_cannot_be_put_together_is_counted_and_the_next_one_goes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> bytes:
        raise RuntimeError("broken")

    transport = Keeping()
    provider, made = provider_of(transport)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "resource_spans", fails)
        provider.get_tracer("t").start_span("x").end()
        assert made.force_flush()
    provider.get_tracer("t").start_span("arrives").end()
    provider.shutdown()
    assert [span.name for span in transport.spans] == ["arrives"]
    assert made.counts()["refused"] == 1
    assert_all_accounted_for(made, 2)
    assert guard.failures == {"stagetrace.otlp.export.sender": 1}


def test_a_span_that_cannot_be_encoded_is_counted_as_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(span: Any) -> bytes:
        if span.name == "x":
            raise RuntimeError("the encoder is broken")
        return encode_span(span)

    monkeypatch.setattr(batch_processor, "encode_span", fails)
    transport = Keeping()
    provider, made = provider_of(transport)
    for name in ("x", "y"):
        provider.get_tracer("t").start_span(name).end()
    provider.shutdown()
    assert [span.name for span in transport.spans] == ["y"]
    counts = {key: value for key, value in made.counts().items() if value}
    assert counts == {"received": 2, "lost": 1, "delivered": 1}
    assert guard.failures.pop("stagetrace.otlp.encode") == 1


def test_a_hanging_exporter_bounds_the_flush() -> None:
    transport = Keeping(pause_s=30)
    provider, made = provider_of(transport)
    provider.get_tracer("t").start_span("x").end()
    assert made.force_flush(timeout_millis=100) is False


def test_where_no_thread_can_be_started_a_flush_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an interpreter that is about to end, from Python 3.12 on."""

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    transport = Keeping()
    provider, made = provider_of(transport)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        provider.get_tracer("t").start_span("x").end()
        assert made.force_flush()
    assert [span.name for span in transport.spans] == ["x"]
    provider.shutdown()


def test_the_variables_of_the_batch_processor_are_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "soon")
    made = processor_of(Keeping())
    assert (made._max_spans, made._batch, made._delay_s) == (100, 100, 1.0)
    assert "OTEL_BSP_SCHEDULE_DELAY=soon is not a whole number" in capfd.readouterr().err
