"""Stages of a real FastAPI service on a real socket, read off the OTLP that it sends."""

from __future__ import annotations

import secrets
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from at_once import at_once
from services import Service, new_trace, run_service
from trees import at_its_best, measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Request, Sink

pytestmark = pytest.mark.usefixtures("services")

MS = 1_000_000
EARLY = 0.9  # a loop's timer may fire up to a millisecond early
ERROR = 2


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(
        STAGETRACE_SLA="POST /predict within 400ms for 99.9% over 7d; POST /async-predict within 400ms",
        OTEL_SERVICE_NAME="ml-test",
    )
    with run_service(folder, env=env) as running:
        running.client.post("/pipeline", json=["good day"]).raise_for_status()  # which trains it
        yield running


def recorded(service: Service, sink: Sink, method: str, path: str, **kwargs: object) -> Request:
    return sink.traced(service, method, path, **kwargs)[0]


def passing_through(
    names: list[str], service: Service, sink: Sink, method: str, path: str, **kwargs: object
) -> Request:
    """Make a request, again where a busy machine adds stages; check its stages, and return it."""
    seen: list[Request] = []

    def look() -> list[str]:
        seen.append(recorded(service, sink, method, path, **kwargs))
        return seen[-1].names

    assert at_its_best(look, names) == names
    return seen[-1]


def test_a_sync_handler_passes_through_all_stages_in_order(service: Service, sink: Sink) -> None:
    """The handler's time is preprocess before the model and postprocess after it.

    FastAPI asks for a second thread to validate what the handler returned.
    """
    names = ["preprocess", "network.receive", "preprocess", "queue", "preprocess", "inference", "postprocess"]
    names += ["queue", "postprocess", "network.send"]
    request = passing_through(
        names, service, sink, "POST", "/predict", json={"preprocess_s": 0.03, "inference_s": 0.05}
    )
    assert request.total_ns("preprocess") >= 30 * MS * EARLY
    assert request.total_ns("inference") >= 50 * MS * EARLY
    assert request.entry.name == "POST /predict"
    assert request.entry.service == "ml-test"
    inference = next(stage for stage in request.stages if stage.name == "inference")
    expected = {"ml.model.name": "SleepyModel", "ml.framework": "sklearn", "ml.batch.size": 1}
    varying = ("stagetrace.cpu.", "ml.cold")
    told = {name: value for name, value in inference.attributes.items() if not name.startswith(varying)}
    assert told == {"ml.stage": "inference", **expected}
    assert {key: request.entry.attributes[key] for key in expected} == expected


def test_an_async_handler_has_no_queue(service: Service, sink: Sink) -> None:
    names = ["preprocess", "network.receive", "preprocess", "inference", "postprocess", "network.send"]
    request = passing_through(names, service, sink, "POST", "/async-predict", json={"postprocess_s": 0.03})
    assert request.total_ns("postprocess") >= 30 * MS * EARLY


@pytest.mark.parametrize("path", ["/predict", "/async-predict"])
def test_each_stage_takes_as_long_as_what_happens_in_it(path: str, service: Service, sink: Sink) -> None:
    took = {"preprocess": 0.03, "inference": 0.05, "postprocess": 0.02}

    def ask() -> dict[str, tuple[float, float]]:
        request = recorded(service, sink, "POST", path, json={f"{name}_s": seconds for name, seconds in took.items()})
        return {name: (request.total_ns(name), seconds * 1e9) for name, seconds in took.items()}

    measure(ask)


def test_http_attributes_have_their_stable_names(service: Service, sink: Sink) -> None:
    attributes = recorded(service, sink, "POST", "/predict", json={}).entry.attributes
    assert attributes["http.request.method"] == "POST"
    assert attributes["http.route"] == "/predict"
    assert attributes["http.response.status_code"] == 200
    assert "http.method" not in attributes


def test_a_handler_that_never_infers_is_called_handler(service: Service, sink: Sink) -> None:
    assert set(recorded(service, sink, "GET", "/plain").names) == {"handler", "queue", "network.send"}
    passing_through(["handler", "network.send"], service, sink, "GET", "/background-done")


