"""Outgoing calls of a recorded request: a client span under the open stage, whose context the headers carry."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from backends import free_port
from parts import parts
from services import Service, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Received, Sink

pytestmark = pytest.mark.usefixtures("services")

EARLY = 0.95
MS = 1_000_000
CLIENT, SERVER = 3, 2
ERROR = 2
HTTP = [
    *("sync/httpx", "async/httpx-async", "sync/httpx2", "async/httpx2-async"),
    *("sync/requests", "sync/urllib3", "async/aiohttp"),
]
GRPC = ["grpc", "grpc-aio"]
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
GRPC_PORT = free_port()


def environment(sink: Sink, name: str, **more: str) -> dict[str, str]:
    return sink.environment(
        OTEL_SERVICE_NAME=name, OTEL_SEMCONV_STABILITY_OPT_IN="http", STAGETRACE_SLA="* within 60ms", **more
    )


@pytest.fixture(scope="module")
def downstream(sink: Sink, folder: Path) -> Iterator[Service]:
    env = environment(sink, "downstream", GRPC_PORT=str(GRPC_PORT))
    with run_service(folder, "downstream", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def service(sink: Sink, downstream: Service, folder: Path) -> Iterator[Service]:
    env = environment(sink, "outgoing", GRPC_TARGET=f"127.0.0.1:{GRPC_PORT}", STAGETRACE_WIRE="1")
    with run_service(folder, "outgoing", env=env) as running:
        assert downstream.url
        yield running


@pytest.fixture(scope="module")
def instrumented(sink: Sink, downstream: Service, folder: Path) -> Iterator[Service]:
    """The same where OpenTelemetry's own instrumentation of each client is active."""
    env = environment(sink, "instrumented", GRPC_TARGET=f"127.0.0.1:{GRPC_PORT}", INSTRUMENT="1")
    with run_service(folder, "outgoing", env=env) as running:
        assert downstream.url
        yield running


class Traced:
    """The result of one request: the response, and its spans in both services."""

    def __init__(
        self, sink: Sink, service: Service, path: str, servers: int = 1, clients: int = 1, **params: Any
    ) -> None:
        self.trace_id, response = service.call("GET", path, params=params, headers=params.pop("headers", {}))
        assert response.status_code == 200, service.log
        self.answer = response.json()
        spans = sink.wait_for(
            # Spans of a breach arrive before others.
            lambda all_: len(self._of_kind(SERVER, all_)) > servers and len(self._of_kind(CLIENT, all_)) >= clients
        )
        self.spans = [span for span in spans if span.trace_id == self.trace_id]
        self.clients = sorted((one for one in self.spans if one.kind == CLIENT), key=lambda one: one.start)
        self.servers = sorted(
            (one for one in self._of_kind(SERVER, self.spans) if one.service == "downstream"), key=_start
        )
        self.stages = {one.span_id: one.name for one in self.spans if one.service != "downstream" and _is_stage(one)}

    def _of_kind(self, kind: int, spans: list[Received]) -> list[Received]:
        return [span for span in spans if span.trace_id == self.trace_id and span.kind == kind]


def _start(span: Received) -> int:
    return span.start


def _is_stage(span: Received) -> bool:
    return "ml.stage" in span.attributes


@pytest.mark.smoke
@pytest.mark.parametrize("how", HTTP)
def test_an_http_call_is_a_client_span_whose_context_is_sent(
    how: str, service: Service, downstream: Service, sink: Sink
) -> None:
    url = f"{downstream.url}/echo?seconds=0.05&token=geheim"
    traced = Traced(sink, service, f"/{how}", url=url)
    text, status = traced.answer
    (client,), (server,) = traced.clients, traced.servers
    assert status == 200
    assert json.loads(text)["headers"] == sorted(
        [["x-mine", "1"], ["traceparent", f"00-{traced.trace_id}-{client.span_id}-01"]],
        key=lambda item: [name for name, _ in json.loads(text)["headers"]].index(item[0]),
    )
    address = urlsplit(downstream.url)
    assert (client.name, client.scope, client.service, client.status) == ("GET", "stagetrace", "outgoing", 0)
    rtt_ms = client.attributes.get("stagetrace.network.rtt_ms")
    # aiohttp has given the connection back where the whole response came at once.
    assert how.endswith("aiohttp") if rtt_ms is None else 0 < rtt_ms < 10_000
    assert {
        key: value
        for key, value in client.attributes.items()
        if not key.startswith(("network.", "stagetrace.network.", "stagetrace.callee."))
    } == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": address.port,
        "url.full": f"{downstream.url}/echo",
        "http.response.status_code": 200,
    }
    assert server.parent_id == client.span_id
    assert traced.stages[client.parent_id] == "handler"
    assert client.end - client.start >= 50 * MS * EARLY


