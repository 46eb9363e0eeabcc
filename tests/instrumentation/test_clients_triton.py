"""Calls of KServe v2 servers, by tritonclient and by others: the client span names the model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from model_apis import ModelApis, run_model_apis
from parts import parts
from services import Service, run_service
from sink import CLIENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Received, Sink

pytestmark = pytest.mark.usefixtures("services")

OUT = [[1], [2]]
UNARY = "inference.GRPCInferenceService/ModelInfer"
STREAM = "inference.GRPCInferenceService/ModelStreamInfer"


class Inference(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Returns two rows for each request, and notes the context that it came with."""

    def __init__(self) -> None:
        self.contexts: list[str] = []

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 -- named by the protocol
        self.contexts.append(dict(context.invocation_metadata()).get("traceparent", ""))
        output = {"name": "OUT", "datatype": "INT32", "shape": [2, 1]}
        response = service_pb2.ModelInferResponse(model_name=request.model_name, outputs=[output])
        response.raw_output_contents.append(b"\1\0\0\0\2\0\0\0")
        return response

    def ModelStreamInfer(self, requests: Any, context: Any) -> Any:  # noqa: N802
        for request in requests:
            yield service_pb2.ModelStreamInferResponse(infer_response=self.ModelInfer(request, context))


@pytest.fixture(scope="module")
def apis() -> Iterator[ModelApis]:
    with run_model_apis() as server:
        yield server


@pytest.fixture(scope="module")
def inference() -> Iterator[tuple[Inference, str]]:
    servicer, server = Inference(), grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(OTEL_SERVICE_NAME="inferring")
    with run_service(folder, "remote_models", env=env) as running:
        yield running


def traced(sink: Sink, service: Service, path: str, **params: str) -> tuple[Any, Received]:
    """Return the response to a request, and the one client span of it."""
    trace_id, response = service.call("GET", path, params=params)
    assert response.status_code == 200, service.log[-4000:]

    def clients(all_: list[Received]) -> list[Received]:
        return [one for one in all_ if one.trace_id == trace_id and one.kind == CLIENT]

    (client,) = clients(sink.wait_for(lambda all_: len(clients(all_)) > 0))
    assert client.status == 0
    return response.json(), client


def model(span: Received) -> dict[str, Any]:
    return {name: value for name, value in span.attributes.items() if name.startswith("ml.")}


TREES = {"ml.model.name": "trees", "ml.batch.size": 2}


@pytest.mark.smoke
@pytest.mark.parametrize("path", ["/triton/http/infer", "/triton/http/async", "/triton/http-aio/infer"])
@pytest.mark.parametrize("version", ["", "3"])
def test_tritonclient_over_http(path: str, version: str, service: Service, apis: ModelApis, sink: Sink) -> None:
    answer, client = traced(sink, service, path, target=apis.url.removeprefix("http://"), version=version)
    assert answer == OUT
    assert client.name == "POST"
    assert model(client) == {**TREES, **({"ml.model.version": version} if version else {})}
    infer = f"/v2/models/trees{f'/versions/{version}' if version else ''}/infer"
    assert client.attributes["url.full"] == f"{apis.url}{infer}"
    assert client.attributes["http.response.status_code"] == 200
    assert apis.headers[-1]["traceparent"] == f"00-{client.trace_id}-{client.span_id}-01"
    if path == "/triton/http/infer":
        assert apis.headers[-1]["x-mine"] == "1"


@pytest.mark.parametrize("path", ["/triton/grpc/infer", "/triton/grpc/async", "/triton/grpc-aio/infer"])
@pytest.mark.parametrize("version", ["", "3"])
def test_tritonclient_over_grpc(
    path: str, version: str, service: Service, inference: tuple[Inference, str], sink: Sink
) -> None:
    servicer, target = inference
    answer, client = traced(sink, service, path, target=target, version=version)
    assert answer == OUT
    assert (client.name, client.attributes["rpc.response.status_code"]) == (UNARY, "OK")
    assert model(client) == {**TREES, **({"ml.model.version": version} if version else {})}
    assert servicer.contexts[-1] == f"00-{client.trace_id}-{client.span_id}-01"


@pytest.mark.parametrize(
    ("path", "common"),
    [
        ("/triton/grpc/stream", TREES),
        ("/triton/grpc/stream-mixed", {"ml.batch.size": 2}),
        ("/triton/grpc-aio/stream", TREES),
    ],
)
def test_a_stream_has_what_its_requests_have_in_common(
    path: str, common: dict[str, Any], service: Service, inference: tuple[Inference, str], sink: Sink
) -> None:
    servicer, target = inference
    answer, client = traced(sink, service, path, target=target)
    assert answer == [OUT, OUT]
    assert (client.name, model(client)) == (STREAM, common)
    assert servicer.contexts[-1] == f"00-{client.trace_id}-{client.span_id}-01"


@pytest.mark.parametrize("how", ["httpx", "requests", "aiohttp"])
def test_other_clients_over_http(how: str, service: Service, apis: ModelApis, sink: Sink) -> None:
    """A name may be quoted in the path; a scalar has no rows."""
    body = {"inputs": [{"name": "IN", "shape": [5], "datatype": "INT32", "data": [1] * 5}]}
    for path, shape, expected in (
        ("/v2/models/my%20trees/versions/2/infer", [5], {"ml.model.version": "2", "ml.batch.size": 5}),
        ("/v2/models/my%20trees/infer", [], {}),
    ):
        body["inputs"][0]["shape"] = shape
        trace_id, response = service.call("POST", f"/ask/{how}", params={"url": apis.url + path}, json=body)
        assert response.status_code == 200
        spans = sink.wait_for(lambda all_, id_=trace_id: any(s.trace_id == id_ and s.kind == CLIENT for s in all_))  # type: ignore[misc]
        client = next(one for one in spans if one.trace_id == trace_id and one.kind == CLIENT)
        assert model(client) == {"ml.model.name": "my trees", **expected}


BREAKABLE = parts("""
    instrumentation.clients.base: begin _asked_of_model
    stagetrace_contrib.geventhttpclient: begin_http http_status
    stagetrace_contrib.tritonclient: copy_context
    patches.grpc.client: _attributes_of_model _noting_models
    instrumentation.clients.kserve: attributes_of_http attributes_of_message _rows noting
""")


@pytest.mark.parametrize("part", BREAKABLE)
def test_an_injected_fault_changes_no_call_and_is_logged(
    part: str, service: Service, apis: ModelApis, inference: tuple[Inference, str]
) -> None:
    def ask() -> None:
        for path in ("http/infer", "http/async", "http-aio/infer", "grpc/infer", "grpc-aio/infer", "grpc/stream"):
            target = inference[1] if path.startswith("grpc") else apis.url.removeprefix("http://")
            answer = service.client.get(f"/triton/{path}", params={"target": target})
            assert (answer.status_code, answer.json()) == (200, [OUT, OUT] if "stream" in path else OUT)

    ask()  # a module that is first imported while a part is broken keeps that part
    before = len(service.log)
    assert service.client.get(f"/break/{part}").status_code == 200
    try:
        ask()
    finally:
        assert service.client.get("/mend").status_code == 200
    said = [line for line in service.log[before:].splitlines() if "injected fault" in line]
    assert said
    assert all(line.startswith("stagetrace:") for line in said), said
    assert len(said) == len(set(said))
