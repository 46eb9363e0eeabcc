"""What services report of their time to each other: `Server-Timing`, ORCA, others' headers, and what a breach says."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import grpc
import pytest

from backends import free_port
from instrumentation.grpc_client import run_service as run_grpc_service
from instrumentation.test_grpc_harmless import CALLS, wait_for_no_more_than
from instrumentation.test_grpc_harmless import _break as break_rpc
from instrumentation.test_grpc_harmless import _left as left_alive
from parts import parts
from services import Service, run_service, wsgi_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Received, Sink

pytestmark = pytest.mark.usefixtures("services")

CLIENT, SERVER = 3, 2
CALLER = {"stagetrace-caller": "1"}
HTTP = ["sync/httpx", "async/httpx-async", "sync/requests", "sync/urllib3", "async/aiohttp"]
PREFIX = "stagetrace.callee."
DOWN_PORT = free_port()
STAGES = "stagetrace, preprocess;dur=N, queue;dur=N, inference;dur=N, postprocess;dur=N, total;dur=N"
NUMBER = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def downstream(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(OTEL_SERVICE_NAME="downstream", GRPC_PORT=str(DOWN_PORT))
    with run_service(folder, "downstream", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def service(sink: Sink, downstream: Service, folder: Path) -> Iterator[Service]:
    env = sink.environment(
        OTEL_SERVICE_NAME="outgoing", STAGETRACE_SLA="* within 60ms", GRPC_TARGET=f"127.0.0.1:{DOWN_PORT}"
    )
    with run_service(folder, "outgoing", env=env) as running:
        assert downstream.url
        yield running


class Plain(BaseHTTPRequestHandler):
    """A server without stagetrace, which responds with the headers that the query names, after `wait_s`."""

    def do_GET(self) -> None:
        headers = dict(parse_qsl(urlsplit(self.path).query))
        threading.Event().wait(float(headers.pop("wait_s", 0)))
        metrics = int(headers.pop("metrics", 0))
        if metrics:
            headers["Server-Timing"] = ",".join(["m;dur=1"] * metrics)
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    """The address of a server without stagetrace."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def spans_of(sink: Sink, service: Service, path: str, clients: int = 1, **params: Any) -> tuple[Received, Received]:
    """Make a request; return the entry span of the first service, and its client span."""
    trace_id, response = service.call("GET", path, params=params)
    assert response.status_code == 200, service.log

    def found(all_: list[Received], kind: int) -> list[Received]:
        mine = [one for one in all_ if one.trace_id == trace_id and one.service == "outgoing"]
        return [one for one in mine if one.kind == kind]

    spans = sink.wait_for(lambda all_: bool(found(all_, SERVER)) and len(found(all_, CLIENT)) >= clients)
    return found(spans, SERVER)[0], found(spans, CLIENT)[0]


def told(span: Received) -> dict[str, Any]:
    return {name.removeprefix(PREFIX): value for name, value in span.attributes.items() if name.startswith(PREFIX)}


def masked(text: str) -> str:
    """Return evidence without its numbers and peers, and without its end, the line of code."""
    text = text.partition("; ")[0]
    return NUMBER.sub("N", re.sub(r"127\.0\.0\.1:\d+", "PEER", text))


# --- what a service reports


def test_a_caller_that_is_stagetrace_gets_the_stages_and_no_other(downstream: Service) -> None:
    """Status, headers and body are those of a response without them, but for the date."""
    path = "/timed?queue_s=0.02&inference_s=0.03"
    asked, other = (downstream.client.get(path, headers=headers) for headers in (CALLER, {}))
    timing = asked.headers.pop("server-timing")
    assert masked(timing) == STAGES
    took = {name: float(value) for name, value in re.findall(r"(\S+);dur=([\d.]+)", timing)}
    assert took["queue"] >= 20 * 0.9
    assert took["inference"] >= 30 * 0.9
    assert took["total"] == pytest.approx(sum(took.values()) - took["total"], abs=0.01)
    for response in (asked, other):
        response.headers.pop("date")
    assert (asked.status_code, asked.content) == (other.status_code, other.content)
    assert asked.headers.raw == other.headers.raw


def test_the_applications_own_timing_stays(downstream: Service) -> None:
    response = downstream.client.get("/timed", params={"own": "db;dur=53"}, headers=CALLER)
    own, ours = response.headers.get_list("server-timing")
    assert (own, masked(ours)) == ("db;dur=53", STAGES)
    assert downstream.client.get("/timed", params={"own": "db;dur=53"}).headers["server-timing"] == "db;dur=53"


