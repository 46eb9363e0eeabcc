"""The counter `sla.requests` over OTLP: what is kept of metrics, over real sockets, and what is refused."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from backend.running import JSON, PROTOBUF, run_up
from messages import put
from stagetrace.backend.receivers import METRICS_METHOD
from stagetrace.store.local.counts import read

if TYPE_CHECKING:
    from backend.running import Up

pytestmark = pytest.mark.usefixtures("services")

ATTRIBUTES = {"sla.objective": "* within 1s", "sla.verdict": "good", "http.route": "/x"}


def request(service: str, value: Any = 7, *, temporality: int = 2, name: str = "sla.requests", **changes: Any) -> Any:
    """Return an export of one data point."""
    message = ExportMetricsServiceRequest()
    resource = message.resource_metrics.add()
    put(resource.resource, {"service.name": service})
    metric = resource.scope_metrics.add().metrics.add(name=name)
    metric.sum.is_monotonic = changes.pop("is_monotonic", True)
    metric.sum.aggregation_temporality = temporality  # type: ignore[assignment]
    now = time.time_ns()
    point = metric.sum.data_points.add(
        start_time_unix_nano=changes.pop("start", now - 60_000_000_000), time_unix_nano=changes.pop("time", now)
    )
    setattr(point, "as_double" if isinstance(value, float) else "as_int", value)
    point.flags = changes.pop("flags", 0)
    put(point, {**ATTRIBUTES, **changes.pop("attributes", {})})
    return message


def url(up: Up) -> str:
    return f"{up.url('http_port')}/v1/metrics"


def post(up: Up, body: bytes, kind: str = PROTOBUF) -> httpx.Response:
    return httpx.post(url(up), content=body, headers={"content-type": kind}, timeout=60)


def stored(up: Up, service: str) -> dict[tuple[str, str, str], int] | None:
    folder = Path(up.ready["data"])
    return next((one.counts for one in read(folder, 0, 2**62) if one.service == service), None)


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_over_http_in_either_form(up: Up, kind: str) -> None:
    service = f"http-{kind}"
    message = request(service)
    body = message.SerializeToString() if kind == PROTOBUF else json_format.MessageToJson(message).encode()
    answer = post(up, body, kind)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    assert answer.content in (b"", b"{}")
    assert stored(up, service) == {("/x", "* within 1s", "good"): 7}


def test_points_that_differ_in_other_attributes_are_summed_by_route_objective_and_verdict(up: Up) -> None:
    message = request("stages", 7, attributes={"sla.verdict": "breach", "sla.breach.stage": "queue"})
    more = request("stages", 5, attributes={"sla.verdict": "breach", "sla.breach.stage": "x" * 5_000}, start=1)
    points = message.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    points.append(more.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0])
    points[1].start_time_unix_nano = points[0].start_time_unix_nano
    assert post(up, message.SerializeToString()).status_code == 200
    assert stored(up, "stages") == {("/x", "* within 1s", "breach"): 12}


def test_an_overflow_is_kept_apart_from_requests_without_a_route(up: Up) -> None:
    message = request("beyond", 7, attributes={"otel.metric.overflow": True, "http.route": ""})
    assert post(up, message.SerializeToString()).status_code == 200
    assert stored(up, "beyond") == {("otel.metric.overflow", "* within 1s", "good"): 7}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_official_exporters_are_understood(up: Up, protocol: str) -> None:
    exporter: Any = (
        GrpcExporter(f"http://{up.target()}", insecure=True) if protocol == "grpc" else HttpExporter(url(up))
    )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider([reader], Resource({"service.name": f"official-{protocol}"}), shutdown_on_exit=False)
    counter = provider.get_meter("stagetrace").create_counter("sla.requests")
    counter.add(3, ATTRIBUTES)
    assert provider.force_flush()
    counter.add(2, ATTRIBUTES)
    provider.shutdown()
    assert stored(up, f"official-{protocol}") == {("/x", "* within 1s", "good"): 5}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "http.server.request.duration"},
        {"temporality": 0},
        {"is_monotonic": False},
        {"value": -1},
        {"value": 1.5},
        {"value": float("nan")},
        {"value": float("inf")},
        {"time": 0},
        {"time": 2**64 - 1, "start": 1},
        {"start": 2**63},
        {"start": 0},
        {"flags": 1},
        {"attributes": {"sla.verdict": 3}},
        {"attributes": {"http.route": 3}},
    ],
)
def test_what_is_not_kept_is_reported_and_counted(up: Up, change: dict[str, Any]) -> None:
    before = up.metric('stagetrace_ignored_data_points_total{transport="http"}')
    message = request("left", **change)
    answer = post(up, message.SerializeToString())
    assert answer.status_code == 200
    response = ExportMetricsServiceResponse.FromString(answer.content)
    assert response.partial_success.rejected_data_points == 1
    assert "sla.requests" in response.partial_success.error_message
    assert up.metric('stagetrace_ignored_data_points_total{transport="http"}') == before + 1
    assert stored(up, "left") is None


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"\xff\xff\xff", PROTOBUF, 400),
        (b"{", JSON, 400),
        (b"\xff", JSON, 400),
        (b'{"resourceMetrics": 3}', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"", "text/plain", 415),
    ],
)
def test_what_is_no_export_is_refused_as_spans_are(up: Up, body: bytes, kind: str, status: int) -> None:
    answer = post(up, body, kind)
    assert answer.status_code == status
    assert post(up, request("after").SerializeToString()).status_code == 200


def test_grpc_refuses_alike(up: Up) -> None:
    with grpc.insecure_channel(up.target()) as channel:
        call: Any = channel.unary_unary(METRICS_METHOD, None, None)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert call(request("raw").SerializeToString(), timeout=30) == b""
    assert stored(up, "raw") == {("/x", "* within 1s", "good"): 7}


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    with run_up(tmp_path) as first:
        for value in range(1, 6):
            assert post(first, request("killed", value, start=1, time=value + 1).SerializeToString()).status_code == 200
        first.stop(signal.SIGKILL)
    with run_up(tmp_path) as second:
        assert post(second, request("killed", 9, start=1, time=9).SerializeToString()).status_code == 200
        assert stored(second, "killed") == {("/x", "* within 1s", "good"): 9}
