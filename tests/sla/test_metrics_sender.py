"""The sender of metrics: which points it sends, how it backs off, and that its faults stay with it."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.resources import Resource

from backends import free_port
from sink import attributes_in, run_sink
from stagetrace.otlp.export.batch_processor import open_transport
from stagetrace.otlp.export.client import ExportClient
from stagetrace.policy.objective import NEVER_NS, Objective
from stagetrace.policy.policy import Policy
from stagetrace.sla import metric_points, metrics_sender, process
from stagetrace.sla.metrics_sender import REFUSED_S, UNREACHABLE_S, MetricsSender
from stagetrace.sla.verdict_counter import MAX_POINTS, OVERFLOW, Counted, VerdictCounter
from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = Policy(
    (
        *Policy.parse("POST /predict within 50ms for 99.9% over 7d; GET /health excluded").objectives,
        Objective("GET /stream first chunk 1s", "GET", "/stream", NEVER_NS, first_chunk_ns=10**9),
    )
)
TRACE = SpanContext(0xABC, 0xDEF, is_remote=False)


@pytest.fixture(autouse=True)
def counter(monkeypatch: pytest.MonkeyPatch) -> VerdictCounter:
    """Count in a counter of the test's own, under a policy of its own."""
    made = VerdictCounter()
    monkeypatch.setattr(process, "counter", lambda: made)
    monkeypatch.setattr(process, "policy", lambda: POLICY)
    return made


def sender_to(endpoint: str, counter: VerdictCounter, monkeypatch: pytest.MonkeyPatch) -> MetricsSender:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    client = ExportClient(partial(open_transport, "otlp_proto_grpc", "METRICS"), endpoint)
    return MetricsSender(counter, client, lambda: Resource({"service.name": "api"}))


def read() -> dict[str, list[tuple[dict[str, Any], Any]]]:
    """Return what a message has: by metric the attributes of each point, and the point."""
    content = metrics_sender.message(Resource({}), metric_points.NUMBERS, metric_points.TIMES, 1, time.time_ns())
    assert content is not None
    (resource,) = ExportMetricsServiceRequest.FromString(content).resource_metrics
    return {
        metric.name: [
            (attributes_in(point.attributes), point)
            for point in getattr(metric, str(metric.WhichOneof("data"))).data_points
        ]
        for metric in resource.scope_metrics[0].metrics
    }


def test_each_metric_has_its_attributes(counter: VerdictCounter) -> None:
    counter.add("predict", "good", "/predict", None, "gold", 1_000_000)
    counter.add("predict", "breach", "pkg.Model/Predict", "queue", None, 80_000_000, trace=TRACE)
    counter.add("predict", "excluded", "/predict")
    counter.add_cause("predict", "downstream")
    counter.add_segment_overflow("predict")
    counter.add_unusable_deadline("grpc-timeout")
    found = read()
    assert [one for one, _ in found["sla.requests"]] == [
        {"sla.objective": "predict", "sla.verdict": "good", "http.route": "/predict", "sla.segment": "gold"},
        {
            "sla.objective": "predict",
            "sla.verdict": "breach",
            "rpc.method": "pkg.Model/Predict",
            "sla.breach.stage": "queue",
        },
        {"sla.objective": "predict", "sla.verdict": "excluded", "http.route": "/predict"},
    ]
    assert {point.as_int for _, point in found["sla.requests"]} == {1}
    assert [one for one, _ in found["sla.objective.info"]] == [
        {"objective": "POST /predict within 50ms", "target": "0.999", "threshold_ms": "50", "window": "7d"},
        {"objective": "GET /stream first chunk 1s", "target": "0.99", "window": "28d"},
    ]
    assert [one for one, _ in found["sla.segments.overflow"]] == [{"sla.objective": "predict"}]
    assert [one for one, _ in found["sla.deadlines.unusable"]] == [{"sla.deadline.source": "grpc-timeout"}]
    good, breach = found["sla.duration"]
    assert (good[0]["sla.verdict"], good[1].count, list(good[1].exemplars)) == ("good", 1, [])
    (exemplar,) = breach[1].exemplars
    assert (exemplar.trace_id.hex(), exemplar.span_id.hex()) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert exemplar.as_double == breach[1].sum == 0.08


