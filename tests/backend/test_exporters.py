"""Other people's exporters: Python's, the Collector's (Go) and JavaScript's; and a traced service, end to end."""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
from opentelemetry.proto.trace.v1.trace_pb2 import Status, TracesData
from opentelemetry.sdk.trace.export import SpanExportResult

import backends
from backend.processes import until
from backend.running import PROTOBUF, Up, environment, names_of, request, stored_spans
from cli.running import answered, printed
from conftest import need
from missing import missing
from services import recorded, run_service
from stagetrace.store.jaeger.client import JaegerClient
from store.feed import MS, Made, entry, readable, recent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("services")

JS = backends.CACHE / "js"
PACKAGES = [
    "@opentelemetry/api",
    "@opentelemetry/resources",
    "@opentelemetry/sdk-trace-base",
    *(f"@opentelemetry/exporter-trace-otlp-{name}" for name in ("grpc", "http", "proto")),
]


def _family() -> list[Made]:
    made = entry("exported", recent())
    return [made, made.stage("inference", made.start, made.end), made.child("detail", made.start + MS, made.end)]


@pytest.mark.parametrize(
    "exporter",
    [
        pytest.param(lambda up: Grpc(endpoint=up.as_jaeger.otlp_grpc, insecure=True), marks=pytest.mark.smoke),
        pytest.param(lambda up: Http(endpoint=up.traces), marks=pytest.mark.smoke),
        lambda up: Http(endpoint=up.traces, compression=Compression.Gzip),
        lambda up: Http(endpoint=up.traces, compression=Compression.Deflate),
    ],
    ids=["grpc", "http", "http gzip", "http deflate"],
)
def test_pythons_exporters_deliver(up: Up, exporter: Any) -> None:
    made = _family()
    sending = exporter(up)
    try:
        assert sending.export([readable(one) for one in made]) is SpanExportResult.SUCCESS
    finally:
        sending.shutdown()
    assert names_of(up, made[0].trace_id) == sorted(one.name for one in made)


# The Collector's exporter, its settings beside the endpoint, and whether what arrives is smaller than the request
# (True), about as large (None) or larger (False). The first is collector-config/collector.yaml as delivered.
COLLECTED = {
    "grpc gzip": ("otlp_grpc", {"compression": "gzip"}, True),
    "grpc": ("otlp_grpc", {"compression": "none"}, None),
    "http gzip": ("otlp_http", {"compression": "gzip"}, True),
    "http zstd": ("otlp_http", {"compression": "zstd"}, True),
    "http deflate": ("otlp_http", {"compression": "deflate"}, True),
    "http": ("otlp_http", {"compression": "none"}, None),
    "http json": ("otlp_http", {"compression": "none", "encoding": "json"}, False),
    "http json gzip": ("otlp_http", {"compression": "gzip", "encoding": "json"}, True),
    "http json zstd": ("otlp_http", {"compression": "zstd", "encoding": "json"}, True),
}


@contextmanager
def collector_for(up: Up, folder: Path, exporter: str, settings: dict[str, str]) -> Iterator[backends.Collector]:
    """Run the real Collector with this one exporter, its output pointed at `up`."""
    endpoint = {"endpoint": up.as_jaeger.otlp_http} if exporter == "otlp_http" else {}
    pipeline = {"pipelines": {"traces": {"exporters": [exporter, "spanmetrics"]}}}
    also = json.dumps({"exporters": {exporter: {**endpoint, **settings}}, "service": pipeline})
    with backends.run_collector(folder, up.as_jaeger, also=also) as running:
        yield running


@pytest.mark.parametrize("name", COLLECTED)
def test_the_real_collector_delivers(up: Up, tmp_path: Path, name: str) -> None:
    need("otelcol")
    exporter, settings, is_smaller = COLLECTED[name]
    received = f'stagetrace_received_bytes_total{{transport="{exporter[5:]}"}}'
    trace = secrets.token_bytes(16)
    sent = request(*(f"span {number}" for number in range(300)), service="collected", trace=trace)
    body, before = sent.SerializeToString(), up.metric(received)
    with collector_for(up, tmp_path, exporter, settings) as collector:
        kind = {"content-type": PROTOBUF}
        httpx.post(f"{collector.otlp_http}/v1/traces", content=body, headers=kind).raise_for_status()
        until(lambda: len(names_of(up, trace.hex())) >= 300)
    assert _stored(up, trace) == _spans(sent.resource_spans)
    size = (up.metric(received) - before) / len(body)
    assert {True: size < 0.9, None: 0.9 <= size <= 1.1, False: size > 1.1}[is_smaller], size


