"""Run the real Collector with the files of collector-config/ that lead to ClickHouse, and send spans to it."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from backend.processes import until
from backends import LOOPBACK, Collector, _run, free_port
from messages import add_scope, put
from page.data import demo
from stagetrace.store.local.store import LocalStore
from stagetrace.store.rows import request_of, spans_of
from store.questions import said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clickhouse import ClickHouse

# Not lz4: the double of ClickHouse cannot decompress its blocks.
AS_THE_DOUBLE_HAS_IT = json.dumps({"exporters": {"clickhouse": {"compress": "none"}}})
SHORT = ["clickhouse.yaml"]
AGENT = ["agent.yaml"]
GATEWAY = ["clickhouse.yaml", "gateway.yaml"]


@contextmanager
def run_part(
    folder: Path, files: list[str], settings: dict[str, str], *, again: Collector | None = None
) -> Iterator[Collector]:
    """Run a Collector until the block ends; its queue stays in `folder` for the next, `again` on the ports of one."""
    grpc, http, health = (free_port() for _ in range(3))
    if again:
        grpc, http = (int(one.rpartition(":")[2]) for one in (again.otlp_grpc, again.otlp_http))
    ports = {"COLLECTOR_OTLP_GRPC_PORT": grpc, "COLLECTOR_OTLP_HTTP_PORT": http, "COLLECTOR_HEALTH_PORT": health}
    settings = {"COLLECTOR_QUEUE_DIR": str(folder / "queue")} | settings | {key: str(ports[key]) for key in ports}
    also = AS_THE_DOUBLE_HAS_IT if "clickhouse.yaml" in files else ""
    with _run("otelcol", files, settings, folder, (health, "/"), also) as process:
        yield Collector(f"http://{LOOPBACK}:{grpc}", f"http://{LOOPBACK}:{http}", "", process.pid)


def into(server: ClickHouse) -> dict[str, str]:
    """Return the settings of a Collector that writes there; quickly, and for ever, as test data may be old."""
    return {"CLICKHOUSE_ENDPOINT": server.http, "CLICKHOUSE_FLUSH_TIMEOUT": "200ms", "CLICKHOUSE_TTL": "0s"}


def tree(trace: int, *, stages: int = 3, service: str = "shop", status: int = 0, **entry: Any) -> Any:
    """Return a message with one trace: an entry span with these attributes, and its stages."""
    message = ExportTraceServiceRequest()
    scope = add_scope(message, service)
    start = time.time_ns()
    for number in range(stages + 1):
        span = scope.spans.add(
            trace_id=trace.to_bytes(16, "big"),
            span_id=(trace * 100 + number + 1).to_bytes(8, "big"),
            parent_span_id=(trace * 100 + 1).to_bytes(8, "big") if number else b"",
            name="model" if number else "POST /rank",
            kind=1 if number else 2,
            start_time_unix_nano=start + number,
            end_time_unix_nano=start + 1_000_000,
        )
        if number == 0:
            put(span, entry)
            span.status.code = status
    return message


def send(to: Collector, *messages: Any) -> None:
    """Send messages; return once each is acknowledged."""
    for message in messages:
        content = message.SerializeToString()
        headers = {"content-type": "application/x-protobuf"}
        httpx.post(f"{to.otlp_http}/v1/traces", content=content, headers=headers, timeout=30).raise_for_status()


def count(to: Collector, service: str, requests: int) -> None:
    """Send a counter of requests."""
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(to.otlp_grpc, insecure=True))
    meters = MeterProvider([reader], Resource.create({"service.name": service}), shutdown_on_exit=False)
    meters.get_meter("scope").create_counter("sla.requests").add(requests, {"sla.verdict": "breached"})
    meters.shutdown()


def counted(server: ClickHouse, service: str) -> list[float]:
    """Return the values of that counter that are stored."""
    query = (
        "SELECT Value FROM otel_metrics_sum WHERE MetricName = 'sla.requests' AND IsMonotonic "
        "AND Attributes['sla.verdict'] = 'breached' AND ServiceName = {service:String}"
    )
    return [row["Value"] for row in server.rows(query, param_service=service)]


def answers_agree(agent: Collector, server: ClickHouse, folder: Path) -> None:
    """Send what the demo recorded, and a part of it twice; compare answers with those of a local store in `folder`."""
    (message,) = demo()
    spans = list(spans_of(message))
    messages = [request_of(spans[at : at + 500]) for at in range(0, len(spans), 500)]
    with LocalStore.open(folder) as opened:
        for one in messages:
            opened.append(one.SerializeToString())
    send(agent, *messages, *messages[:2])
    until(lambda: _rows(server) >= len(spans) + 1000)
    for name in ("slo", "causes", "report", "breaches", "why"):
        assert said(name, server.url) == said(name, str(folder)), name


def _rows(server: ClickHouse) -> int:
    found = server.rows("SELECT total_rows FROM system.tables WHERE database = 'otel' AND name = 'otel_traces'")
    return int(found[0]["total_rows"]) if found else 0
