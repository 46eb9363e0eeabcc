"""`stagetrace bench grpc://...` against a real gRPC server: the Collector's service, whose descriptor is at hand."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from cli.running import answered, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

benched = partial(answered, "bench", code=1)
METHOD = "opentelemetry.proto.collector.trace.v1.TraceService/Export"
QUICK = ("--rate", "40", "--duration", "0.5s", "--warmup", "0s")


class Service(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.urls: list[str] = []
        self.metadata: list[dict[str, Any]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 -- named by the protocol
        self.urls += [one.schema_url for one in request.resource_spans]
        self.metadata.append(dict(context.invocation_metadata()))
        if request.resource_spans[0].schema_url == "abort":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "come again")
        if request.resource_spans[0].schema_url == "sleep":
            time.sleep(1.5)
        return trace_service_pb2.ExportTraceServiceResponse()


def _served(*, reflected: bool) -> Iterator[tuple[str, Service]]:
    server, service = grpc.server(ThreadPoolExecutor(8)), Service()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    if reflected:
        names = [METHOD.partition("/")[0], reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}/{METHOD}", service
    server.stop(None).wait()


@pytest.fixture
def served() -> Iterator[tuple[str, Service]]:
    yield from _served(reflected=True)


@pytest.fixture
def unreflected() -> Iterator[tuple[str, Service]]:
    yield from _served(reflected=False)


def test_messages_are_given_as_json_and_made_of_the_servers_reflection(
    served: tuple[str, Service], tmp_path: Path
) -> None:
    url, service = served
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text("\n".join(json.dumps({"resourceSpans": [{"schemaUrl": name}]}) for name in "ab"))
    made = benched(url, *QUICK, "--bodies", str(bodies), "-H", "X-Key: v")
    assert (made["requests"], made["failures"]) == (20, {})
    assert service.urls == ["a", "b"] * 10
    assert {one["x-key"] for one in service.metadata} == {"v"}
    assert len({one["traceparent"] for one in service.metadata}) == 20
    assert made["quantiles"]["p50"] > 0


def test_a_status_is_a_failure_and_so_is_a_deadline(served: tuple[str, Service]) -> None:
    url, _ = served
    aborted = benched(url, *QUICK, "--body", '{"resourceSpans": [{"schemaUrl": "abort"}]}')
    assert aborted["failures"] == {"status RESOURCE_EXHAUSTED": 20}
    late = ("--rate", "4", "--duration", "0.5s", "--warmup", "0s", "--timeout", "200ms")
    slept = benched(url, *late, "--body", '{"resourceSpans": [{"schemaUrl": "sleep"}]}')
    assert slept["failures"] == {"timeout": 2}


def test_a_serialised_message_needs_no_reflection(unreflected: tuple[str, Service], tmp_path: Path) -> None:
    url, service = unreflected
    message = trace_service_pb2.ExportTraceServiceRequest()
    message.resource_spans.add(schema_url="of a file")
    file = tmp_path / "message.pb"
    file.write_bytes(message.SerializeToString())
    made = benched(url, *QUICK, "--message-file", str(file))
    assert (made["requests"], made["failures"]) == (20, {})
    assert set(service.urls) == {"of a file"}


def test_what_cannot_be_called_is_reported(served: tuple[str, Service], unreflected: tuple[str, Service]) -> None:
    cases = {
        (unreflected[0], "--body", "{}"): "give the serialised message: --message-file FILE",
        (served[0], "--body", '{"nope": 1}'): "ExportTraceServiceRequest",
        (served[0].replace("/Export", "/Import"), "--body", "{}"): "the server has no method",
        (served[0].replace("TraceService/", "NoService/"), "--body", "{}"): "the server has no method",
        (served[0], "--insecure"): "--insecure, --expect and --method are of HTTP",
        (served[0].replace("grpc:", "http:"), "--message-file", "x"): "--message-file is of gRPC",
        (served[0], "--body", "@/no/such/file"): "cannot read /no/such/file",
    }
    for arguments, said in cases.items():
        assert said in refused("bench", *arguments)
