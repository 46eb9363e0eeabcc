"""Ray Serve, unmodified: responses as untraced, requests of the proxy and the replicas in one trace, and batches."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from websockets.sync.client import connect

from environments import interpreter_with
from services import APPS, Service, new_trace, run_service
from trees import batch_of, links

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sink import Request, Sink

pytestmark = [
    *(pytest.mark.usefixtures("services"), pytest.mark.heavy),
    pytest.mark.xdist_group("ray serve"),
]

READY_WITHIN_S = 240
PACKAGES = ("ray[serve]", "scikit-learn", "websockets")
ASKED: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/plain/a?b=1", {}, 200),
    ("POST", "/plain", {"content": b"x" * 200_000}, 200),
    ("POST", "/plain", {"content": b"broken"}, 500),
    ("GET", "/function", {}, 200),
    ("GET", "/api/items/3", {}, 200),
    ("GET", "/api/items/none", {}, 422),
    ("POST", "/api/predict", {"json": [[1.0], [2.0]]}, 200),
    ("GET", "/api/broken", {}, 500),
    ("GET", "/api/refused", {}, 418),
    ("GET", "/api/stream", {}, 200),
    ("GET", "/api/nowhere", {}, 404),
    ("GET", "/nowhere", {}, 404),
    ("GET", "/batching?row=4", {}, 200),
    ("GET", "/batching?row=-1", {}, 500),
    ("GET", "/talking?count=3", {}, 200),
    ("GET", "/composed?number=3", {}, 200),
    ("GET", "/composed?number=-3", {}, 500),
    ("GET", "/composed?number=3&steps=1", {}, 200),
    ("GET", "/-/healthz", {}, 200),
    ("GET", "/-/routes", {}, 200),
]
BROKEN = [
    "stagetrace_contrib.ray_serve:recording,stagetrace_contrib.ray_serve:_read",
    "stagetrace_contrib.ray_serve:kernel,stagetrace_contrib.ray_serve:request_in",
    "stagetrace.instrumentation.served_call:ServedCall.__init__",
]


class Both(NamedTuple):
    """The application, twice."""

    traced: Service
    untraced: Service


@contextmanager
def run_ray(folder: Path, env: Mapping[str, str]) -> Iterator[Service]:
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", **env}
    argv = [interpreter_with(PACKAGES), "ray_app.py"]
    with run_service(folder, argv=argv, env=env, within_s=READY_WITHIN_S) as service:
        yield service


@pytest.fixture(scope="module")
def both(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    env = sink.environment(STAGETRACE_SLA="* within 60s")
    with (
        run_ray(tmp_path_factory.mktemp("traced"), env) as traced,
        run_ray(tmp_path_factory.mktemp("untraced"), {}) as untraced,
    ):
        yield Both(traced, untraced)
        last, _ = traced.call("GET", "/api/items/3")
        time.sleep(1)  # Ray kills the proxy at once, and what it served in the last moment is lost
        traced.stop()
        assert len(sink.requests(last, 2)) == 2
        assert "fault of stagetrace" not in traced.log


def answer(service: Service, method: str, path: str, **kwargs: Any) -> tuple[int, dict[str, str], bytes]:
    response = service.client.request(method, path, **kwargs)
    headers = {name: value for name, value in response.headers.items() if name not in ("date", "x-request-id")}
    return response.status_code, headers, response.content


@pytest.mark.parametrize(("method", "path", "kwargs", "status"), ASKED, ids=[f"{one[1]}-{one[3]}" for one in ASKED])
def test_a_response_is_that_of_an_untraced_run(
    method: str, path: str, kwargs: dict[str, Any], status: int, both: Both
) -> None:
    expected = answer(both.untraced, method, path, **kwargs)
    assert expected[0] == status
    assert answer(both.traced, method, path, **kwargs) == expected


def test_a_websocket_is_served(both: Both, sink: Sink) -> None:
    trace_id, headers = new_trace()
    for service in both:
        with connect(f"{service.url.replace('http', 'ws')}/api/talk", additional_headers=headers) as socket:
            socket.send("hello")
            assert socket.recv() == "hello"
    proxy, replica = sink.requests(trace_id, 2)
    assert (replica.entry.service, replica.entry.attributes["http.route"]) == ("Api", "/api/talk")
    assert replica.entry.parent_id in {stage.span_id for stage in proxy.stages}


def seen(request: Request) -> tuple[str, str, list[str]]:
    """Return the service, the entry span and the stages, without those that are not in each run."""
    stages = [stage for stage in request.stages if stage.attributes.get("queue.reason") != "thread_pool"]
    names = [
        f"{stage.name} ({stage.attributes['queue.reason']})" if "queue.reason" in stage.attributes else stage.name
        for stage in stages
    ]
    return request.entry.service, request.entry.name, [n for i, n in enumerate(names) if names[i - 1 : i] != [n]]


def assert_below(inner: Request, outer: Request) -> None:
    assert inner.entry.parent_id in {stage.span_id for stage in outer.stages}
    assert outer.entry.start <= inner.entry.start
    assert inner.entry.end <= outer.entry.end


@pytest.mark.parametrize(
    ("asked", "service", "route", "stages"),
    [
        ("GET /function", "function", "/function", ["queue (worker)", "handler", "network.send"]),
        ("GET /api/items/3", "Api", "/api/items/{item}", ["queue (worker)", "handler", "network.send"]),
        ("GET /api/nowhere", "Api", "/api", ["queue (worker)", "handler", "network.send"]),
        (
            "GET /batching?row=1",
            "Batching",
            "/batching",
            ["queue (worker)", "preprocess", "queue (batch)", "inference", "postprocess", "network.send"],
        ),
    ],
)
def test_a_replica_s_request_is_below_the_proxy_s(
    asked: str, service: str, route: str, stages: list[str], both: Both, sink: Sink
) -> None:
    trace_id, _ = both.traced.call(*asked.split())
    proxy, replica = sink.requests(trace_id, 2)
    assert proxy.entry.service == "ray-serve-proxy"
    assert proxy.entry.attributes["http.route"] == route
    assert proxy.stages[-1].name == "network.send"
    assert seen(replica) == (service, f"GET {route}", stages)
    assert_below(replica, proxy)


def test_a_model_in_a_replica_is_the_inference_and_the_body_is_received(both: Both, sink: Sink) -> None:
    trace_id, _ = both.traced.call("POST", "/api/predict", json=[[1.0], [2.0]])
    _, replica = sink.requests(trace_id, 2)
    (inference,) = [stage for stage in replica.stages if stage.name == "inference"]
    assert inference.attributes["ml.model.name"] == "LinearRegression"
    assert {"queue", "network.receive", "preprocess", "postprocess"} <= {stage.name for stage in replica.stages}


def test_an_exception_is_an_error_of_both(both: Both, sink: Sink) -> None:
    for method, path, more in (("POST", "/plain", {"content": b"broken"}), ("GET", "/api/broken", {})):
        trace_id, _ = both.traced.call(method, path, **more)
        for request in sink.requests(trace_id, 2):
            assert request.entry.attributes["http.response.status_code"] == 500
            assert request.entry.status == 2


@pytest.mark.parametrize(("query", "method"), [("number=3", "__call__"), ("number=3&steps=1", "steps")])
def test_a_call_of_another_deployment_is_below_the_one_that_calls(
    query: str, method: str, both: Both, sink: Sink
) -> None:
    trace_id, _ = both.traced.call("GET", f"/composed?{query}")
    _, caller, called = sink.requests(trace_id, 3)
    assert seen(caller) == ("Composed", "GET /composed", ["queue (worker)", "handler", "network.send"])
    assert seen(called) == ("Doubler", f"Doubler/{method}", ["queue (worker)", "handler"])
    assert called.entry.attributes["rpc.method"] == f"Doubler/{method}"
    assert called.entry.attributes["sla.verdict"] == "good"
    assert_below(called, caller)


def test_an_exception_in_another_deployment_is_an_error_there(both: Both, sink: Sink) -> None:
    trace_id, _ = both.traced.call("GET", "/composed?number=-3")
    assert [request.entry.status for request in sink.requests(trace_id, 3)] == [2, 2, 2]


def batched(both: Both, sink: Sink, path: str, values: tuple[int, ...]) -> list[Request]:
    """Return what the replica did for requests that were one batch, in the order of these values."""
    expected = [answer(both.untraced, "GET", f"{path}{value}")[2] for value in values]
    for _ in range(10):  # a busy machine may divide them
        with ThreadPoolExecutor(len(values)) as pool:
            asked = list(pool.map(lambda value: both.traced.call("GET", f"{path}{value}"), values))
        assert [response.content for _, response in asked] == expected
        requests = [sink.requests(trace_id, 2)[1] for trace_id, _ in asked]
        if all(request.entry.attributes["ml.batch.size"] == len(values) for request in requests):
            return requests
    raise AssertionError(requests)


def test_a_batch_is_one_inference_linked_with_each_of_its_requests(both: Both, sink: Sink) -> None:
    for request in batched(both, sink, "/batching?row=", (1, 2, 3, 4)):
        batch_of(request, sink)
        waits = [one.attributes["queue.reason"] for one in request.stages if one.name == "queue"]
        assert waits == ["worker", "batch"]
        assert request.entry.attributes["ml.model.name"] == "Batching"


def test_a_request_that_ends_before_its_batch_has_been_in_it_until_then(both: Both, sink: Sink) -> None:
    short, long = batched(both, sink, "/talking?count=", (1, 3))
    of = [next(one for one in request.stages if one.name == "inference") for request in (short, long)]
    assert of[0].start == of[1].start
    assert of[0].end < of[1].end
    ((trace_id, span_id),) = links(sink)[of[0].span_id]
    sink.wait_for(lambda _: span_id in links(sink))
    found = links(sink)
    assert found[of[1].span_id] == {(trace_id, span_id)}
    assert found[span_id] == {(one.entry.trace_id, one.entry.span_id) for one in (short, long)}


def test_health_checks_of_ray_are_not_recorded(both: Both, sink: Sink) -> None:
    asked = [both.traced.call("GET", path)[0] for path in ("/-/healthz", "/-/routes")]
    trace_id, _ = both.traced.call("GET", "/function")
    sink.requests(trace_id, 2)
    assert not sink.traces() & set(asked)
    with sink.lock:
        assert not [span.name for span in sink.spans if "ray." in str(span.attributes.get("rpc.method"))]


@pytest.mark.parametrize("parts", BROKEN)
def test_injected_faults_change_no_response(parts: str, both: Both, tmp_path: Path) -> None:
    folders = f"{APPS}:{APPS / 'breaking_at_start'}"
    env = {"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none", "BREAK": parts, "PYTHONPATH": folders}
    with run_ray(tmp_path, env) as service:
        for method, path, kwargs, _ in ASKED:
            assert answer(service, method, path, **kwargs) == answer(both.untraced, method, path, **kwargs)
        service.stop()
        assert "stagetrace_contrib.ray_serve" in service.log
        assert "injected fault" in service.log