def test_a_stream_reports_until_its_headers(downstream: Service) -> None:
    response = downstream.client.get("/slow-body", params={"chunks": 2, "pause_s": 0.2}, headers=CALLER)
    (total,) = re.findall(r"total;dur=([\d.]+)", response.headers["server-timing"])
    assert response.elapsed.total_seconds() >= 0.4 * 0.9
    assert float(total) < response.elapsed.total_seconds() * 1e3 - 300
    assert len(response.content) == 2000


def test_what_a_callee_reports_is_not_handed_on(service: Service, downstream: Service) -> None:
    """A gateway that copies the headers of a response has its own callers get what they would without stagetrace."""
    url = f"{downstream.url}/timed?" + urlencode({"own": "db;dur=53"})
    assert service.client.get("/forward", params={"url": url}).headers.get_list("server-timing") == ["db;dur=53"]
    plain = service.client.get("/forward", params={"url": f"{downstream.url}/timed"})
    assert "server-timing" not in plain.headers
    asked = service.client.get("/forward", params={"url": url}, headers=CALLER)
    own, ours = asked.headers.get_list("server-timing")
    assert own == "db;dur=53"
    assert re.fullmatch(r"stagetrace, handler;dur=N, (\S+;dur=N, )*total;dur=N", masked(ours))
    assert "inference" not in ours


FAULTS = parts("""
    protocols.http_headers: timing_of _name
    protocols.asgi_request: AsgiRequest._with_timing
    request.request: Request.totals_until
""")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_leaves_the_response_without_a_report(fault: str, downstream: Service) -> None:
    expected = downstream.client.get("/timed")
    before = len(downstream.log)
    if "AsgiRequest" in fault:
        fault = fault.replace("AsgiRequest._with_timing", "http_headers.timing_of")
    assert downstream.client.get(f"/break/{fault}").status_code == 200
    try:
        for _ in range(2):
            response = downstream.client.get("/timed", headers=CALLER)
            assert (response.status_code, response.content) == (expected.status_code, expected.content)
            assert list(response.headers) == list(expected.headers)
    finally:
        assert downstream.client.get("/mend").status_code == 200
    said = [line for line in downstream.log[before:].splitlines() if "injected fault" in line]
    assert len(said) == 1, downstream.log[before:]
    assert said[0].startswith("stagetrace:")


def test_wsgi_reports_to_everybody_if_that_is_asked_for(sink: Sink, folder: Path) -> None:
    """Headers and body are otherwise those of a response whose report fails."""
    env = sink.environment(STAGETRACE_SERVER_TIMING="1")
    with run_service(folder, argv=wsgi_command("waitress", "wsgi_timed"), env=env) as running:
        reported = running.client.get("/")
        stages = re.findall(r"(\S+);dur=", reported.headers.pop("server-timing"))
        assert list(dict.fromkeys(stages))[-4:] == ["preprocess", "inference", "postprocess", "total"], stages
        assert running.client.get("/break/stagetrace.protocols.http_headers:timing_of").content == b"done"
        without = running.client.get("/")
        for response in (reported, without):
            response.headers.pop("date")
        assert reported.headers.raw == without.headers.raw
        assert reported.content == without.content
        assert "injected fault" in running.log


@pytest.mark.parametrize("app", CALLS)
def test_an_rpc_reports_in_its_trailing_metadata_and_is_otherwise_the_same(
    app: str, sink: Sink, tmp_path: Path
) -> None:
    """A handler's own metadata is kept, no RPC is kept alive, and a report that fails changes nothing."""
    env = sink.environment(OTEL_PYTHON_GRPC_EXCLUDED_SERVICES="left.Out", ON_SIGTERM="1")
    with run_grpc_service(tmp_path, app, env) as running:
        for method, kind, sent, more in CALLS[app]:
            _, expected = running.call(method, *sent, kind=kind, **more)
            metadata = (*more.get("metadata", ()), *CALLER.items())
            _, got = running.call(method, *sent, kind=kind, **{**more, "metadata": metadata})
            timings = [value for key, value in got.trailing if key == "server-timing"]
            got.trailing[:] = [one for one in got.trailing if one[0] != "server-timing"]
            assert got == expected, method
            assert len(timings) in ((1,) if got.code == "OK" else (0, 1)), method
            assert all(re.fullmatch(r"stagetrace, (\S+;dur=N, )+total;dur=N", masked(one)) for one in timings)
        before = left_alive(running)
        for number in range(3):
            running.call("Predict", {"value": number}, metadata=(*CALLER.items(),))
        wait_for_no_more_than(before, running)
        _, got = running.call("Predict", {}, metadata=(*CALLER.items(),))
        assert [key for key, _ in got.trailing] == ["kept", "server-timing"]
        assert "inference;dur=" in dict(got.trailing)["server-timing"]
        assert break_rpc(running, "stagetrace.protocols.http_headers:timing_of") == {}
        _, got = running.call("Predict", {}, metadata=(*CALLER.items(),))
        assert (got.code, got.trailing) == ("OK", [("kept", "yes")])
        assert break_rpc(running, "")
    assert running.log.count("injected fault") == 1, running.log