def _stored(up: Up, trace: bytes) -> dict[str, Any]:
    """Return the spans of a trace as they are stored, by name."""
    with JaegerClient("127.0.0.1", up.ready["query_grpc_port"]) as client:
        (found,) = client.get_trace(trace.hex())
    for span in (spans := _spans(TracesData.FromString(found).resource_spans)).values():
        if span.status == Status():
            span.ClearField("status")  # the Collector writes one that says nothing
    return spans


def _spans(resource_spans: Any) -> dict[str, Any]:
    return {span.name: span for one in resource_spans for scope in one.scope_spans for span in scope.spans}


@pytest.fixture(scope="session")
def javascript() -> Path:
    """Return the folder with the JavaScript exporters, installed once; skip without node, but not under CI."""
    lacking = [name for name in ("node", "npm") if shutil.which(name) is None]
    if lacking:
        missing(f"{' and '.join(lacking)}, which the JavaScript exporters need, are not installed")
    JS.mkdir(parents=True, exist_ok=True)
    with (JS / "lock").open("w") as lock:  # other processes of pytest may install at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = JS / "installed"
        if not installed.exists() or installed.read_text() != " ".join(PACKAGES):
            (JS / "package.json").write_text('{"private": true}')
            subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES],
                cwd=JS,
                check=True,
                timeout=300,
            )
            installed.write_text(" ".join(PACKAGES))
    return JS


@pytest.mark.parametrize(("name", "compression"), [("grpc", ""), ("http", ""), ("http", "gzip"), ("proto", "gzip")])
def test_javascripts_exporters_deliver(up: Up, javascript: Path, name: str, compression: str) -> None:
    """`http` is OTLP JSON."""
    trace_id = secrets.token_hex(16)
    url = up.as_jaeger.otlp_grpc if name == "grpc" else up.traces
    script = Path(__file__).parent / "send.mjs"
    command = ["node", str(script), str(javascript), name, url, trace_id, *filter(None, [compression])]
    subprocess.run(command, env=environment(), check=True, timeout=60)
    until(lambda: names_of(up, trace_id))
    (span,) = stored_spans(up, trace_id)
    values = {item["key"]: item["value"] for item in span["attributes"]}
    assert (span["name"], span["kind"], span["spanId"]) == ("from JavaScript", 2, "00f067aa0ba902b7")
    assert (span["startTimeUnixNano"], span["endTimeUnixNano"]) == ("1700000000123456789", "1700000001000000005")
    assert span["status"] == {"code": 2, "message": "it broke"}
    assert span["events"][0]["timeUnixNano"] == "1700000000200000000"
    assert values["text"] == {"stringValue": "\u00e4\u20ac\U0001f600"}
    assert values["list"] == {"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}}


@pytest.mark.smoke
def test_a_traced_service_is_answered_for(up: Up, tmp_path: Path) -> None:
    """The whole way: a service under STAGETRACE=1 sends here, and `breaches` and `trace` tell of it."""
    more = {"OTEL_SERVICE_NAME": "whole-way", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    env = recorded(up.as_jaeger.otlp_grpc, "POST /predict within 1us; * within 10s", **more)
    with run_service(tmp_path, env=env) as service:
        trace_id, answer = service.call("POST", "/predict", json={"measures": [5.1, 3.5, 1.4, 0.2]})
        assert answer.status_code == 200, answer.text
        until(lambda: len(names_of(up, trace_id)) >= 3)
    (breach,) = answered("breaches", "--each", "--store", up.as_jaeger.url, "--service", "whole-way")["breaches"]
    assert (breach["trace_id"], breach["route"]) == (trace_id, "/predict")
    assert "inference" in breach["stages"]
    assert "inference" in printed("trace", trace_id, "--store", up.as_jaeger.url)
