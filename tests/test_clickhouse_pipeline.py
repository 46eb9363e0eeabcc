"""The ways to ClickHouse of collector-config/, with the real Collector, its own exporter, and a double of the server.

The double (chdb_server.py) has the real engine. What Kafka adds is in test_kafka_pipeline.py.
"""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode

from backend.processes import until
from backends import BackendFailed
from clickhouse import ClickHouse, run_clickhouse
from pipeline import AGENT, GATEWAY, SHORT, answers_agree, count, counted, into, run_part, send, tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("backends")
OF_SERVICE = "FROM otel_traces WHERE ServiceName = {service:String}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    with run_clickhouse(tmp_path_factory.mktemp("clickhouse")) as running:
        yield running


def stored(server: ClickHouse, service: str) -> dict[str, int]:
    """Return how many rows of a service are stored, and how many spans; none while there is no table."""
    if not server.rows("SELECT name FROM system.tables WHERE database = 'otel' AND name = 'otel_traces'"):
        return {"spans": 0, "different": 0}
    counts = f"SELECT count() AS spans, uniqExact(TraceId, SpanId) AS different {OF_SERVICE}"
    return server.rows(counts, param_service=service)[0]


def arrives(server: ClickHouse, service: str, spans: int) -> None:
    """Wait until exactly so many spans are stored, none of them twice."""
    until(lambda: stored(server, service)["different"] >= spans)
    assert stored(server, service) == {"spans": spans, "different": spans}


def traces(server: ClickHouse, service: str) -> dict[int, int]:
    """Return the number of different spans of each trace of a service."""
    query = f"SELECT TraceId AS trace, uniqExact(SpanId) AS spans {OF_SERVICE} GROUP BY TraceId"
    return {int(row["trace"], 16): row["spans"] for row in server.rows(query, param_service=service)}


def test_short_form_writes_the_standard_table(server: ClickHouse, tmp_path: Path) -> None:
    """The exporter creates its tables; a span of the SDK is in them, with each value as text or number."""
    resource = Resource.create({"service.name": "short", "service.version": "1.2", "host.cpus": 2})
    with run_part(tmp_path, SHORT, into(server)) as collector:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(collector.otlp_grpc, insecure=True)))
        tracer = provider.get_tracer("scope", "0.1")
        with tracer.start_as_current_span("POST /rank", kind=SpanKind.SERVER) as entry:
            assert isinstance(entry, Span)
            entry.set_attributes({"sla.breached": True, "sla.duration_ms": 12.5, "n": 3, "ab": ["a", "b"], "ü\t": "'"})
            entry.set_status(StatusCode.ERROR, "late")
            entry.add_event("stall", {"stack": "app.py:4"}, timestamp=1_700_000_000_123_456_789)
            context = entry.get_span_context()
            with tracer.start_as_current_span("model", links=[Link(context, {"why": "batch"})]) as stage:
                pass
        provider.shutdown()
        arrives(server, "short", 2)
    start, end = entry.start_time, entry.end_time
    assert start is not None
    assert end is not None
    columns = "SELECT *, toUnixTimestamp64Nano(Timestamp) AS ns"
    rows = {row["SpanName"]: row for row in server.rows(f"{columns} {OF_SERVICE}", param_service="short")}
    whole = rows["POST /rank"]
    assert whole.pop("ResourceAttributes").items() >= {"service.version": "1.2", "host.cpus": "2"}.items()
    assert {name: value for name, value in whole.items() if name != "Timestamp"} == {
        "TraceId": f"{context.trace_id:032x}",
        "SpanId": f"{context.span_id:016x}",
        "ParentSpanId": "",
        "TraceState": "",
        "SpanName": "POST /rank",
        "SpanKind": "Server",
        "ServiceName": "short",
        "ScopeName": "scope",
        "ScopeVersion": "0.1",
        "StatusCode": "Error",
        "StatusMessage": "late",
        "SpanAttributes": {
            "sla.breached": "true",
            "sla.duration_ms": "12.5",
            "n": "3",
            "ab": '["a","b"]',
            "ü\t": "'",
        },
        "ns": start,
        "Duration": end - start,
        "Events.Timestamp": ["2023-11-14 22:13:20.123456789"],
        "Events.Name": ["stall"],
        "Events.Attributes": [{"stack": "app.py:4"}],
        "Links.TraceId": [],
        "Links.SpanId": [],
        "Links.TraceState": [],
        "Links.Attributes": [],
    }
    child = rows["model"]
    assert (child["ParentSpanId"], child["SpanKind"], child["StatusCode"]) == (whole["SpanId"], "Internal", "Unset")
    assert (child["Links.SpanId"], child["Links.Attributes"]) == ([whole["SpanId"]], [{"why": "batch"}])
    assert child["SpanId"] == f"{stage.get_span_context().span_id:016x}"


def test_short_form_writes_metrics(server: ClickHouse, tmp_path: Path) -> None:
    """Counters are in `otel_metrics_sum`."""
    with run_part(tmp_path, SHORT, into(server)) as collector:
        count(collector, "counted", 7)
        until(lambda: counted(server, "counted") == [7])


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_outage_of_clickhouse(ending: signal.Signals, tmp_path: Path) -> None:
    """Spans acknowledged while it is down outlive the Collector, too, and are stored once it is back."""
    with (
        run_clickhouse(tmp_path / "server") as first,
        run_part(tmp_path / "collector", SHORT, into(first)),
    ):
        pass
    later = into(first) | {"CLICKHOUSE_CREATE_SCHEMA": "false"}
    with run_part(tmp_path / "collector", SHORT, later) as collector:
        send(collector, *(tree(number, service="outage") for number in range(1, 6)))
        os.kill(collector.pid, ending)
    with run_clickhouse(tmp_path / "server", first.port) as server, run_part(tmp_path / "collector", SHORT, later):
        arrives(server, "outage", 20)