def test_time_between_two_inferences_is_preprocess_of_the_second(service: Service, sink: Sink) -> None:
    names = ["preprocess", "queue", "preprocess", "inference", "preprocess", "inference"]
    names += ["postprocess", "queue", "postprocess", "network.send"]
    request = passing_through(names, service, sink, "GET", "/two-calls")
    assert request.stages[4].end - request.stages[4].start >= 20 * MS * EARLY


def test_overlapping_inferences_count_once(service: Service, sink: Sink) -> None:
    """Two calls of 80 and 160 ms at the same time are one inference of about 160 ms, not of 240."""
    request = recorded(service, sink, "GET", "/overlap")
    assert request.names.count("inference") == 1
    inference_ns = request.total_ns("inference")
    assert inference_ns >= 160 * MS * EARLY
    assert inference_ns <= request.entry.end - request.entry.start


@pytest.mark.smoke
def test_a_pipeline_is_split_into_preprocess_and_inference(service: Service, sink: Sink) -> None:
    request = recorded(service, sink, "POST", "/pipeline", json=["good day"] * 7)
    assert request.names.count("inference") == 1
    inference = next(stage for stage in request.stages if stage.name == "inference")
    assert inference.attributes["ml.model.name"] == "LogisticRegression"
    assert inference.attributes["ml.batch.size"] == 7


def test_a_vectoriser_alone_is_no_inference(service: Service, sink: Sink) -> None:
    request = recorded(service, sink, "POST", "/transform", json=["good day"])
    assert not {"preprocess", "inference", "postprocess"} & set(request.names)
    assert request.entry.attributes["ml.model.recognised"] is False


