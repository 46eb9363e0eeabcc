"""aiohttp.web, tornado and sanic as servers: their requests, and that their responses are those without tracing."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from websockets.sync.client import connect

from backend.processes import until
from backends import free_port
from parts import parts
from services import AS_STOCK, AT_END, GUNICORN, PYTHON, Service, new_trace, run_service
from sink import SERVER, Received, Sink, assert_tiled
from stagetrace_contrib import aiohttp
from trees import at_its_best, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trees import Tree

pytestmark = pytest.mark.usefixtures("services")

ERROR = 2
SLA = "GET /hang within 100ms; * within 30s"
SERVERS = ("aiohttp", "tornado", "sanic")
START = "import os, sys, controlled; sys.modules[os.environ['APP']].serve()"
LIGHT = {"MODEL": "none"}
JSON = {"json": {"seconds": 0.002}}


class Served(NamedTuple):
    """A service, the variables of which name it, and what it responds without tracing."""

    name: str
    service: Service
    control: str
    untraced: list[bytes]


@contextmanager
def serving(name: str, folder: Path, **env: str) -> Iterator[tuple[Service, str]]:
    control = free_port()
    more = {"APP": f"server_{name}", "CONTROL": str(control), **env}
    with run_service(folder, argv=[PYTHON, "-c", START], env=more) as service:
        yield service, f"http://127.0.0.1:{control}"


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Served]:
    with serving(request.param, folder, **LIGHT) as (service, _):
        untraced = answers(service)
    headers = {"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": "x-kind"}
    env = sink.environment(STAGETRACE_SLA=SLA, **headers, **AS_STOCK)
    with serving(request.param, folder, **env) as (service, control):
        yield Served(request.param, service, control, untraced)


SERVERS = ("aiohttp", "tornado", "sanic")
in_each = pytest.mark.parametrize("served", SERVERS, indirect=True)


# --- responses

ASKED = [
    ("POST", "/predict/7", b'{"seconds": 0}'),
    ("POST", "/predict/7", b"{"),
    ("POST", "/echo", b"x" * 70_000),
    ("POST", "/parts", b"x" * 70_000),
    *(("GET", f"/{path}", b"") for path in ("stream", "raise", "broken-stream", "refuse", "empty", "file", "nowhere")),
    ("HEAD", "/task", b""),
    ("PUT", "/echo", b""),
    ("NONSENSE", "", b""),
]


def answers(service: Service) -> list[bytes]:
    """Return the responses to ASKED, byte for byte as they came, but for the date."""
    found = [exchange(service, method, path, body) for method, path, body in ASKED]
    talked = b"" if talk(service) == "HELLO" else b"silence"
    return [re.sub(rb"(?i)\r\ndate: [^\r]*", b"", one) for one in [*found, talked]]


def exchange(service: Service, method: str, path: str, body: bytes = b"", trace_id: str = "a" * 32) -> bytes:
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(head(method, path, len(body), trace_id) + body)
        return b"".join(iter(lambda: client.recv(1 << 20), b""))


def head(method: str, path: str, length: int, trace_id: str) -> bytes:
    headers = f"Host: x\r\nConnection: close\r\nContent-Length: {length}\r\ntraceparent: 00-{trace_id}-{'b' * 16}-01"
    return f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode()


def talk(service: Service, **headers: str) -> Any:
    """Return what a websocket sends back."""
    with connect(f"{service.url.replace('http', 'ws')}/talk", additional_headers=headers) as websocket:
        websocket.send("hello")
        return websocket.recv()


@in_each
def test_a_caller_that_is_stagetrace_gets_the_stages(served: Served) -> None:
    """The response is otherwise that of other callers."""
    asked, other = (
        served.service.client.post("/predict/7", json={"seconds": 0}, headers=headers)
        for headers in ({"stagetrace-caller": "1"}, {})
    )
    timing = asked.headers.pop("server-timing")
    assert re.fullmatch(r"stagetrace, (\S+;dur=[\d.]+, )+total;dur=[\d.]+", timing)
    assert "inference;dur=" in timing
    for response in (asked, other):
        response.headers.pop("date", None)
    assert (asked.status_code, asked.headers.raw, asked.content) == (200, other.headers.raw, other.content)


@in_each
def test_responses_are_byte_for_byte_those_without_tracing(served: Served) -> None:
    assert answers(served.service) == served.untraced


# --- spans

INFERS = ["preprocess", "inference", "postprocess", "network.send"]
PLAIN = ["handler", "network.send"]
STREAM = ["handler", *["network.send", "handler"] * 2, "network.send"]
# By request, its stages, and the route where it is not the path.
TREES: dict[tuple[str, str], list[Tree]] = {
    ("POST", "/predict/7"): ["preprocess", "network.receive", *INFERS],
    ("POST", "/echo"): ["handler", "network.receive", *PLAIN],
    ("POST", "/parts"): ["handler", "network.receive", *PLAIN],
    ("GET", "/thread"): list(INFERS),
    ("GET", "/task"): list(INFERS),
    ("GET", "/child"): [("handler", ["lookup"]), "network.send"],
    ("GET", "/raise"): list(PLAIN),
    ("GET", "/refuse"): list(PLAIN),
    ("GET", "/empty"): list(PLAIN),
}
PREDICTS = {"aiohttp": "/predict/{id}", "tornado": "/predict/{id}", "sanic": "/predict/<id:str>"}


BODIES: dict[str, dict[str, Any]] = {
    "/predict/7": JSON,
    "/echo": {"content": b"x" * 200_000},
    "/parts": {"content": b"x" * 200_000},
}


@pytest.mark.parametrize(
    "served",
    [pytest.param(one, marks=pytest.mark.smoke) if one == "aiohttp" else one for one in SERVERS],
    indirect=True,
)
@pytest.mark.parametrize(("method", "path"), TREES)
def test_a_request_is_one_entry_span_tiled_by_its_stages(method: str, path: str, served: Served, sink: Sink) -> None:
    route = PREDICTS[served.name] if "predict" in path else path
    wanted: Tree = (f"{method} {route}", TREES[method, path])
    seen = []

    def look() -> Tree:
        request, response = sink.traced(served.service, method, path, **BODIES.get(path, {}))
        seen.append((request.entry, response))
        found: Any = tree(request)
        name, stages = found
        # A pool whose threads are busy elsewhere, or are being made, is waited for.
        return name, [one for one, _ in groupby(one for one in stages if one != "queue (executor)")]

    assert at_its_best(look, wanted) == wanted
    entry, response = seen[-1]
    assert entry.status == (ERROR if response.status_code == 500 else 0)
    sizes = {"/predict/7": len(b'{"seconds":0.002}'), "/echo": 200_000, "/parts": 200_000}
    expected = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": response.status_code,
        "http.request.body.size": sizes.get(path),
        "http.response.body.size": len(response.content) or None,
        "url.path": path,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": served.service.port,
        "client.address": "127.0.0.1",
        "sla.verdict": "good",
    }
    assert {name: entry.attributes.get(name) for name in expected} == expected


@in_each
def test_a_stream_has_its_chunks(served: Served, sink: Sink) -> None:
    request, response = sink.traced(served.service, "GET", "/stream")
    found = request.entry.attributes
    assert response.content == b"one,two,three"
    assert found["http.response.header.x_kind"] == ["stream"]
    assert (found["stagetrace.network.chunks"], found["http.response.body.size"]) == (3, 13)
    assert found["stagetrace.network.chunk_gap.max_ms"] >= found["stagetrace.network.chunk_gap.p99_ms"] >= 10
    assert set(request.names) == {"handler", "network.send"}


@in_each
@pytest.mark.parametrize(("path", "said"), [("/raise", "no such model"), ("/broken-stream", "half way")])
def test_an_exception_is_on_the_entry_span(path: str, said: str, served: Served, sink: Sink) -> None:
    trace_id, _ = new_trace()
    exchange(served.service, "GET", path, trace_id=trace_id)
    request = sink.tiled(trace_id)
    (proto,) = [one for one in sink.protos if one.span_id.hex() == request.entry.span_id]
    (event,) = proto.events
    assert {one.key: one.value.string_value for one in event.attributes}["exception.message"] == said
    assert request.entry.status == ERROR


@in_each
def test_a_request_without_a_route_has_none(served: Served, sink: Sink) -> None:
    request, response = sink.traced(served.service, "GET", "/nowhere")
    assert response.status_code == 404
    assert request.entry.name == "GET"
    assert "http.route" not in request.entry.attributes


@in_each
def test_a_slow_request_is_a_breach_of_its_stage(served: Served, sink: Sink) -> None:
    request, _ = sink.traced(served.service, "GET", "/hang")
    assert request.entry.attributes["sla.verdict"] == "breach"
    assert request.entry.attributes["sla.breach.stage"] == "handler"


@in_each
def test_a_body_that_arrives_late_is_waited_for(served: Served, sink: Sink) -> None:
    trace_id, _ = new_trace()
    with socket.create_connection(("127.0.0.1", served.service.port)) as client:
        client.sendall(head("POST", "/echo", 6, trace_id) + b"abc")
        time.sleep(0.2)  # the server may come to read late
        client.sendall(b"def")
        assert client.makefile("rb").read().endswith(b"abcdef")
    request = sink.tiled(trace_id)
    assert request.total_ns("network.receive") >= 90_000_000


@in_each
@pytest.mark.parametrize(("path", "after_s"), [("/hang", 0.1), ("/stream", 0.005)])
def test_a_client_that_disconnects(path: str, after_s: float, served: Served, sink: Sink) -> None:
    trace_id, _ = new_trace()
    with socket.create_connection(("127.0.0.1", served.service.port)) as client:
        client.sendall(head("GET", path, 0, trace_id))
        time.sleep(after_s)
    entry = sink.tiled(trace_id).entry
    assert entry.attributes["stagetrace.network.disconnect"] == "client"
    assert entry.attributes["sla.verdict"] != "good"


@in_each
def test_fifty_requests_at_once_are_told_apart(served: Served, sink: Sink) -> None:
    def ask(number: int) -> tuple[str, httpx.Response]:
        return served.service.call("POST", f"/predict/{number}", **JSON)

    with ThreadPoolExecutor(25) as pool:
        asked = list(pool.map(ask, range(50)))
    for number, (trace_id, response) in enumerate(asked):
        assert response.json()["id"] == str(number)
        request = sink.tiled(trace_id)
        assert request.entry.attributes["url.path"] == f"/predict/{number}"
        assert [one.name for one in request.stages].count("inference") == 1


@in_each
def test_requests_on_one_connection_are_told_apart(served: Served, sink: Sink) -> None:
    """Sent at once, in advance of their responses."""
    traces = [new_trace()[0] for _ in range(3)]
    with socket.create_connection(("127.0.0.1", served.service.port)) as client:
        sent = b"".join(head("GET", "/task", 0, trace_id) for trace_id in traces)
        client.sendall(sent.replace(b"Connection: close\r\n", b"", 2))
        assert client.makefile("rb").read().count(b"HTTP/1.1 200 OK") == 3
    for trace_id in traces:
        assert sink.tiled(trace_id).entry.name == "GET /task"


@in_each
def test_a_websocket_and_what_is_no_request_are_no_spans(served: Served, sink: Sink) -> None:
    trace_id, headers = new_trace()
    assert talk(served.service, **headers) == "HELLO"
    before = {one.span_id for one in sink.spans}
    assert exchange(served.service, "NONSENSE", "").startswith(b"HTTP/1.")
    after, _ = sink.traced(served.service, "GET", "/task")
    with sink.lock:
        new = [one for one in sink.spans if one.span_id not in before and one.kind == SERVER]
    assert new == [after.entry]
    assert trace_id not in {one.trace_id for one in sink.spans}


# --- whatever fails

EACH = "instrumentation.async_servers"
PARTS = {
    "aiohttp": f"""
        stagetrace_contrib.aiohttp: _body_size
        {EACH}.request: begin_request waited_ns _address _in_bytes ServerRequest.__init__
        {EACH}.request: ServerRequest.begin ServerRequest.note_error ServerRequest.transfer_attributes
        {EACH}.request: ServerRequest._template ServerRequest.finish ServerRequest._is_disconnected
        {EACH}.request: ServerRequest.add_bytes ServerRequest.end_bytes ServerRequest.begin_response
        request.request: Request.enter Request.leave
    """,
    "tornado": f"""
        stagetrace_contrib.tornado: copy_context template Exchange._begin Exchange.add_chunk
        stagetrace_contrib.tornado: Exchange._body_size _Connection.get_extra_info
        stagetrace_contrib.tornado: Exchange.__init__ _is_done
        {EACH}.request: ServerRequest.begin ServerRequest.end_bytes ServerRequest.finish
    """,
    "sanic": f"""
        stagetrace_contrib.sanic: _body_size
        {EACH}.request: ServerRequest.begin ServerRequest.add_bytes ServerRequest.end_bytes ServerRequest.finish
    """,
}


@in_each
def test_a_part_that_fails_changes_no_response_and_is_logged_once(served: Served) -> None:
    for part in parts(PARTS[served.name]):
        before = len(served.service.log)
        httpx.get(f"{served.control}/break/{part}").raise_for_status()
        try:
            assert answers(served.service) == served.untraced, part
            logged = faults(served.service, before)
        finally:
            httpx.get(f"{served.control}/mend").raise_for_status()
        assert logged, part
        assert len(logged) == len(set(logged)), part


def faults(service: Service, before: int) -> list[str]:
    """Return the lines of the log that report a fault: some are found when the response is on its way."""
    deadline = time.monotonic() + 10
    while "injected fault" not in service.log[before:] and time.monotonic() < deadline:
        time.sleep(0.02)
    return [line for line in service.log[before:].splitlines() if "injected fault" in line]


def test_a_body_of_an_older_aiohttp_has_no_size() -> None:
    request = SimpleNamespace(headers={}, content_length=None)
    assert aiohttp._body_size(request, SimpleNamespace()) == 0
    assert aiohttp._body_size(request, SimpleNamespace(total_bytes=3)) == 3


def test_processes_of_rays_own_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/venv/ray/dashboard/agent.py", raising=False)
    aiohttp.patch_protocol(SimpleNamespace())  # type: ignore[arg-type]  # it has nothing to patch
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/srv/app.py", raising=False)
    with pytest.raises(AttributeError):
        aiohttp.patch_protocol(SimpleNamespace())  # type: ignore[arg-type]


# --- processes

ENDING = {
    "gunicorn": [*GUNICORN, "-k", "aiohttp.GunicornWebWorker", "-w", "2", "server_aiohttp:app"],
    "aiohttp": [PYTHON, "server_aiohttp.py"],
    "tornado": [PYTHON, "server_tornado.py"],
    "sanic": [PYTHON, "server_sanic.py"],
}


@pytest.mark.parametrize(
    ("name", "workers", "number"),
    [
        ("gunicorn", 2, signal.SIGTERM),
        ("aiohttp", 1, signal.SIGTERM),
        ("tornado", 1, signal.SIGINT),
        ("tornado", 2, signal.SIGTERM),
        ("sanic", 2, signal.SIGTERM),
    ],
)
def test_what_has_ended_is_delivered_at_the_end(
    name: str, workers: int, number: int, sink: Sink, tmp_path: Path
) -> None:
    """A request that the caller does not sample, and that is good, is not."""
    env = sink.environment(STAGETRACE_SLA=SLA, **{**AT_END, **LIGHT}, WORKERS=str(workers))
    with run_service(tmp_path, argv=ENDING[name], env=env) as service:
        asked = [service.call("GET", "/task") for _ in range(8)]
        unsampled, _ = service.call("GET", "/task", headers={"traceparent": f"00-{'c' * 32}-{'d' * 16}-00"})
        end(service, name, workers, number)
    wanted = {trace_id for trace_id, _ in asked}
    sink.wait_for(lambda spans: wanted <= {one.trace_id for one in spans if one.kind == SERVER})
    assert "c" * 32 not in {one.trace_id for one in sink.spans}
    for trace_id in wanted:
        assert_tiled(sink.request(trace_id))
    assert unsampled not in wanted


def end(service: Service, name: str, workers: int, number: int) -> None:
    """Signal a service, and wait until its workers have ended."""
    if name == "tornado":  # whose first process only waits for the others
        os.killpg(service.process.pid, number)
    elif name == "sanic" and workers > 1:  # whose first process may not end, untraced either, if that comes so early
        until(lambda: service.log.count("Worker ready") == workers)
        service.process.send_signal(number)
        until(lambda: service.log.count("Worker complete") == workers)
        os.killpg(service.process.pid, signal.SIGKILL)
    else:
        service.process.send_signal(number)
    service.process.wait(20)


# --- beside others

# By service: its command and variables, a request, the route of its entry span, and who has started that.
BESIDE: dict[str, tuple[list[str], dict[str, str], str, str, str]] = {
    "sanic in uvicorn": (
        [PYTHON, "-m", "uvicorn", "server_sanic:app", "--port", "{port}"],
        {},
        "/predict/7",
        "/predict/<id:str>",
        "stagetrace",
    ),
    "a WSGI container": ([PYTHON, "server_tornado.py"], {"WSGI": "1"}, "/predict", "/predict", "stagetrace"),
    "aiohttp instrumented": (
        [PYTHON, "server_aiohttp.py"],
        {"KIND": "instrumentor"},
        "/predict/7",
        "/predict/{id}",
        "opentelemetry.instrumentation.aiohttp_server",
    ),
    "aiohttp with a provider": (
        [PYTHON, "server_aiohttp.py"],
        {"KIND": "provider"},
        "/predict/7",
        "/predict/{id}",
        "opentelemetry.instrumentation.aiohttp_server",
    ),
    "tornado instrumented": (
        [PYTHON, "server_tornado.py"],
        {"KIND": "instrumentor"},
        "/predict/7",
        "/predict/{id}",
        "opentelemetry.instrumentation.tornado",
    ),
    "tornado with a provider": (
        [PYTHON, "server_tornado.py"],
        {"KIND": "provider"},
        "/predict/7",
        "/predict/{id}",
        "opentelemetry.instrumentation.tornado",
    ),
    "sanic with a provider": (
        [PYTHON, "server_sanic.py"],
        {"KIND": "provider"},
        "/predict/7",
        "/predict/<id:str>",
        "stagetrace",
    ),
}


HEAVY = ("aiohttp with a provider", "tornado instrumented", "sanic with a provider")


@pytest.mark.parametrize("how", [pytest.param(one, marks=pytest.mark.heavy if one in HEAVY else ()) for one in BESIDE])
def test_there_is_one_entry_span_beside_others(how: str, sink: Sink, tmp_path: Path) -> None:
    argv, env, path, route, scope = BESIDE[how]
    alone = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_METRICS_EXPORTER": "none", "SINK": sink.endpoint}
    with run_service(tmp_path, argv=argv, env=sink.environment(STAGETRACE_SLA=SLA, **alone, **LIGHT, **env)) as service:
        request, response = sink.traced(service, "POST", path, json={"seconds": 0})
        service.stop()
    assert response.status_code == 200
    spans = [one for one in sink.spans if one.trace_id == request.entry.trace_id]
    assert kinds(spans) == {SERVER: 1, 1: len(spans) - 1}
    assert request.entry.name == f"POST {route}"
    assert request.entry.attributes["http.route"] == route
    assert request.entry.attributes["sla.verdict"] == "good"
    assert request.entry.scope == scope
    assert "handler" in request.names


def kinds(spans: list[Received]) -> dict[int, int]:
    return {kind: sum(one.kind == kind for one in spans) for kind in {one.kind for one in spans}}
