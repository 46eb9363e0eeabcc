"""Nested values and messages of nothing: what cannot be given back is refused, work is bounded, neighbours stay."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from backend.hostile import probes_bodies as bodies
from backend.hostile.probes_bodies import DEPTHS, MIB, trace_of, with_deep
from backend.processes import WITHIN_S, until
from backend.running import JSON, PROTOBUF, export, names_of, post, raw_call, request, run_up
from stagetrace.backend.receivers import METRICS_METHOD
from stagetrace.backend.refusal import INTERNAL, MALFORMED, Refused, short, status
from stagetrace.otlp.decode.json import encode
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from pathlib import Path

    from backend.running import Up

# --- Nested values and messages of nothing: what cannot be given back is refused, work is bounded, neighbours stay.

pytestmark = pytest.mark.usefixtures("services")


def refused(up: Up, body: bytes, kind: str) -> tuple[int, str]:
    """Send a body by `kind`, a content type or "grpc"; return how many spans were refused, and why."""
    if kind == "grpc":
        with grpc.insecure_channel(up.target()) as channel:
            response = ExportTraceServiceResponse.FromString(export(channel, body)).partial_success
        return response.rejected_spans, response.error_message
    answer = post(up, body, kind).raise_for_status()
    if kind == PROTOBUF:
        response = ExportTraceServiceResponse.FromString(answer.content).partial_success
        return response.rejected_spans, response.error_message
    partial = answer.json().get("partialSuccess", {})
    return int(partial.get("rejectedSpans", 0)), partial.get("errorMessage", "")


@pytest.mark.parametrize("size", [0, MIB], ids=["below 1 MiB", "above 1 MiB"])
@pytest.mark.parametrize("kind", ["grpc", PROTOBUF, JSON])
def test_a_span_that_nests_too_deep_is_refused_and_its_neighbours_are_kept(up: Up, kind: str, size: int) -> None:
    form = JSON if kind == JSON else PROTOBUF
    for depth in DEPTHS:
        service = f"{depth} {size} {kind}"
        count, why = refused(up, with_deep("arrays", depth, service, size=size)[form], kind)
        assert count == 1, depth
        assert "attributes nest too deep" in why
    assert names_of(up, trace_of(f"48 {size} {kind}").hex()) == ["after", "before"]


@pytest.mark.parametrize(("where", "count"), [("event", 1), ("link", 1), ("scope", 3), ("resource", 3)])
@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_what_nests_too_deep_around_a_span_is_refused_with_it(up: Up, kind: str, where: str, count: int) -> None:
    for nesting, depth in (("arrays", 31), ("maps", 21), ("arrays", 49)):
        assert refused(up, with_deep(nesting, depth, f"{where} {kind}", where=where)[kind], kind)[0] == count


BOMBS: dict[str, tuple[bytes, str, str]] = {
    "resources of nothing": (bodies.empty_resources(30 * MIB), PROTOBUF, "100000 resources"),
    "resources of nothing in JSON": (bodies.empty_resources_json(5 * MIB), JSON, "500000 values"),
    "fewer of these": (bodies.empty_resources_json(200_000), JSON, "100000 resources"),
    "JSON of 17 MiB": (bodies.zipped(b" ", 17 * MIB), JSON, "16777216 bytes"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_messages_of_nothing_are_refused_before_they_are_read(up: Up, name: str) -> None:
    """A minute of work each, and a gigabyte in JSON, for a few kilobytes."""
    body, kind, words = BOMBS[name]
    answer = post(up, body, kind, "gzip")
    assert answer.status_code == 413
    assert words in answer.text


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_metrics_of_nothing_are_refused_before_they_are_read(up: Up, kind: str) -> None:
    body = bodies.empty_resources(MIB) if kind == PROTOBUF else bodies.empty_resources_json(MIB)
    headers = {"content-type": kind, "content-encoding": "gzip"}
    answer = httpx.post(f"{up.url('http_port')}/v1/metrics", content=body, headers=headers, timeout=60)
    assert answer.status_code == 413
    with grpc.insecure_channel(up.target()) as channel, pytest.raises(grpc.RpcError) as caught:
        ExportMetricsServiceResponse.FromString(raw_call(channel, METRICS_METHOD, bodies.empty_resources(4 * MIB)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_a_resource_or_scope_without_spans_counts_as_refused(up: Up, kind: str) -> None:
    sent = request("one", service="with empties", trace=(trace := trace_of(kind)))
    sent.resource_spans.add()
    sent.resource_spans.add().scope_spans.add()
    sent.resource_spans.add().scope_spans.add().scope.name = "a scope of thirty bytes or more"
    body = sent.SerializeToString() if kind == PROTOBUF else encode(sent).encode()
    assert refused(up, body, kind) == (3, "3 resources or scopes have no span")
    assert names_of(up, trace.hex()) == ["one"]


def test_work_ends_with_the_back_end(tmp_path: Path) -> None:
    """The request would take several times the 10 s that one may; its sender is asked to send it again."""
    with run_up(tmp_path) as up:
        answers: list[httpx.Response] = []
        body = bodies.slow_spans(32_000)
        thread = threading.Thread(target=lambda: answers.append(post(up, body, PROTOBUF, "gzip")))
        thread.start()
        until(lambda: up.metric("stagetrace_requests_in_flight_bytes") > 32 * MIB)
        assert up.stop(signal.SIGTERM) == 0
        thread.join(WITHIN_S)
        assert [(one.status_code, one.headers["retry-after"]) for one in answers] == [(503, "1")]


def test_many_members_of_gzip_cost_no_more_than_their_bytes(up: Up) -> None:
    answer = post(up, bodies.gzip_members(MIB), PROTOBUF, "gzip")
    assert (answer.status_code, answer.content) == (200, b"")


# --- What a refusal quotes of its request: little, printable, and never more than the trailers of gRPC take.


LONG = "\x1b]0;x\x07\u202e" + "\U0001f600" * 20_000
MOST = 450  # characters
TRAILERS = 8192  # bytes that clients take


@pytest.mark.parametrize("name", ["query.duration_min", "query.attributes", "query.num_traces"])
def test_a_query_over_http_is_quoted_briefly(up: Up, name: str) -> None:
    now = "2026-03-01T12:00:00Z"
    given = {"query.start_time_min": now, "query.start_time_max": now, name: LONG[:1000]}
    response = httpx.get(f"{up.query}/traces", params=given)
    message = response.json()["error"]["message"]
    assert response.status_code == 400
    assert len(message) <= MOST
    assert message.replace("\n", "").isprintable()


def test_a_query_over_grpc_is_quoted_briefly(up: Up) -> None:
    body = api_v3.GetTraceRequest(trace_id=LONG).SerializeToString()
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(up.target("query_grpc_port"), api_v3.path("GetTrace"), body)
    assert refused.value.code() is grpc.StatusCode.UNKNOWN
    details = refused.value.details() or ""
    assert 100 < len(details) <= MOST
    assert details.isprintable()


@pytest.mark.parametrize(
    "body", [{LONG: 1}, {"resourceSpans": [{LONG: 1}]}, {"resourceSpans": [{"scopeSpans": [{"spans": [{LONG: 1}]}]}]}]
)
def test_an_export_is_quoted_briefly(up: Up, body: object) -> None:
    found = post(up, json.dumps(body).encode(), JSON).json()
    message = found.get("message") or found.get("partialSuccess", {}).get("errorMessage", "")
    assert len(message) <= MOST


def test_trailers_hold_the_longest_message() -> None:
    refused = Refused(MALFORMED, LONG.replace("\x1b", ""))
    in_message = len(refused.message.encode()) * len("%F0")
    assert in_message + len(status(refused).SerializeToString()) * 4 // 3 <= TRAILERS
    assert short("a" * 400) == "a" * 400
    assert Refused(INTERNAL, "the back end failed").message == "the back end failed"