def test_objectives_that_a_new_policy_lacks_leave_the_gauges_and_their_counts_stay(
    counter: VerdictCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter.add("POST /predict within 50ms", "good", "/predict", None, None, 1_000)
    monkeypatch.setattr(process, "policy", lambda: Policy.parse("GET /other within 1s"))
    found = read()
    for gauge in ("sla.objective.info", "sla.target", "sla.threshold"):
        assert [next(iter(one.values())) for one, _ in found[gauge]] == ["GET /other within 1s"]
    assert [one["sla.objective"] for one, _ in found["sla.requests"]] == ["POST /predict within 50ms"]
    assert [one["sla.objective"] for one, _ in found["sla.duration"]] == ["POST /predict within 50ms"]


FORKED = """
import os
from stagetrace.sla.metric_points import loop_lags
from stagetrace.sla.process import counter
counter().add("a", "good", "/", None, None, 5)
loop_lags.add(5)
before = counter().since_ns
counter()._lock.acquire()  # as another thread may hold it
if not os.fork():
    counter().add("b", "breach", "/", "queue", None, 7)
    found = counter().counts(), list(counter().durations()), loop_lags.collected().number, counter().since_ns > before
    print(found, flush=True)
    os._exit(0)
os.wait()
counter()._lock.release()
print(counter().counts(), loop_lags.collected().number)
"""


def test_a_forked_child_counts_from_0() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "({('b', 'breach'): 1}, [Timed(objective='b', of='breach')], 0, True)",
        "{('a', 'good'): 1} 1",
    ]


def test_what_exceeds_the_limit_is_one_point_and_totals_stay_exact(counter: VerdictCounter) -> None:
    for number in range(MAX_POINTS + 100):
        counter.add("predict", "breach" if number % 2 else "good", f"/{number}", None, None, 1_000)
    for number in range(MAX_POINTS + 50):
        counter.add(f"objective {number}", "good", "/", None, None, 1_000)
    points = counter.points()
    assert (
        points[Counted("predict", "good", overflow=True)] == points[Counted("predict", "breach", overflow=True)] == 50
    )
    assert counter.counts()["predict", "good"] == counter.counts()["predict", "breach"] == MAX_POINTS // 2 + 50
    assert counter.counts()[f"objective {MAX_POINTS + 49}", "good"] == 1
    durations = counter.durations()
    assert len(durations) == MAX_POINTS + 1
    assert durations[OVERFLOW].number == 52
    beyond = [one for one, _ in read()["sla.duration"]][-1]
    assert beyond == {"otel.metric.overflow": True}


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """Serve gRPC without any service, as a Jaeger does where metrics go; return the endpoint and what is called."""
    called: list[str] = []

    class Note:
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            called.append(details.method)
            return continuation(details)

    server = grpc.server(ThreadPoolExecutor(1), interceptors=[Note()])  # type: ignore[list-item]
    endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield endpoint, called
    server.stop(None).wait()


def test_a_receiver_without_metrics_is_asked_ever_less_often_and_not_at_the_end(
    refusing: tuple[str, list[str]], counter: VerdictCounter, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    endpoint, called = refusing
    sender = sender_to(endpoint, counter, monkeypatch)
    counter.add("predict", "good", "/predict")
    pauses = []
    for _ in range(6):
        sender.send()
        pauses.append(sender._due - time.monotonic())
    first, last = REFUSED_S
    assert pauses == pytest.approx([first, 2 * first, 4 * first, 8 * first, last, last], abs=30)
    sender.send_last()
    sender.tick()
    assert len(called) == 6
    assert capfd.readouterr().err == ""


def test_a_receiver_that_is_back_gets_all_that_was_counted(
    counter: VerdictCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = sender_to(f"http://127.0.0.1:{free_port()}", counter, monkeypatch)
    counter.add("predict", "good", "/predict")
    for _ in range(8):
        sender.send()
    assert 0 < sender._due - time.monotonic() <= UNREACHABLE_S
    with run_sink() as sink:
        there = sender_to(sink.endpoint, counter, monkeypatch)
        sender._client = there._client
        sender.send_last()
        (point,) = sink.points("sla.requests")
        assert point.as_int == 1
        assert sender._due - time.monotonic() <= sender.every_s


def test_no_fault_leaves_the_sender(counter: VerdictCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_sink() as sink:
        sender = sender_to(sink.endpoint, counter, monkeypatch)
        counter.add("predict", "good", "/predict")
        with monkeypatch.context() as broken:
            broken.setattr(process, "counter", failing)
            sender.send()
            sender.send_last()
        with monkeypatch.context() as broken:
            broken.setattr(sender._client, "send", failing)
            sender.send()
        sender.send()
        assert len(sink.points("sla.requests")) == 1


def failing(*_: Any) -> Any:
    raise RuntimeError("broken")


def test_a_service_without_opentelemetry_has_no_meter_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not given the package for it."""
    monkeypatch.setattr("stagetrace.bridge.metrics.has_provider", lambda: True)
    assert metrics_sender._has_provider()
    monkeypatch.delitem(sys.modules, "opentelemetry.metrics")
    assert not metrics_sender._has_provider()
    assert "opentelemetry.metrics" not in sys.modules