@pytest.mark.parametrize("how", HTTP)
def test_a_client_span_lasts_until_the_body_is_read(
    how: str, service: Service, downstream: Service, sink: Sink
) -> None:
    (client,) = Traced(sink, service, f"/{how}", url=f"{downstream.url}/slow-body").clients
    assert client.end - client.start >= 150 * MS * EARLY
    assert 0 < client.attributes["stagetrace.network.rtt_ms"] < 10_000


@pytest.mark.parametrize("how", [one.rpartition("/")[2] for one in HTTP])
def test_a_response_that_is_not_read_ends_its_span(how: str, service: Service, downstream: Service, sink: Sink) -> None:
    traced = Traced(sink, service, f"/unread/{how}", url=f"{downstream.url}/slow-body")
    trace_id = traced.trace_id
    spans = sink.wait_for(lambda all_: any(one.kind == CLIENT and one.trace_id == trace_id for one in all_))
    client = next(one for one in spans if one.kind == CLIENT and one.trace_id == trace_id)
    assert client.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("how", HTTP)
def test_errors_of_the_server_are_errors_of_the_client(
    how: str, service: Service, downstream: Service, sink: Sink
) -> None:
    (client,) = Traced(sink, service, f"/{how}", url=f"{downstream.url}/status/503").clients
    assert (client.attributes["error.type"], client.status) == ("503", ERROR)


@pytest.mark.parametrize("how", HTTP)
def test_a_call_that_fails_has_its_error_type(how: str, service: Service, sink: Sink) -> None:
    traced = Traced(sink, service, f"/{how}", servers=0, url=f"http://me:secret@127.0.0.1:{free_port()}/x")
    client = traced.clients[-1]
    assert client.status == ERROR
    assert client.attributes["error.type"].startswith(
        {"requests": "urllib3."}.get(how.rpartition("/")[2], how.rpartition("/")[2].removesuffix("-async"))
    )
    assert "http.response.status_code" not in client.attributes
    assert "secret" not in client.attributes["url.full"]


def test_each_hop_of_a_redirect_is_a_request_of_its_own(service: Service, downstream: Service, sink: Sink) -> None:
    traced = Traced(sink, service, "/sync/httpx", servers=2, clients=2, url=f"{downstream.url}/redirect")
    assert [one.attributes["http.response.status_code"] for one in traced.clients] == [307, 200]
    assert [one.parent_id for one in traced.servers] == [one.span_id for one in traced.clients]


def assert_no_client(traced: Traced, service: Service, downstream: Service, sink: Sink) -> None:
    """Check it once a later call's span has come, which would have come after it."""
    Traced(sink, service, "/sync/httpx", url=f"{downstream.url}/echo")
    with sink.lock:
        assert not [one for one in sink.spans if one.trace_id == traced.trace_id and one.kind == CLIENT]


@pytest.mark.parametrize("how", HTTP)
def test_a_context_that_the_service_sends_is_kept(how: str, service: Service, downstream: Service, sink: Sink) -> None:
    own = f"00-{'ab' * 16}-{'cd' * 8}-01"
    traced = Traced(
        sink,
        service,
        f"/{how}",
        servers=0,
        clients=0,
        url=f"{downstream.url}/echo",
        headers={"x-send": f"traceparent={own}"},
    )
    assert json.loads(traced.answer[0])["headers"] == [["traceparent", own]]
    assert_no_client(traced, service, downstream, sink)


@pytest.mark.parametrize("how", HTTP)
def test_its_own_context_that_the_service_sends_is_replaced(
    how: str, service: Service, downstream: Service, sink: Sink
) -> None:
    """A service that injects the current context by hand, in headers of any case, gets its client span."""
    traced = Traced(sink, service, f"/{how}", url=f"{downstream.url}/echo", headers={"x-send": "own"})
    (client,), (server,) = traced.clients, traced.servers
    assert json.loads(traced.answer[0])["headers"] == [["traceparent", f"00-{traced.trace_id}-{client.span_id}-01"]]
    assert server.parent_id == client.span_id
    assert traced.stages[client.parent_id] == "handler"


@pytest.mark.parametrize("how", GRPC)
def test_its_own_context_in_metadata_is_replaced(how: str, service: Service, sink: Sink) -> None:
    traced = Traced(sink, service, f"/{how}/unary_unary", own=True)
    (client,), (server,) = traced.clients, traced.servers
    assert sorted(ast.literal_eval(traced.answer)) == [
        ["traceparent", f"00-{traced.trace_id}-{client.span_id}-01"],
        ["x-mine", "1"],
    ]
    assert server.parent_id == client.span_id


