"""Hostile requests by the thousand over real sockets: no crash, bounded memory, an honest answer, good neighbours kept.

A million with STAGETRACE_HEAVY=1, another number with STAGETRACE_FUZZ_CASES.
"""

from __future__ import annotations

import gzip
import http.client
import os
import secrets
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from backend.mutator import PROTOBUF, Case, Mutator
from backend.running import Up, export, names_of, post, request, run_up
from heavy import fuzz_cases
from messages import put

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("services")

CASES = fuzz_cases(2_000)
SEED = int(os.environ.get("STAGETRACE_FUZZ_SEED") or 7)  # the same cases on every run, until another is asked for
PER_TRACE = 200
FINE = (200, 400, 413)
FINE_GRPC = (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Run a back end for these tests alone: its figures are looked at."""
    with run_up(tmp_path_factory.mktemp("fuzzed")) as running:
        yield running


@pytest.fixture
def mutator() -> Mutator:
    """Print the seed, which repeats a failure: STAGETRACE_FUZZ_SEED."""
    print(f"STAGETRACE_FUZZ_SEED={SEED}")  # noqa: T201
    good = request("a name", "\u00e4\u20ac", "")
    span = good.resource_spans[0].scope_spans[0].spans[0]
    put(span, {"i": -7, "d": 0.5, "b": b"\0\xff", "l": [{"k": True}]})
    span.events.add(name="e", time_unix_nano=2**63)
    span.links.add(trace_id=b"1" * 16, span_id=b"2" * 8)
    span.status.message = "m"
    return Mutator(SEED, good)


@pytest.mark.sample
@pytest.mark.heavier(f"{CASES // 2:,} hostile requests")
def test_hostile_requests_get_an_honest_answer(target: Up, mutator: Mutator) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", target.ready["http_port"], timeout=60)
    with grpc.insecure_channel(target.target()) as channel:
        for number in range(CASES // 2):
            case = mutator.case()
            if number % 4 == 0 and case.kind == PROTOBUF:
                _over_grpc(channel, case)
            else:
                _over_http(connection, case)
    connection.close()
    _is_well(target)


def _over_http(connection: http.client.HTTPConnection, case: Case) -> None:
    headers = {"content-type": case.kind, **({"content-encoding": case.encoding} if case.encoding else {})}
    answer = _answer(connection, case.body, headers)
    content = answer.read()
    assert answer.status in FINE, (answer.status, content, case)
    assert answer.headers["content-type"] == case.kind
    message: Any = ExportTraceServiceResponse() if answer.status == 200 else Status()
    if case.kind == PROTOBUF:
        message.ParseFromString(content)
    else:
        json_format.Parse(content, message)
    if answer.status != 200:
        assert message.message


def _answer(connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Send a request, on a new connection if the server has closed the kept one meanwhile; return its response."""
    try:
        connection.request("POST", "/v1/traces", body, headers)
        return connection.getresponse()
    except ConnectionError:
        connection.close()
    connection.request("POST", "/v1/traces", body, headers)
    return connection.getresponse()


def _over_grpc(channel: grpc.Channel, case: Case) -> None:
    try:
        ExportTraceServiceResponse.FromString(export(channel, case.body))
    except grpc.RpcError as error:
        code = error.code()
    else:
        code = grpc.StatusCode.OK
    assert code in FINE_GRPC, (code, case)


@pytest.mark.heavier(f"{CASES // 2:,} hostile spans")
def test_good_neighbours_of_a_hostile_span_are_kept(target: Up, mutator: Mutator) -> None:
    with grpc.insecure_channel(target.target()) as channel:
        for _ in range(CASES // 2 // PER_TRACE):
            trace = secrets.token_bytes(16)
            expected: list[str] = []
            for number in range(PER_TRACE):
                names = f"{number} first", f"{number} last"
                spans = request(*names, service="neighbours", trace=trace).resource_spans[0].scope_spans[0].spans
                body = mutator.span_among_good_ones(*(span.SerializeToString() for span in spans))
                answer = ExportTraceServiceResponse.FromString(export(channel, body))
                assert answer.partial_success.rejected_spans <= 1
                expected += names
            found = names_of(target, trace.hex())
            assert set(expected) <= set(found)
    _is_well(target)


def test_a_bomb_in_a_bomb_is_no_trace(target: Up) -> None:
    """Only one coding is undone, and so only one limit has to hold."""
    body = gzip.compress(gzip.compress(bytes(1 << 27), 1))
    assert post(target, body, encoding="gzip").status_code == 400
    assert post(target, body, encoding="gzip, gzip").status_code == 415


def _is_well(up: Up) -> None:
    """Check that it lives, holds nothing, was never large, and still takes good requests."""
    assert up.process.poll() is None
    assert up.metric("stagetrace_requests_in_flight_bytes") == 0
    assert up.metric('stagetrace_refused_requests_total{reason="internal"}') == 0
    assert up.metric('stagetrace_refused_requests_total{reason="store"}') == 0
    assert up.peak_kib() < 1_000_000
    sent = request("well", trace=(trace := secrets.token_bytes(16)))
    post(up, sent.SerializeToString()).raise_for_status()
    assert names_of(up, trace.hex()) == ["well"]
