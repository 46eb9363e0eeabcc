"""The tables of the Collector's clickhouseexporter 0.161.0, and OTLP as the rows that it writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stagetrace.semconv import as_text
from stagetrace.store.rows import spans_of, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.message import Message

    from clickhouse import ClickHouse
    from stagetrace.store.local.counts import Point

_TEXT = "Map(LowCardinality(String), String)"
_COLUMNS = """
    Timestamp DateTime64(9), TraceId String, SpanId String, ParentSpanId String, TraceState String,
    SpanName LowCardinality(String), SpanKind LowCardinality(String), ServiceName LowCardinality(String),
    ResourceAttributes {map}, ScopeName String, ScopeVersion String, SpanAttributes {map}, Duration UInt64,
    StatusCode LowCardinality(String), StatusMessage String,
    Events Nested (Timestamp DateTime64(9), Name LowCardinality(String), Attributes {map}),
    Links Nested (TraceId String, SpanId String, TraceState String, Attributes {map}),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1
"""
_TABLES = (
    """CREATE TABLE otel_traces ({columns}) ENGINE = MergeTree PARTITION BY toDate(Timestamp)
    ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))""",
    """CREATE TABLE otel_traces_trace_id_ts (TraceId String, Start DateTime, End DateTime) ENGINE = MergeTree
    PARTITION BY toDate(Start) ORDER BY (TraceId, Start)""",
    """CREATE MATERIALIZED VIEW otel_traces_trace_id_ts_mv TO otel_traces_trace_id_ts AS
    SELECT TraceId, min(Timestamp) AS Start, max(Timestamp) AS End FROM otel_traces
    WHERE TraceId != '' GROUP BY TraceId""",
)


def create(server: ClickHouse, *, json_attributes: bool = False) -> None:
    """Make the tables; `json_attributes`: in the exporter's JSON variant, without the lookup, which is as it may be."""
    columns = _COLUMNS.format(map="JSON" if json_attributes else _TEXT)
    for table in _TABLES[: 1 if json_attributes else 3]:
        server.run(table.format(columns=columns)).raise_for_status()


def insert(server: ClickHouse, messages: Iterable[Message], *, json_attributes: bool = False) -> None:
    """Write each span of these messages, however often it is there."""
    for message in messages:
        rows = "\n".join(json.dumps(row) for row in rows_of(message, json_attributes=json_attributes))
        server.run(f"INSERT INTO otel_traces FORMAT JSONEachRow {rows}").raise_for_status()


def insert_counts(server: ClickHouse, points: Iterable[Point]) -> None:
    """Make the table of sums, and write points of `sla.requests` as the exporter does."""
    server.run(
        """CREATE TABLE otel_metrics_sum (ResourceAttributes Map(LowCardinality(String), String),
        ServiceName LowCardinality(String), MetricName LowCardinality(String),
        Attributes Map(LowCardinality(String), String), StartTimeUnix DateTime, TimeUnix DateTime, Value Float64,
        AggregationTemporality Int32, IsMonotonic Boolean)
        ENGINE = MergeTree ORDER BY (ServiceName, MetricName, TimeUnix)"""
    ).raise_for_status()
    rows = (
        {
            "ResourceAttributes": {"service.name": one.service, "service.instance.id": one.instance},
            "ServiceName": one.service,
            "MetricName": "sla.requests",
            "Attributes": {"http.route": one.route, "sla.objective": one.objective, "sla.verdict": one.verdict},
            "StartTimeUnix": one.start_ns // 10**9,
            "TimeUnix": one.time_ns // 10**9,
            "Value": one.value,
            "AggregationTemporality": 1 if one.is_delta else 2,
            "IsMonotonic": True,
        }
        for one in points
    )
    lines = "\n".join(map(json.dumps, rows))
    server.run(f"INSERT INTO otel_metrics_sum FORMAT JSONEachRow {lines}").raise_for_status()


def rows_of(message: Any, *, json_attributes: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows that the exporter writes of a message."""

    def put(attributes: Any) -> dict[str, Any]:
        found = values(attributes)
        return found if json_attributes else {key: as_text(one) for key, one in found.items()}

    for service, span, resource_spans, scope_spans in spans_of(message):
        events, links = span.events, span.links
        yield {
            "Timestamp": _time(span.start_time_unix_nano),
            "TraceId": span.trace_id.hex(),
            "SpanId": span.span_id.hex(),
            "ParentSpanId": span.parent_span_id.hex(),
            "TraceState": span.trace_state,
            "SpanName": span.name,
            "SpanKind": span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").capitalize(),
            "ServiceName": service,
            "ResourceAttributes": put(resource_spans.resource.attributes),
            "ScopeName": scope_spans.scope.name,
            "ScopeVersion": scope_spans.scope.version,
            "SpanAttributes": put(span.attributes),
            "Duration": (span.end_time_unix_nano - span.start_time_unix_nano) % 2**64,
            "StatusCode": ("Unset", "Ok", "Error")[span.status.code],
            "StatusMessage": span.status.message,
            "Events.Timestamp": [_time(one.time_unix_nano) for one in events],
            "Events.Name": [one.name for one in events],
            "Events.Attributes": [put(one.attributes) for one in events],
            "Links.TraceId": [one.trace_id.hex() for one in links],
            "Links.SpanId": [one.span_id.hex() for one in links],
            "Links.TraceState": [one.trace_state for one in links],
            "Links.Attributes": [put(one.attributes) for one in links],
        }


def _time(unix_nano: int) -> str:
    return f"{unix_nano // 10**9}.{unix_nano % 10**9:09}"