# --- what the caller reads


@pytest.mark.parametrize("how", HTTP)
def test_a_breach_says_how_the_callee_divides_its_time(
    how: str, service: Service, downstream: Service, sink: Sink
) -> None:
    url = f"{downstream.url}/timed?queue_s=0.1&inference_s=0.2"
    entry, client = spans_of(sink, service, f"/{how}", url=url)
    found = told(client)
    assert sorted(found) == ["compute_ms", "network_ms", "other_ms", "queue_ms", "response_ms", "source", "total_ms"]
    assert found["source"] == "server-timing"
    assert found["queue_ms"] >= 100 * 0.9
    assert found["compute_ms"] >= 200 * 0.9
    assert found["total_ms"] == pytest.approx(found["queue_ms"] + found["compute_ms"] + found["other_ms"], abs=0.01)
    whole_ms = (client.end - client.start) / 1e6
    assert whole_ms == pytest.approx(found["network_ms"] + found["response_ms"] + found["total_ms"], abs=0.01)
    for name in ("queue_ms", "compute_ms", "other_ms", "network_ms", "response_ms"):
        assert entry.attributes[f"sla.breach.peer.{name}"] == found[name]
    assert entry.attributes["sla.breach.cause"] == "downstream"
    evidence = masked(entry.attributes["sla.breach.evidence"])
    assert evidence.replace(", the rest of the response N ms", "") == (  # which a busy machine makes long
        "handler took N ms of N ms, 60 ms allowed: N ms waiting for PEER "
        "(it reported N ms queue, N ms compute, N ms other work, the network took N ms)"
    )


def test_a_stream_is_divided_at_its_headers(service: Service, downstream: Service, sink: Sink) -> None:
    """What comes after them is in no report."""
    entry, client = spans_of(sink, service, "/sync/httpx", url=f"{downstream.url}/slow-body?chunks=3&pause_s=0.1")
    assert told(client)["response_ms"] >= 200 * 0.9
    assert entry.attributes["sla.breach.peer.response_ms"] == told(client)["response_ms"]
    assert masked(entry.attributes["sla.breach.evidence"]).endswith(
        "(it reported N ms queue, N ms other work, the network took N ms, the rest of the response N ms)"
    )


@pytest.mark.parametrize("path", ["grpc/Timed", "grpc/Timed?how=with_call", "grpc/Timed?how=future", "grpc-aio/Timed"])
def test_so_does_an_rpc(path: str, service: Service, downstream: Service, sink: Sink) -> None:
    assert downstream.url
    path, _, query = path.partition("?")
    how: dict[str, Any] = dict(parse_qsl(query))
    entry, client = spans_of(sink, service, f"/{path}", **how)
    found = told(client)
    assert sorted(found) == ["compute_ms", "network_ms", "other_ms", "queue_ms", "source", "total_ms"]
    assert found["compute_ms"] >= 500 * 0.9
    assert masked(entry.attributes["sla.breach.evidence"]) == (
        "handler took N ms of N ms, 60 ms allowed: N ms waiting for PEER "
        "(it reported N ms queue, N ms compute, N ms other work, the network took N ms)"
    )


REPORTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "metrics that add up": (
        {"Server-Timing": "queue;dur=20, inference;dur=30, total;dur=50"},
        {"source": "server-timing", "queue_ms": 20, "compute_ms": 30, "other_ms": 0, "total_ms": 50},
    ),
    "metrics that do not": (
        {"Server-Timing": 'cache;desc="Hit, near", db;dur=5.5, total;dur=50;desc="all of it"'},
        {"source": "server-timing", "total_ms": 50, "server_timing": "db=5.5, total=50"},
    ),
    "other metrics": ({"Server-Timing": "db;dur=5"}, {"server_timing": "db=5"}),
    "text-generation-inference": (
        {"x-compute-type": "gpu", "x-total-time": "50", "x-queue-time": "20", "x-inference-time": "29"},
        {
            "source": "text-generation-inference",
            "queue_ms": 20,
            "compute_ms": 29,
            "other_ms": 1,
            "total_ms": 50,
        },
    ),
    "seconds of somebody else": ({"x-queue-time": "0.02", "x-total-time": "0.05"}, {}),
    "OpenAI": ({"openai-processing-ms": "50"}, {"source": "openai-processing-ms", "total_ms": 50}),
    "Envoy": (
        {"x-envoy-upstream-service-time": "50"},
        {"source": "x-envoy-upstream-service-time", "total_ms": 50},
    ),
    "load": (
        {"endpoint-load-metrics": "TEXT cpu_utilization=0.3, named_metrics.num_requests_waiting=4"},
        {"load": "cpu_utilization=0.3, named_metrics.num_requests_waiting=4", "cpu_utilization": 0.3},
    ),
    "load as JSON": (
        {"endpoint-load-metrics": 'JSON {"application_utilization": 1.2, "named_metrics": {"kv": 0.5}}'},
        {"load": "application_utilization=1.2, named_metrics.kv=0.5", "application_utilization": 1.2},
    ),
    "a cached response": ({"Server-Timing": "total;dur=50", "Age": "3"}, {}),
    "more than the call took": (
        {"Server-Timing": "queue;dur=1, total;dur=600000"},
        {"source": "server-timing", "queue_ms": 1, "total_ms": 600000, "implausible": True},
    ),
    "7,000 metrics": ({"metrics": "7000"}, {"server_timing": ", ".join(["m=1"] * 16) + ", 48 more"}),
    "garbage": ({"Server-Timing": '"' * 5_000 + ";;=,\\", "endpoint-load-metrics": "JSON [" * 900}, {}),
}


@pytest.mark.parametrize("report", REPORTS)
def test_what_other_servers_report_is_read(report: str, service: Service, plain: str, sink: Sink) -> None:
    """What they do not report is not there. A client in turn for each."""
    headers, expected = REPORTS[report]
    is_long = "metrics" in headers or len(str(headers)) > 4_000  # aiohttp refuses these
    how = HTTP[0] if is_long else HTTP[list(REPORTS).index(report) % len(HTTP)]
    _, client = spans_of(sink, service, f"/{how}", url=f"{plain}?{urlencode({**headers, 'wait_s': 0.055})}")
    found = told(client)
    network, response = found.pop("network_ms", None), found.pop("response_ms", None)
    assert found == expected
    is_divided = "total_ms" in expected and "implausible" not in expected
    assert (network is not None, response is not None) == (is_divided, is_divided)


def test_a_report_that_cannot_be_is_shown_and_not_used(service: Service, plain: str, sink: Sink) -> None:
    headers = {"Server-Timing": "queue;dur=1.0, total;dur=600000", "wait_s": 0.3}
    entry, _ = spans_of(sink, service, "/sync/httpx", url=f"{plain}?{urlencode(headers)}")
    assert masked(entry.attributes["sla.breach.evidence"]) == (
        "handler took N ms of N ms, 60 ms allowed: N ms waiting for PEER "
        "(it reported up to N ms, which cannot be and is not used)"
    )
    assert not [name for name in entry.attributes if name.startswith("sla.breach.peer.")]


def test_a_caller_asks_only_where_it_sends_a_context(service: Service, downstream: Service, sink: Sink) -> None:
    assert downstream.url
    url = f"{downstream.url}/asked"
    assert service.client.get("/sync/httpx", params={"url": url}).json()[0] == "true"
    assert service.client.get("/outside/httpx", params={"url": url}).json()[0] == "false"
    assert sink


@contextmanager
def grpc_server(trailing: Any) -> Iterator[str]:
    """Run a gRPC server without stagetrace whose responses have this trailing metadata."""

    def answer(_: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(trailing)
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Quiet": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Down", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("how", ["grpc", "grpc-aio"])
def test_load_in_the_trailing_metadata_of_an_rpc_is_read(how: str, sink: Sink, service: Service) -> None:
    """As text: what is in `endpoint-load-metrics-bin`, gRPC keeps from Python programs."""
    load = "cpu_utilization=0.5, named_metrics.waiting=3"
    with grpc_server((("endpoint-load-metrics", f"TEXT {load}"),)) as target:
        _, client = spans_of(sink, service, f"/{how}/Quiet", target=target)
    assert told(client) == {"load": load, "cpu_utilization": 0.5}
