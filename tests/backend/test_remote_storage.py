"""A real Jaeger on top of our store: it writes to us over OTLP and reads by `jaeger.storage.v2`."""

from __future__ import annotations

import re
import time
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from google.protobuf import descriptor_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

import backends
from backend.running import Up, ids, raw_call, request
from backend.test_like_jaeger import BASE, FAR, SENT, SERVICE, TRACES, ask, find, leaves
from conftest import need
from stagetrace.backend import storage_api
from stagetrace.backend.receiver_grpc import METHOD
from stagetrace.backend.storage_grpc import chunks
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GZIP = re.compile(rb"\x1f\x8b\x08\x00\x00\x00\x00\x00[\x00\x02\x04]\xff")


@pytest.fixture(scope="module")
def on_top(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[backends.Jaeger]:
    """Run a Jaeger whose storage is `up`, which has all of `SENT` through it."""
    need("jaeger")
    folder = tmp_path_factory.mktemp("on-top")
    with _jaeger_on(up, folder) as jaeger:
        raw_call(jaeger.otlp_grpc.removeprefix("http://"), METHOD, SENT.SerializeToString())
        deadline = time.monotonic() + 30
        while any(httpx.get(f"{up.query}/traces/{one.hex()}").status_code != 200 for one in TRACES):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield jaeger


@contextmanager
def _jaeger_on(up: Up, folder: Path) -> Iterator[backends.Jaeger]:
    plain = "tls: {insecure: true}"
    grpc = f"{{endpoint: '{up.target('query_grpc_port')}', {plain}, writer: {{endpoint: '{up.target()}', {plain}}}}}"
    over = folder / "over.yaml"
    over.write_text(
        f"""extensions:
  jaeger_storage: {{backends: {{ours: {{grpc: {grpc}}}}}}}
  jaeger_query: {{storage: {{traces: ours}}}}
exporters: {{jaeger_storage_exporter: {{trace_storage: ours}}}}
"""
    )
    original = backends._run

    def run(name: str, _files: list[str], *rest: Any) -> Any:
        return original(name, ["jaeger.yaml", str(over)], *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_run", run)
        with backends.run_jaeger(folder) as running:
            yield running


def test_jaeger_reads_what_it_wrote(on_top: backends.Jaeger, up: Up) -> None:
    for trace_id in TRACES:
        question = api_v3.GetTraceRequest(trace_id=trace_id.hex(), raw_traces=True)
        theirs = leaves(ask(on_top, "GetTrace", question))
        assert theirs
        assert theirs == leaves(ask(up.as_jaeger, "GetTrace", question))


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
    theirs, ours = (leaves(find(one, **query)) for one in (on_top, up.as_jaeger))
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


def test_chunks_hold_every_span_once_and_are_small() -> None:
    sent = request(*[str(number) * 300 for number in range(6000)], trace=b"1" * 16)
    whole = TracesData.FromString(sent.SerializeToString())
    parts = list(chunks(whole))
    assert len(parts) > 1
    assert all(0 < part.ByteSize() < 4 << 20 for part in parts)
    assert [one for part in parts for one in _span_ids(part)] == _span_ids(whole)
    assert len(ids(sent)) == 6000
    assert {str(part.resource_spans[0].resource) for part in parts} == {str(whole.resource_spans[0].resource)}


def _span_ids(data: Any) -> list[bytes]:
    return [span.span_id for one in data.resource_spans for scope in one.scope_spans for span in scope.spans]


def test_our_messages_have_the_fields_of_jaegers() -> None:
    need("jaeger")
    content = backends.binary("jaeger").read_bytes()
    theirs = _descriptor(content)
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


def _descriptor(content: bytes) -> descriptor_pb2.FileDescriptorProto:
    """Return the file of the storage's reader out of Jaeger's binary, as in tests/store/test_jaeger_api.py."""
    for start in (match.start() for match in _GZIP.finditer(content)):
        try:
            raw = zlib.decompressobj(wbits=31).decompress(content[start : start + (1 << 20)])
        except zlib.error:
            continue
        if storage_api.PACKAGE.encode() in raw and b"TraceReader" in raw:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            if file.package == storage_api.PACKAGE and file.service:
                return file
    raise AssertionError(f"no descriptor of {storage_api.PACKAGE} in Jaeger's binary")