def test_an_unhandled_error_is_tiled_and_stays_an_error(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/raise")
    assert response.status_code == 500
    assert response.text == "Internal Server Error"
    assert "inference" in request.names
    assert request.names[-1] == "network.send"
    assert request.entry.status == ERROR


def test_a_refusal_is_tiled(service: Service, sink: Sink) -> None:
    request = passing_through(["handler", "network.send"], service, sink, "GET", "/refuse")
    assert request.entry.attributes["http.response.status_code"] == 409


def test_a_path_without_a_route_is_tiled(service: Service, sink: Sink) -> None:
    request = recorded(service, sink, "GET", "/no-such-path")
    assert "http.route" not in request.entry.attributes
    assert "sla.breached" not in request.entry.attributes


def test_a_streamed_answer_shows_sending_apart_from_producing(service: Service, sink: Sink) -> None:
    request = recorded(service, sink, "GET", "/stream?chunks=3&pause_s=0.03")
    assert request.total_ns("handler") >= 90 * MS * EARLY
    assert request.names.count("network.send") == 4


def test_inference_inside_a_stream_is_inference(service: Service, sink: Sink) -> None:
    request = recorded(service, sink, "GET", "/stream-inference")
    assert request.names.count("inference") == 3
    assert request.total_ns("inference") >= 60 * MS * EARLY


def test_a_background_task_is_not_latency(service: Service, sink: Sink) -> None:
    """The 300 ms after the response are outside the entry span, in a span of their own under it."""
    request = recorded(service, sink, "GET", "/background")
    task = sink.span(request.entry.trace_id, "BackgroundTask work")
    assert task.end - task.start >= 300 * MS * EARLY
    assert task.parent_id == request.entry.span_id
    assert "inference" not in request.names
    assert request.entry.end <= task.end - 250 * MS


def test_a_slow_upload_is_network_receive(service: Service, sink: Sink) -> None:
    """Three chunks, 60 ms apart: the app waits for the body and does nothing else."""

    def body() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000
            time.sleep(0.06)

    request, response = sink.traced(service, "POST", "/echo-length", content=body())
    assert response.json() == {"bytes": 3000}
    assert request.total_ns("network.receive") >= 120 * MS * EARLY


def test_a_client_that_goes_away_leaves_a_tiled_request(service: Service, sink: Sink) -> None:
    trace_id, headers = new_trace()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = (
            f"GET /stream?chunks=1000&pause_s=0.01 HTTP/1.1\r\nHost: x\r\ntraceparent: {headers['traceparent']}\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(10)
    request = sink.tiled(trace_id)
    assert request.entry.end - request.entry.start < 10_000 * MS


def test_the_current_span_is_the_entry_span_and_children_hang_under_the_open_stage(
    service: Service, sink: Sink
) -> None:
    request, response = sink.traced(service, "GET", "/current-span")
    assert response.json() == {"recording": True, "name": "GET /current-span"}
    assert request.entry.attributes["user.note"] == "set by the handler"
    by_id = {stage.span_id: stage.name for stage in request.stages}
    assert {span.name: by_id[span.parent_id] for span in request.others} == {
        "in preprocess": "preprocess",
        "in postprocess": "postprocess",
    }


def test_later_requests_of_a_connection_are_requests_of_their_own(service: Service, sink: Sink) -> None:
    """A body over 64 kB pauses reading, and asyncio then keeps that request's context for the connection."""
    with httpx.Client(base_url=service.url) as client:
        for path, body in (("/echo-length", b"x" * 300_000), ("/echo-length", b"x"), ("/echo-length", b"x" * 300_000)):
            trace_id = secrets.token_hex(16)
            client.post(path, content=body, headers={"traceparent": f"00-{trace_id}-{'1' * 16}-01"})
            request = sink.tiled(trace_id)
            assert request.entry.parent_id == "1" * 16


def test_a_body_in_many_pieces_is_one_network_receive(service: Service, sink: Sink) -> None:
    request = recorded(service, sink, "POST", "/echo-length", content=b"x" * 3_000_000)
    assert request.names.count("network.receive") < 10


def test_the_verdict_equals_the_exported_duration(service: Service, sink: Sink) -> None:
    slow = recorded(service, sink, "POST", "/predict", json={"inference_s": 0.45})
    fast = recorded(service, sink, "POST", "/async-predict", json={})
    for request in (slow, fast):
        attributes = request.entry.attributes
        assert attributes["sla.breached"] is (request.entry.end - request.entry.start > 400 * MS)
    attributes = slow.entry.attributes
    assert attributes["sla.verdict"] == "breach"
    assert attributes["sla.breach.stage"] == "inference"
    assert attributes["sla.objective"] == "POST /predict within 400ms"
    assert attributes["sla.threshold_ms"] == 400.0
    assert attributes["sla.overrun_ms"] == (slow.entry.end - slow.entry.start - 400 * MS) / 1e6
    assert slow.entry.status == 0
    # Share and window, where they are not the usual ones, on good requests too: those after the first end in C.
    good = [recorded(service, sink, "POST", "/predict", json={}) for _ in range(3)]
    targets = [one.entry.attributes.get("sla.target") for one in (slow, *good, fast)]
    assert targets == [*["99.9% over 7d"] * 4, None]


def test_a_load_balancers_request_start_is_on_the_entry_span_and_no_part_of_the_duration(
    service: Service, sink: Sink
) -> None:
    since = f"t={time.time() - 100:.6f}"
    told, _ = service.call("GET", "/plain", headers={"X-Request-Start": since})
    untold, _ = service.call("GET", "/plain", headers={"X-Queue-Start": "soon"})
    entry = sink.request(told).entry
    assert 100_000 <= entry.attributes["http.server.request.time_in_queue"] < 160_000
    assert entry.end - entry.start < 60_000_000_000
    assert "http.server.request.time_in_queue" not in sink.request(untold).entry.attributes
    assert service.log.count("X-Request-Start or X-Queue-Start is ignored, it is unreadable: 'soon'") == 1


def test_many_requests_in_one_loop_do_not_mix(service: Service, sink: Sink) -> None:
    """Forty at once, sync and async, each with an inference of its own length."""
    asked: dict[str, float] = {}

    def ask(number: int) -> None:
        seconds = 0.01 + number / 400
        path = "/predict" if number % 2 else "/async-predict"
        trace_id, response = service.call("POST", path, json={"inference_s": seconds})
        assert response.json() == [seconds]
        asked[trace_id] = seconds

    at_once(ask, range(40))
    assert len(asked) == 40
    for trace_id, seconds in asked.items():
        request = sink.tiled(trace_id)
        assert request.names.count("inference") == 1
        assert request.total_ns("inference") >= seconds * 1e9 * EARLY
