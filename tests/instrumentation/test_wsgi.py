"""Stages of WSGI requests under real servers, compared with what the application and its client know of them."""

from __future__ import annotations

import random
import re
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from at_once import at_once
from heavy import HEAVY
from services import APPS, Service, run_python, run_service, wsgi_command
from sink import SERVER, Sink, assert_tiled
from stagetrace.protocols.wsgi_response import Transfer
from stagetrace.tracing.propagation import NO_CONTEXT
from trees import at_its_best

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sink import Request

TRIES = 10  # the machine may be busy: what the code gets wrong, it gets wrong each time


@pytest.fixture(scope="module", params=["gunicorn", "gunicorn gthread", "waitress", "werkzeug", "wsgiref"])
def service(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(STAGETRACE_SLA="GET /random within 5ms; * within 40s")
    with run_service(folder, argv=wsgi_command(request.param, "wsgi_plain"), env=env) as running:
        yield running
        assert "failed (" not in running.log


with_flask = pytest.mark.parametrize("service", ["gunicorn", "gunicorn gthread", "waitress", "werkzeug"], indirect=True)
plain = pytest.mark.parametrize("service", ["gunicorn", "gunicorn gthread", "waitress", "wsgiref"], indirect=True)


def without_arrival(request: Request) -> list[str]:
    """Return the stages in the application: whether a thread was waited for, and the head of the request, depends."""
    names = request.names
    while names[0] in ("queue", "network.receive"):
        names = names[1:]
    return names


def first_in_application(request: Request) -> int:
    return next(one.start for one in request.stages if one.name not in ("queue", "network.receive"))


def wait_until(attempt: Callable[[], bool]) -> None:
    assert any(attempt() for _ in range(TRIES))


def near(nanoseconds: int, truth: int) -> bool:
    """Return whether a stage is within 2 ms or 5 % of what it should be."""
    return abs(nanoseconds - truth) <= max(2_000_000, truth * 0.05)


# --- the stages, their order, what hangs under them


@with_flask
def test_a_model_behind_a_route(service: Service, sink: Sink) -> None:
    body = {"preprocess_s": 0.02, "inference_s": 0.02, "postprocess_s": 0.02}
    request, response = sink.traced(service, "POST", "/predict", json=body)
    assert response.json() == [0.02]
    names = [name for name in without_arrival(request) if name != "network.receive"]
    assert names[-4:] == ["preprocess", "inference", "postprocess", "network.send"]
    assert set(names) == {"preprocess", "inference", "postprocess", "network.send"}
    assert request.entry.name == "POST /predict"
    assert request.entry.attributes["ml.model.name"] == "SleepyModel"
    for stage in ("preprocess", "inference", "postprocess"):
        assert request.total_ns(stage) >= 20_000_000


WHOLE_TREE: list[tuple[str, str | None, dict[str, Any]]] = [
    ("preprocess", "GET /current-span", {"ml.stage": "preprocess"}),
    ("in preprocess", "preprocess", {}),
    (
        "inference",
        "GET /current-span",
        {"ml.stage": "inference", "ml.model.name": "SleepyModel", "ml.framework": "sklearn", "ml.batch.size": 1},
    ),
    ("postprocess", "GET /current-span", {"ml.stage": "postprocess"}),
    ("in postprocess", "postprocess", {}),
    ("network.send", "GET /current-span", {"ml.stage": "network.send"}),
    (
        "GET /current-span",
        None,
        {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "http.route": "/current-span",
            "network.protocol.version": "1.1",
            "url.path": "/current-span",
            "url.scheme": "http",
            "user.note": "set by the handler",
            "sla.breached": False,
            "sla.objective": "* within 40s",
            "sla.threshold_ms": 40_000.0,
            "sla.verdict": "good",
            "ml.model.name": "SleepyModel",
            "ml.framework": "sklearn",
            "ml.batch.size": 1,
        },
    ),
]
COMPARED = {key for _, _, attributes in WHOLE_TREE for key in attributes}


@with_flask
def test_the_whole_tree_of_a_request(service: Service, sink: Sink) -> None:
    def look() -> list[tuple[str, str | None, dict[str, Any]]]:
        trace_id, _ = service.call("GET", "/current-span")
        request = sink.request(trace_id)
        spans = [*request.stages, *request.others, request.entry]
        names = {span.span_id: span.name for span in spans}
        arrival = len(request.names) - len(without_arrival(request))
        kept = sorted(spans[arrival:-1], key=lambda span: span.start) + spans[-1:]
        return [
            (one.name, names.get(one.parent_id), {k: v for k, v in one.attributes.items() if k in COMPARED})
            for one in kept
        ]

    assert at_its_best(look, WHOLE_TREE) == WHOLE_TREE


@with_flask
def test_a_stream_that_infers_between_its_pieces(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/stream-inference")
    assert response.text == "token 0\ntoken 1\ntoken 2\n"
    assert sum(stage.name == "inference" for stage in request.stages) == 3
    assert request.total_ns("inference") >= 60_000_000
    sent = [stage for stage in request.stages if stage.name == "network.send"]
    assert len(sent) >= 3
    said = request.entry.attributes
    assert (said["stagetrace.network.chunks"], said["http.response.body.size"]) == (3, 24)
    inferred_ms = [(one.end - one.start) / 1e6 for one in request.stages if one.name == "inference"]
    first_ms, gap_ms = said["stagetrace.network.first_byte_ms"], said["stagetrace.network.chunk_gap.max_ms"]
    assert first_ms >= inferred_ms[0]
    assert gap_ms >= max(inferred_ms[1:])
    assert first_ms + gap_ms <= (sent[-1].end - request.entry.start) / 1e6


@with_flask
def test_what_the_handler_sees_and_starts(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/current-span")
    assert response.json() == {"recording": True, "name": "GET /current-span"}
    assert request.entry.attributes["user.note"] == "set by the handler"
    parents = {span.name: span.parent_id for span in request.others}
    by_id = {stage.span_id: stage.name for stage in request.stages}
    assert {name: by_id[parent] for name, parent in parents.items()} == {
        "in preprocess": "preprocess",
        "in postprocess": "postprocess",
    }


@with_flask
def test_a_file_is_sent_as_the_server_sends_files(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/file")
    assert response.text.startswith('"""A plain Flask + scikit-learn service')
    assert without_arrival(request) == ["handler", "network.send"]


@with_flask
def test_an_exception_is_on_the_span(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/raise")
    assert (response.status_code, request.entry.status) == (500, 2)
    assert request.entry.attributes["error.type"] == "500"


@with_flask
def test_what_a_load_balancer_says(service: Service, sink: Sink) -> None:
    headers = {"X-Request-Start": f"t={time.time() - 100:.3f}"}
    request, _ = sink.traced(service, "GET", "/plain", headers=headers)
    assert 100_000 <= request.entry.attributes["http.server.request.time_in_queue"] < 160_000


# --- times


@with_flask
def test_a_slow_upload_is_receiving(service: Service, sink: Sink) -> None:
    """Compared with what the handler measures itself; waitress has received all by then, so there with the client."""

    def attempt() -> bool:
        parts = [b"x" * 50_000] * 3

        def slowly() -> Iterator[bytes]:
            for part in parts:
                yield part
                time.sleep(0.25)

        headers = {"Content-Length": "150000", "Content-Type": "text/plain"}
        request, response = sink.traced(service, "POST", "/timed-upload", content=slowly(), headers=headers)
        answer = response.json()
        assert answer["bytes"] == 150_000
        assert request.total_ns("network.receive") >= 400_000_000
        if "waitress" in service.process.args:  # type: ignore[operator]
            return near(request.total_ns("inference"), answer["inference_ns"])
        in_handler = [stage for stage in request.stages if stage.start >= first_in_application(request)]
        receiving = sum(stage.end - stage.start for stage in in_handler if stage.name == "network.receive")
        return near(receiving, answer["read_ns"]) and near(request.total_ns("inference"), answer["inference_ns"])

    wait_until(attempt)


@with_flask
def test_a_slow_reader_is_sending(service: Service, sink: Sink) -> None:
    """Compared with how long the application's generator was kept waiting by the server."""

    def attempt() -> bool:
        trace_id, answer = read_slowly(service, "/timed-stream")
        request = sink.tiled(trace_id)
        kept, worked = map(int, re.findall(rb"\n(\d+) (\d+)", answer)[0])
        if "waitress" in service.process.args:  # type: ignore[operator]  # it holds 16 MB for the client
            return near(request.total_ns("inference"), worked)
        if kept < 300_000_000:
            return False  # a machine with other work was late itself
        return near(request.total_ns("network.send"), kept) and near(request.total_ns("inference"), worked)

    wait_until(attempt)


def read_slowly(service: Service, path: str) -> tuple[str, bytes]:
    """Ask, wait before reading, read all; return the trace id and the answer."""
    trace_id = secrets.token_hex(16)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", service.port))
        head = f"GET {path} HTTP/1.0\r\nhost: x\r\ntraceparent: 00-{trace_id}-{'b' * 16}-01\r\n\r\n"
        connection.sendall(head.encode())
        time.sleep(0.8)
        return trace_id, b"".join(iter(lambda: connection.recv(1_000_000), b""))


@pytest.mark.parametrize(("service", "threads"), [("gunicorn gthread", 40), ("waitress", 4)], indirect=["service"])
def test_one_request_more_than_threads_waits_in_the_queue(
    threads: int, service: Service, sink: Sink, tmp_path: Path
) -> None:
    """All threads hold until the last request has been sent and has waited for a while."""

    def hold() -> str:
        trace_id, response = service.call("GET", f"/hold{tmp_path}")
        assert response.json() == {"ok": True}
        return trace_id

    with ThreadPoolExecutor(threads + 1) as pool:
        calls = [pool.submit(hold) for _ in range(threads)]
        held = wait_for(lambda: len(list(tmp_path.glob("held-*"))) == threads)
        sent = time.time_ns()
        calls.append(pool.submit(hold))
        time.sleep(0.5)
        let_go = time.time_ns()
        (tmp_path / "go").touch()
        requests = [sink.request(call.result()) for call in calls]
    assert held
    assert len(requests) == threads + 1
    waited = [one for one in requests if one.entry.start >= sent]
    assert len(waited) == 1
    assert_tiled(waited[0])
    (queue,) = [stage for stage in waited[0].stages if stage.name == "queue"]
    attributes = {key: queue.attributes[key] for key in ("queue.reason", "queue.pool_size", "queue.waiters")}
    assert attributes == {"queue.reason": "server_threads", "queue.pool_size": threads, "queue.waiters": 0}
    first_free = min(one.entry.end for one in requests if one is not waited[0])
    assert queue.end >= first_free >= let_go
    assert queue.end - queue.start >= 100_000_000


def wait_for(ready: Callable[[], bool], timeout_s: float = 30) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.02)
    return False


# --- applications of no framework


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("as_list", 200, "onetwo"),
        ("as_one", 201, "whole"),
        ("by_write", 200, "written first, then returned"),
        ("late", 202, "begun as it was gone through"),
        ("closing", 200, "ab"),
        ("again", 503, "another answer"),
        ("nothing", 204, ""),
    ],
)
@plain
def test_a_plain_application(path: str, status: int, text: str, service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", f"/{path}")
    assert (response.status_code, response.text) == (status, text)
    assert request.entry.name == "GET"
    assert request.entry.attributes["http.response.status_code"] == status
    assert set(request.names) <= {"queue", "network.receive", "handler", "network.send"}
    children = [span for span in request.others if span.name == "child"]
    stages = {stage.span_id: stage.name for stage in request.stages}
    assert [stages[child.parent_id] for child in children] == ["handler"] * (path in ("as_list", "late"))


@plain
def test_spans_as_an_answer_is_closed_hang_under_the_entry_span(service: Service, sink: Sink) -> None:
    request, _ = sink.traced(service, "GET", "/closing")
    assert sink.span(request.entry.trace_id, "closing").parent_id == request.entry.span_id


@plain
def test_a_body_read_line_by_line(service: Service, sink: Sink) -> None:
    if "wsgiref" in service.process.args:  # type: ignore[operator]
        pytest.skip("its input has no end")
    body = "one\ntwo\nthree"
    request, response = sink.traced(service, "POST", "/body_line_by_line", content=body)
    assert response.text == f"3{body}"
    assert request.entry.attributes["http.request.method"] == "POST"


@plain
@pytest.mark.parametrize("path", ["wrapped_file", "wrapped_file_in_memory"])
def test_a_file_wrapper_keeps_working(path: str, service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", f"/{path}")
    assert response.status_code == 200
    assert response.text.startswith("in memory" if path.endswith("memory") else '"""WSGI applications')
    assert request.names[-1] == "network.send"


@plain
def test_an_exception_of_a_plain_application(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/raises")
    assert response.status_code == 500
    assert request.entry.status == 2
    assert request.entry.attributes["http.response.status_code"] == 500
    proto = next(one for one in sink.protos if one.span_id.hex() == request.entry.span_id)
    assert [event.name for event in proto.events] == ["exception"]


# --- whatever comes


KINDS = ("whole", "infer", "stream", "infer-stream", "raise", "raise-stream", "give up")


@with_flask
@pytest.mark.heavier("1,000 requests")
def test_many_requests_at_random(service: Service, sink: Sink) -> None:
    """Each has one entry span, tiled, whose verdict is its duration against the threshold."""
    chance = random.Random(7)
    port = service.port
    total = 1_000 if HEAVY else 250 if "gthread" in service.process.args else 100  # type: ignore[operator]
    work = [
        (secrets.token_hex(16), chance.choice(KINDS), chance.choice((200, 201, 404, 422, 503))) for _ in range(total)
    ]
    left, answered = list(work), []

    def ask(_: int) -> None:
        while left:
            trace_id, kind, status = left.pop()
            target = f"/random?kind={'stream' if kind == 'give up' else kind}&status={status}"
            if kind == "give up":
                target += "&size=9000000"
            parent = f"00-{trace_id}-{'c' * 16}-01"
            head = f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntraceparent: {parent}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(head.encode())
                first = connection.recv(1_000)
                while kind != "give up" and connection.recv(65_536):
                    pass
                answered.append((trace_id, kind, status, int(first.split()[1])))

    at_once(ask, range(8))
    assert len(answered) == total
    wanted = {trace_id for trace_id, *_ in work}
    sink.wait_for(lambda all_: len({s.trace_id for s in all_ if s.kind == SERVER} & wanted) == total, 60)
    for trace_id, kind, status, got in answered:
        request = sink.tiled(trace_id)
        entry = request.entry
        assert got == (500 if kind == "raise" else status)
        assert entry.attributes["http.response.status_code"] == got
        assert entry.attributes["http.route"] == "/random"
        if kind == "give up":
            assert entry.attributes["stagetrace.network.disconnect"] == "client"
            assert entry.attributes["sla.verdict"] == ("breach" if entry.end - entry.start > 5_000_000 else "excluded")
        else:
            assert entry.attributes["sla.breached"] is (entry.end - entry.start > 5_000_000)
        assert ("inference" in request.names) is kind.startswith("infer")
        assert entry.status == (2 if kind.startswith("raise") or got >= 500 else 0)


NOTHING_LEFT = """
import gc
from io import BytesIO
from wsgiref.util import FileWrapper
from flask_light import app
from stagetrace.protocols.wsgi import traced

def a_file(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](BytesIO(b"x"))

def raises(environ, start_response):
    raise ValueError

def call(app, **more):
    environ = {"wsgi.input": BytesIO(b"{}"), "wsgi.file_wrapper": FileWrapper, "PATH_INFO": "/predict", **more}
    try:
        answer = traced(app)(environ, lambda *_: None)
    except ValueError:
        return
    list(answer)
    answer.close()

def all_of_them():
    body = {"CONTENT_LENGTH": "2", "CONTENT_TYPE": "application/json", "wsgi.url_scheme": "http"}
    for _ in range(20):
        call(app, REQUEST_METHOD="POST", SERVER_NAME="x", SERVER_PORT="80", **body)
        call(a_file)
        call(raises)

all_of_them()
gc.collect()
gc.disable()
all_of_them()
names = ("WsgiRequest", "OwnSpan", "Request", "Response", "Input")
print([type(one).__name__ for one in gc.get_objects() if type(one).__name__ in names])
"""


@pytest.mark.thorough
def test_nothing_of_a_request_is_left_to_the_garbage_collector() -> None:
    done = run_python("-c", NOTHING_LEFT, STAGETRACE="1", OTEL_TRACES_EXPORTER="none", PYTHONPATH=str(APPS))
    assert done.stdout == "[]\n", done.stderr
    assert "recording in process" in done.stderr
    assert "failed (" not in done.stderr


@pytest.mark.parametrize(("pieces", "said"), [([b"whole"], None), ([b"", b"whole", b""], None), ([b"wh", b"ole"], 2)])
def test_an_answer_in_one_piece_is_no_stream(pieces: list[bytes], said: int | None) -> None:
    """Of a stream the end of the request is worked out in Python, of all others in C."""

    class Passed(Transfer):
        _context = NO_CONTEXT

    request = Passed()
    answer = request.run(lambda _environ, _start: pieces, {}, lambda *_: None)
    assert list(answer) == pieces
    answer.close()
    assert (request.stream is None) == (said is None)
    attributes = request.transfer_attributes(request.started)
    assert attributes["http.response.body.size"] == 5
    assert attributes.get("stagetrace.network.chunks") == said
