"""Real gRPC servers of few workers and of other forms: who waits, who is refused; how one is made does not matter."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from instrumentation.grpc_client import Service, run_service
from instrumentation.grpc_traced import APPS, EARLY, MS, distinct, environment, traced
from sink import Sink, run_sink
from trees import assert_near

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with run_sink() as running:
        yield running


def test_one_more_than_threads_waits_as_long_as_its_caller_knows(sink: Sink, tmp_path: Path) -> None:
    """Five at once on four threads, each for 0.4 s: what the fifth took beyond that, it waited."""
    waits: list[tuple[float, float]] = []

    def ask(service: Service) -> tuple[str, float]:
        began = time.monotonic()
        trace_id, _ = service.call("Sleep", {"seconds": 0.4})
        return trace_id, time.monotonic() - began

    with (
        run_service(tmp_path, "grpc_threads", environment(sink, WORKERS="4")) as service,
        ThreadPoolExecutor(5) as pool,
    ):
        service.call("Predict")
        for _ in range(4):
            asked = list(pool.map(lambda _: ask(service), range(5)))
            trace_id, took_s = max(asked, key=lambda one: one[1])
            request = sink.request(trace_id)
            queue = next(stage for stage in request.stages if stage.name == "queue")
            assert queue.attributes["queue.pool_size"] == 4
            waits.append((queue.end - queue.start, (took_s - 0.4) * 1e9))
    assert min(took for _, took in waits) > 300 * MS
    assert_near(waits)


def test_waiting_for_a_thread_is_a_queue(sink: Sink, tmp_path: Path) -> None:
    """One thread and three RPCs at once: the last waits for two, and says how many were before it."""
    with run_service(tmp_path, "grpc_threads", environment(sink, WORKERS="1")) as service:
        service.call("Predict")
        traces: list[str] = []
        calls = [threading.Thread(target=lambda: traces.append(service.call("Sleep", {"seconds": 0.2})[0]))]
        calls.extend(threading.Thread(target=lambda: traces.append(service.call("Predict")[0])) for _ in range(2))
        for call in calls:
            call.start()
            time.sleep(0.05)
        for call in calls:
            call.join()
        requests = [sink.request(trace_id) for trace_id in traces]
        waits = [next(stage for stage in request.stages if stage.name == "queue") for request in requests]
        assert [wait.attributes["queue.waiters"] for wait in waits] == [0, 0, 1]
        assert all(wait.attributes["queue.pool_size"] == 1 for wait in waits)
        assert all(wait.attributes["queue.reason"] == "grpc_pool" for wait in waits)
        assert requests[1].total_ns("queue") >= 100 * MS
        assert requests[1].entry.attributes["sla.breach.stage"] == "queue"


def test_a_caller_that_gives_up_in_the_queue_is_recorded(sink: Sink, tmp_path: Path) -> None:
    """No handler ever sees it: the thread takes it up when its caller has gone."""
    with run_service(tmp_path, "grpc_threads", environment(sink, WORKERS="1")) as service:
        blocking = threading.Thread(target=lambda: service.call("Sleep", {"seconds": 0.6}))
        blocking.start()
        time.sleep(0.1)
        request, got = traced(service, sink, "Predict", timeout=0.2)
        blocking.join()
    assert got.code == "DEADLINE_EXCEEDED"
    assert distinct(request)[0] == "queue"
    assert request.total_ns("queue") >= 200 * MS * EARLY
    assert "inference" not in distinct(request)


@pytest.mark.parametrize("app", APPS)
def test_an_rpc_too_many_is_recorded(app: str, sink: Sink, tmp_path: Path) -> None:
    with run_service(tmp_path, app, environment(sink, MOST="1")) as service:
        blocking = threading.Thread(target=lambda: service.call("Sleep", {"seconds": 0.5}))
        blocking.start()
        time.sleep(0.2)
        request, got = traced(service, sink, "Predict")
        blocking.join()
        assert got.code == "RESOURCE_EXHAUSTED"
        assert request.entry.name == "ml.Scorer/Predict"
        assert request.entry.attributes["sla.breached"] is False


@pytest.mark.parametrize("app", APPS)
def test_the_form_in_which_a_server_is_made_does_not_matter(app: str, sink: Sink, tmp_path: Path) -> None:
    """All arguments by position, and the function imported by name before."""
    with run_service(tmp_path, app, environment(sink, POSITIONAL="1")) as service:
        request, got = traced(service, sink, "Predict")
        assert got.code == "OK"
        assert "inference" in distinct(request)
        refused, _ = traced(service, sink, "Predict", metadata=(("refuse", "1"),))
        assert refused.entry.attributes["rpc.response.status_code"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("app", APPS)
def test_a_unix_socket(app: str, sink: Sink, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    with run_service(tmp_path, app, environment(sink, ADDRESS=address)) as service:
        request, got = traced(service, sink, "Predict")
    assert got.code == "OK"
    assert request.entry.attributes["server.address"] == f"{tmp_path}/s"
    assert "server.port" not in request.entry.attributes


def test_head_sampling_keeps_breaches(sink: Sink, tmp_path: Path) -> None:
    env = environment(sink, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
    for app in APPS:
        with run_service(tmp_path, app, env) as service:
            good, _ = service.call("Sleep")
            request, _ = traced(service, sink, "Predict", {"inference_s": 0.03})
            assert request.entry.attributes["sla.upgraded"] is True
            assert good not in sink.traces()