@pytest.mark.parametrize("how", ["httpx", "httpx2", "requests", "urllib3"])
def test_outside_of_a_request_nothing_is_added(how: str, service: Service, downstream: Service, sink: Sink) -> None:
    traced = Traced(sink, service, f"/outside/{how}", servers=0, clients=0, url=f"{downstream.url}/echo")
    assert json.loads(traced.answer[0])["headers"] == []
    assert_no_client(traced, service, downstream, sink)


@pytest.mark.parametrize("how", HTTP)
def test_beside_opentelemetrys_own_there_is_one_span(
    how: str, instrumented: Service, downstream: Service, sink: Sink
) -> None:
    traced = Traced(sink, instrumented, f"/{how}", url=f"{downstream.url}/echo")
    (client,), (server,) = traced.clients, traced.servers
    assert client.scope.startswith("opentelemetry.instrumentation.")
    assert server.parent_id == client.span_id


@pytest.mark.parametrize("path", ["/sync/httpx", "/async/aiohttp", "/sync/requests", "/grpc-aio/Sleep"])
@pytest.mark.parametrize("fixture", ["service", "instrumented"])
def test_a_breach_that_waited_for_another_service_names_it(
    path: str, fixture: str, request: pytest.FixtureRequest, downstream: Service, sink: Sink
) -> None:
    """Whoever makes the client's span: the call of 500 ms is most of the handler's time."""
    service = request.getfixturevalue(fixture)
    traced = Traced(sink, service, path, url=f"{downstream.url}/echo?seconds=0.5")
    entry = next(one for one in traced.spans if one.kind == SERVER and one.service != "downstream")
    port = GRPC_PORT if "grpc" in path else urlsplit(downstream.url).port
    attributes = entry.attributes
    assert attributes["sla.breach.cause"] == "downstream"
    if fixture == "service" or "grpc" not in path:  # OpenTelemetry's own says no address of a gRPC server
        assert attributes["sla.breach.peer"] == f"127.0.0.1:{port}"
    assert attributes["sla.breach.peer"] in attributes["sla.breach.evidence"]


SHARED = parts("""
    instrumentation.clients.base: Call.headers Call._finish OwnCall.__init__ OwnCall._end_span OwnCall.span begin
    instrumentation.clients.base: _http_attributes _server carries_other
    instrumentation.clients.base: context_fields
    sla.entry_recorder: EntryRecorder.add_call
    protocols.connection: add_call
    sources.tcp_info: read_connection
    instrumentation.clients.base: asks Call._report
    instrumentation.clients.callee: read_headers metrics_of times_in Reported.attributes
    sla.processor: report_in
""")
HTTPX = ["sync/httpx", "async/httpx-async", "sync/httpx2", "async/httpx2-async"]
URLLIB3 = ["sync/requests", "sync/urllib3"]
AIOHTTP = ["async/aiohttp"]
# By part, the clients for which it fails; what all of them use fails for two of HTTP and one of gRPC, in turn.
PARTS = {
    "nothing": [*HTTP, *GRPC],
    **{part: [HTTP[number % 7], HTTP[(number + 3) % 7], GRPC[number % 2]] for number, part in enumerate(SHARED)},
    "stagetrace.patches.httpx:begin_http": HTTPX,
    "stagetrace.patches.httpx:http_status": HTTPX,
    "stagetrace.patches.urllib3:begin_http": URLLIB3,
    "stagetrace.patches.urllib3:http_status": URLLIB3,
    "stagetrace.patches.urllib3:_text": URLLIB3,
    "stagetrace.patches.aiohttp:begin_http": AIOHTTP,
    "stagetrace.patches.aiohttp:http_status": AIOHTTP,
    **{
        f"stagetrace.patches.grpc.client:{name}": GRPC
        for name in ("_call", "begin", "carries_other", "server_of", "status", "_result")
    },
}


@pytest.fixture(scope="module")
def breakable(sink: Sink, downstream: Service, folder: Path) -> Iterator[Service]:
    env = environment(sink, "breakable", GRPC_TARGET=f"127.0.0.1:{GRPC_PORT}", BREAKABLE="1", STAGETRACE_WIRE="1")
    with run_service(folder, "outgoing", env=env) as running:
        assert downstream.url
        yield running


