"""Real gRPC servers of few workers and of other forms: who waits, who is refused; how one is made does not matter."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from instrumentation.grpc_client import Service, run_service
from instrumentation.grpc_traced import APPS, MS, distinct, environment, traced
from trees import measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")


def test_one_more_than_threads_waits_as_long_as_its_caller_knows(sink: Sink, tmp_path: Path) -> None:
    """Five at once on four threads, each for 0.4 s: what the fifth took beyond that, it waited."""

    def ask(service: Service) -> tuple[str, float]:
        began = time.monotonic()
        trace_id, _ = service.call("Sleep", {"seconds": 0.4})
        return trace_id, time.monotonic() - began

    def look() -> dict[str, tuple[float, float]]:
        asked = list(pool.map(lambda _: ask(service), range(5)))
        trace_id, took_s = max(asked, key=lambda one: one[1])
        queue = next(stage for stage in sink.request(trace_id).stages if stage.name == "queue")
        assert queue.attributes["queue.pool_size"] == 4
        assert queue.end - queue.start > 300 * MS
        return {"queue": (queue.end - queue.start, (took_s - 0.4) * 1e9)}

    with (
        run_service(tmp_path, "grpc_threads", environment(sink, WORKERS="4")) as service,
        ThreadPoolExecutor(5) as pool,
    ):
        service.call("Predict")
        measure(look)


@pytest.fixture(scope="module")
def one_thread(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("one"), "grpc_threads", environment(sink, WORKERS="1")) as service:
        service.call("Predict")
        yield service


@contextmanager
def held(service: Service) -> Iterator[None]:
    """Keep a handler running until the block ends."""
    before = service.log.count("count is closed")
    call = service.begin("Count", {"to": 1_000_000, "step_s": 0.05}, kind="unary_stream", metadata=(), timeout=None)
    next(call)
    try:
        yield
    finally:
        call.cancel()
    service.wait_for_log("count is closed", before + 1)


def test_waiting_for_a_thread_is_a_queue(one_thread: Service, sink: Sink) -> None:
    """One thread, taken, and two RPCs at once: the last says that one was before it."""
    begun = []
    with held(one_thread):
        for _ in range(2):
            begun.append(one_thread.begin_traced("Predict", kind="unary_unary", timeout=60))
            time.sleep(0.1)
    for _, call in begun:
        call.result()
    requests = [sink.request(trace_id) for trace_id, _ in begun]
    waits = [next(stage for stage in request.stages if stage.name == "queue") for request in requests]
    assert [wait.attributes["queue.waiters"] for wait in waits] == [0, 1]
    assert all(wait.attributes["queue.pool_size"] == 1 for wait in waits)
    assert all(wait.attributes["queue.reason"] == "grpc_pool" for wait in waits)
    assert requests[0].total_ns("queue") >= 100 * MS
    assert requests[0].entry.attributes["sla.breach.stage"] == "queue"


def test_a_caller_that_gives_up_in_the_queue_is_recorded(one_thread: Service, sink: Sink) -> None:
    """No handler ever sees it: the thread takes it up when its caller has gone."""
    with held(one_thread):
        trace_id, call = one_thread.begin_traced("Predict", kind="unary_unary", timeout=0.4)
        assert call.code().name == "DEADLINE_EXCEEDED"
    request = sink.tiled(trace_id)
    assert request.entry.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert distinct(request)[0] == "queue"
    assert request.total_ns("queue") >= 200 * MS
    assert "inference" not in distinct(request)


@pytest.fixture(scope="module", params=APPS)
def unusual(request: pytest.FixtureRequest, sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve by a function that was imported before, all arguments by position, for two RPCs at once."""
    folder = tmp_path_factory.mktemp("s")
    env = environment(sink, POSITIONAL="1", MOST="2", ADDRESS=f"unix:{folder}/s")
    with run_service(folder, request.param, env) as service:
        yield service


def test_the_form_in_which_a_server_is_made_does_not_matter(unusual: Service, sink: Sink) -> None:
    """All arguments by position, and the function imported by name before."""
    request, got = traced(unusual, sink, "Predict")
    assert got.code == "OK"
    assert "inference" in distinct(request)
    refused, _ = traced(unusual, sink, "Predict", metadata=(("refuse", "1"),))
    assert refused.entry.attributes["rpc.response.status_code"] == "UNAUTHENTICATED"


def test_a_unix_socket(unusual: Service, sink: Sink) -> None:
    request, got = traced(unusual, sink, "Predict")
    assert got.code == "OK"
    assert request.entry.attributes["server.address"] == unusual.target.removeprefix("unix:")
    assert "server.port" not in request.entry.attributes


def test_an_rpc_too_many_is_recorded(unusual: Service, sink: Sink) -> None:
    """The last test of its server, where an RPC that has ended may count for another moment."""
    with held(unusual), held(unusual):
        request, got = traced(unusual, sink, "Predict")
    assert got.code == "RESOURCE_EXHAUSTED"
    assert request.entry.name == "ml.Scorer/Predict"
    assert request.entry.attributes["sla.breached"] is False


@pytest.mark.parametrize("app", APPS)
def test_head_sampling_keeps_breaches(app: str, sink: Sink, tmp_path: Path) -> None:
    env = environment(sink, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0")
    with run_service(tmp_path, app, env) as service:
        good, _ = service.call("Sleep")
        request, _ = traced(service, sink, "Predict", {"inference_s": 0.03})
        assert request.entry.attributes["sla.upgraded"] is True
        assert good not in sink.traces()