def test_schema_needs_clickhouse(tmp_path: Path) -> None:
    """A Collector that is to create the tables ends while ClickHouse is down, and says why."""
    with run_clickhouse(tmp_path / "server") as gone:
        pass
    because = r"(?s)create database.*connection refused"
    with pytest.raises(BackendFailed, match=because), run_part(tmp_path / "collector", SHORT, into(gone)):
        pass


def test_wrong_password(server: ClickHouse, tmp_path: Path) -> None:
    """So does one that ClickHouse refuses."""
    wrong = {"CLICKHOUSE_USER": "reader", "CLICKHOUSE_PASSWORD": "wrong"}
    because = "reader: Authentication failed"
    with pytest.raises(BackendFailed, match=because), run_part(tmp_path, SHORT, into(server) | wrong):
        pass


def test_many_spans_are_few_inserts(server: ClickHouse, tmp_path: Path) -> None:
    """The queue inserts at least 5,000 spans at once, however small the messages are."""
    with run_part(tmp_path, SHORT, into(server) | {"CLICKHOUSE_FLUSH_TIMEOUT": "60s"}) as collector:
        for first in range(1, 1001, 20):
            send(collector, merged(tree(first + more, service="many", stages=9) for more in range(20)))
        arrives(server, "many", 10_000)
        assert len(server.rows("SELECT name FROM system.parts WHERE table = 'otel_traces' AND rows >= 5000")) >= 1


def merged(messages: Iterable[Any]) -> Any:
    """Return what several messages hold in one."""
    whole, *rest = messages
    for one in rest:
        whole.MergeFrom(one)
    return whole


def gateway(server: ClickHouse, **settings: str) -> dict[str, str]:
    return into(server) | {"GATEWAY_DECISION_WAIT": "5s", "GATEWAY_SHARE_PERCENT": "0"} | settings


def mixed(service: str) -> list[Any]:
    """Return 30 traces: one in three with a breach, one with an error, one with neither; one in a message."""
    given: list[dict[str, Any]] = [{"sla.breached": True}, {"status": 2}, {"sla.breached": False}]
    return [tree(number, service=service, **given[number % 3]) for number in range(1, 31)]


def test_gateway_keeps_breaches_and_errors(server: ClickHouse, tmp_path: Path) -> None:
    """Each of these traces is kept whole, though its spans arrive apart; of the others, here, none."""
    with run_part(tmp_path / "gateway", GATEWAY, gateway(server)) as behind:
        front = {"GATEWAY_OTLP_ENDPOINT": behind.otlp_grpc.removeprefix("http://")}
        with run_part(tmp_path / "agent", AGENT, front) as agent:
            messages = mixed("sampled")
            entries = [apart(message) for message in messages]
            send(agent, merged(messages))
            send(agent, merged(entries))
            until(lambda: len(traces(server, "sampled")) == 20)
    assert traces(server, "sampled") == {number: 4 for number in range(1, 31) if number % 3 < 2}


def apart(message: Any) -> Any:
    """Take the entry span out of a message; return it in one of its own."""
    entry = type(message)()
    entry.CopyFrom(message)
    scopes = [one.resource_spans[0].scope_spans[0] for one in (message, entry)]
    del scopes[0].spans[:1]
    del scopes[1].spans[1:]
    return entry


def test_gateway_keeps_a_share(server: ClickHouse, tmp_path: Path) -> None:
    """About half of the others, where half is asked for: which, the id of the trace decides."""
    with run_part(tmp_path, GATEWAY, gateway(server, GATEWAY_SHARE_PERCENT="50")) as collector:
        ids = random.Random(1)
        send(collector, merged(tree(ids.getrandbits(56), service="share") for _ in range(400)))
        until(lambda: len(traces(server, "share")) >= 140)
    assert len(traces(server, "share")) <= 260
    assert set(traces(server, "share").values()) == {4}


def test_gateway_may_keep_all(server: ClickHouse, tmp_path: Path) -> None:
    """Without tail sampling an acknowledged span is on disk, and outlives a kill."""
    settings = gateway(server, GATEWAY_PROCESSORS="[memory_limiter]", CLICKHOUSE_FLUSH_TIMEOUT="60s")
    with run_part(tmp_path, GATEWAY, settings) as collector:
        send(collector, *mixed("all"))
        os.kill(collector.pid, signal.SIGKILL)
    with run_part(tmp_path, GATEWAY, settings | {"CLICKHOUSE_FLUSH_TIMEOUT": "200ms"}):
        arrives(server, "all", 120)


def test_answers_at_the_end_of_the_way_are_those_of_the_local_store(tmp_path: Path) -> None:
    """By agent and gateway."""
    with run_clickhouse(tmp_path / "server") as own, run_part(tmp_path / "gateway", GATEWAY, keeps_all(own)) as behind:
        front = {"GATEWAY_OTLP_ENDPOINT": behind.otlp_grpc.removeprefix("http://")}
        with run_part(tmp_path / "agent", AGENT, front) as agent:
            answers_agree(agent, own, tmp_path / "store")


def keeps_all(server: ClickHouse) -> dict[str, str]:
    return gateway(server, GATEWAY_PROCESSORS="[memory_limiter]")