@pytest.mark.parametrize("part", PARTS)
def test_an_injected_fault_changes_no_call_and_is_logged(part: str, breakable: Service, downstream: Service) -> None:
    before = len(breakable.log)
    if part != "nothing":
        assert breakable.client.get(f"/break/{part}").status_code == 200
    try:
        for how in PARTS[part]:
            if how in GRPC:
                assert_rpcs_as_ever(how, breakable)
            else:
                assert_calls_as_ever(how, breakable, downstream)
    finally:
        assert breakable.client.get("/mend").status_code == 200
    said = [line for line in breakable.log[before:].splitlines() if "injected fault" in line]
    assert bool(said) is (part != "nothing"), breakable.log[before:]
    assert all(line.startswith("stagetrace:") for line in said), said
    assert len(said) == len(set(said))


def assert_calls_as_ever(how: str, breakable: Service, downstream: Service) -> None:
    for path, status in (("/status/200", 200), ("/status/500", 500)):
        url = {"url": downstream.url + path}
        assert breakable.client.get(f"/{how}", params=url).json() == ["{}", status]
    refused = breakable.client.get(f"/{how}", params={"url": "http://127.0.0.1:1/"}).json()
    assert refused[0] in ("ConnectError", "ConnectionError", "NewConnectionError", "ClientConnectorError")
    assert breakable.client.get(f"/unread/{how.rpartition('/')[2]}", params=url).json() == 500


def assert_rpcs_as_ever(how: str, breakable: Service) -> None:
    for query in ("", "?how=future", "?how=with_call") if how == "grpc" else ("",):
        assert breakable.client.get(f"/{how}/Quiet{query}").json() == "0.5"
    assert breakable.client.get(f"/{how}/Abort").json() == "NOT_FOUND"
    kind = "unary_stream" if how == "grpc" else "stream_stream"
    assert breakable.client.get(f"/{how}/{kind}").json()[1] == "last"


def in_downstream(answer: Any) -> dict[str, str]:
    return dict(ast.literal_eval(answer[0] if isinstance(answer, list) else answer))


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        *(("grpc", kind) for kind in KINDS),
        *(("grpc-aio", kind) for kind in KINDS),
        *((how, f"{kind}_unary") for how in ("future", "with_call") for kind in ("unary", "stream")),
    ],
)
def test_an_rpc_is_a_client_span_whose_context_is_sent(how: str, kind: str, service: Service, sink: Sink) -> None:
    if how in ("future", "with_call"):
        traced = Traced(sink, service, f"/grpc/{kind}", how=how)
    else:
        traced = Traced(sink, service, f"/{how}/{kind}")
    (client,), (server,) = traced.clients, traced.servers
    method = f"test.Down/{''.join(part.title() for part in kind.split('_'))}"
    assert in_downstream(traced.answer) == {
        "x-mine": "1",
        "traceparent": f"00-{traced.trace_id}-{client.span_id}-01",
    }
    assert (client.name, client.scope, client.status) == (method, "stagetrace", 0)
    assert {key: value for key, value in client.attributes.items() if not key.startswith("stagetrace.callee.")} == {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "server.address": "127.0.0.1",
        "server.port": GRPC_PORT,
        "rpc.response.status_code": "OK",
    }
    assert client.attributes["stagetrace.callee.source"] == "server-timing"
    assert server.parent_id == client.span_id
    assert traced.stages[client.parent_id] == "handler"
    if kind.endswith("stream"):
        assert client.end - client.start >= 30 * MS * EARLY


@pytest.mark.parametrize("how", ["grpc", "grpc-aio"])
@pytest.mark.parametrize(("kind", "code"), [("Abort", "NOT_FOUND"), ("Sleep", "DEADLINE_EXCEEDED")])
def test_an_rpc_that_fails_has_its_status(how: str, kind: str, code: str, service: Service, sink: Sink) -> None:
    traced = Traced(sink, service, f"/{how}/{kind}")
    (client,) = traced.clients
    assert traced.answer == code
    assert (client.attributes["rpc.response.status_code"], client.attributes["error.type"]) == (code, code)
    assert client.status == ERROR


@pytest.mark.parametrize("how", ["grpc", "grpc-aio"])
@pytest.mark.parametrize("kind", KINDS)
def test_beside_opentelemetrys_own_there_is_one_span_of_an_rpc(
    how: str, kind: str, instrumented: Service, sink: Sink
) -> None:
    traced = Traced(sink, instrumented, f"/{how}/{kind}")
    (client,), (server,) = traced.clients, traced.servers
    assert client.scope.startswith("opentelemetry.instrumentation.")
    assert server.parent_id == client.span_id
