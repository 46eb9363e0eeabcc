"""A real Jaeger on top of our store: it writes to us over OTLP and reads by `jaeger.storage.v2`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from google.protobuf import descriptor_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

import backends
from backend.hostile.probes_bodies import trace_of, with_deep
from backend.processes import until
from backend.running import PROTOBUF, Up, ids, raw_call, request
from backend.test_like_jaeger import BASE, FAR, SENT, SERVICE, TRACES, ask, comparable, find
from conftest import need
from messages import leaves
from stagetrace.backend import storage_api
from stagetrace.backend.receiver_grpc import METHOD
from stagetrace.backend.storage_grpc import chunks
from stagetrace.store.jaeger import api_v3
from store.descriptors import jaegers_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def on_top(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[backends.Jaeger]:
    """Run a Jaeger whose storage is `up`, which has all of `SENT` through it."""
    need("jaeger")
    folder = tmp_path_factory.mktemp("on-top")
    with _jaeger_on(up, folder) as jaeger:
        raw_call(jaeger.otlp_grpc.removeprefix("http://"), METHOD, SENT.SerializeToString())
        until(lambda: all(httpx.get(f"{up.query}/traces/{one.hex()}").status_code == 200 for one in TRACES))
        yield jaeger


@contextmanager
def _jaeger_on(up: Up, folder: Path) -> Iterator[backends.Jaeger]:
    plain = "tls: {insecure: true}"
    grpc = f"{{endpoint: '{up.target('query_grpc_port')}', {plain}, writer: {{endpoint: '{up.target()}', {plain}}}}}"
    also = f"""extensions:
  jaeger_storage: {{backends: {{ours: {{grpc: {grpc}}}}}}}
  jaeger_query: {{storage: {{traces: ours}}}}
exporters: {{jaeger_storage_exporter: {{trace_storage: ours}}}}
"""
    with backends.run_jaeger(folder, "badger", also=also) as running:  # a storage that no further file configures
        yield running


def test_jaeger_reads_what_it_wrote(on_top: backends.Jaeger, up: Up) -> None:
    for trace_id in TRACES:
        question = api_v3.GetTraceRequest(trace_id=trace_id.hex(), raw_traces=True)
        theirs = comparable(ask(on_top, "GetTrace", question))
        assert theirs
        assert theirs == comparable(ask(up.as_jaeger, "GetTrace", question))


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"operation_name": "op1"},
        {"attributes": {"sla.breached": "true", "both": "yes"}},
        {"attributes": {"n": "7"}},
        {"duration": (50 * 10**6, 90 * 10**6)},
        {"low": BASE + 1, "high": BASE + FAR},
        {"service_name": "nobody"},
    ],
)
def test_jaeger_searches_in_it(on_top: backends.Jaeger, up: Up, query: dict[str, Any]) -> None:
    theirs, ours = (comparable(find(one, **query)) for one in (on_top, up.as_jaeger))
    assert theirs == ours
    assert bool(theirs) is ("service_name" not in query)


def test_jaegers_page_gets_its_lists(on_top: backends.Jaeger) -> None:
    """The routes that its web page asks."""
    assert SERVICE in httpx.get(f"{on_top.query_http}/api/services").json()["data"]
    operations = httpx.get(f"{on_top.query_http}/api/services/{SERVICE}/operations").json()["data"]
    assert {"op0", "op1", "op2", "GET /all"} <= set(operations)
    window = {"start": (BASE - FAR) // 1000, "end": (BASE + FAR) // 1000, "limit": 50}
    found = httpx.get(
        f"{on_top.query_http}/api/traces", params={"service": SERVICE, "tag": "both:yes", **window}
    ).json()
    assert len(found["data"]) == 12


def test_a_large_trace_comes_whole_through_small_messages(on_top: backends.Jaeger, up: Up) -> None:
    """Jaeger takes 4 MiB at a time from a storage."""
    trace = b"large trace 16 b"
    for _ in range(6):
        sent = request(*["x" * 1000] * 1000, service="large", trace=trace)
        raw_call(up.target(), METHOD, sent.SerializeToString())
    found = httpx.get(f"{on_top.query_http}/api/traces/{trace.hex()}", timeout=60).json()
    assert len(found["data"][0]["spans"]) == 6000


@pytest.mark.parametrize(("nesting", "depth"), [("arrays", 29), ("maps", 19)])
def test_the_deepest_value_that_is_taken_reaches_jaeger(
    on_top: backends.Jaeger, up: Up, nesting: str, depth: int
) -> None:
    """And its neighbours with it, while one level more is refused."""
    for levels, refused in ((depth, 0), (depth + 1, 1)):
        body = with_deep(nesting, levels, f"jaeger {nesting} {levels}")[PROTOBUF]
        response = ExportTraceServiceResponse.FromString(raw_call(up.target(), METHOD, body))
        assert response.partial_success.rejected_spans == refused
        question = api_v3.GetTraceRequest(trace_id=trace_of(f"jaeger {nesting} {levels}").hex(), raw_traces=True)
        names = sorted(span.name for part in ask(on_top, "GetTrace", question) for _, _, span in leaves(part))
        assert names == ["after", "before", "deep"][: 3 - refused]


def test_chunks_hold_every_span_once_and_are_small() -> None:
    sent = request(*[str(number) * 300 for number in range(6000)], trace=b"1" * 16)
    whole = TracesData.FromString(sent.SerializeToString())
    parts = list(chunks(whole))
    assert len(parts) > 1
    assert all(0 < part.ByteSize() < 4 << 20 for part in parts)
    assert [one for part in parts for _, _, one in leaves(part)] == [one for _, _, one in leaves(whole)]
    assert len(ids(sent)) == 6000
    assert {str(part.resource_spans[0].resource) for part in parts} == {str(whole.resource_spans[0].resource)}


def test_our_messages_have_the_fields_of_jaegers() -> None:
    theirs = jaegers_file(storage_api.PACKAGE, "TraceReader")
    fields = {one.name: {f.name: (f.number, f.label, f.type) for f in one.field} for one in theirs.message_type}
    for name in storage_api.MESSAGES:
        message: Any = storage_api._POOL.message(name)
        copy = descriptor_pb2.DescriptorProto()
        message.DESCRIPTOR.CopyToProto(copy)
        assert {f.name: (f.number, f.label, f.type) for f in copy.field} == fields[name]
    (service,) = theirs.service
    assert {storage_api.path(method.name) for method in service.method} == {
        storage_api.path(name) for name in ("GetTraces", "GetServices", "GetOperations", "FindTraces", "FindTraceIDs")
    }
