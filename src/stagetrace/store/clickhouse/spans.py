"""Rows of `otel_traces` as OTLP. Attributes are texts there: those that stagetrace knows get their type back."""

# ruff: noqa: S608 -- names are quoted, columns are constants; every value is bound

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from stagetrace.store.clickhouse.relation import Table
from stagetrace.store.typed import value


def query(table: Table, where: str) -> str:
    """Return the SELECT of whole spans, for `request_of`."""
    parts = {
        "trace_id": "TraceId",
        "span_id": "SpanId",
        "parent": "ParentSpanId",
        "state": "TraceState",
        "name": "SpanName",
        "kind": "SpanKind",
        "service": "ServiceName",
        "resource": table.map_of("ResourceAttributes"),
        "scope": "ScopeName",
        "scope_version": "ScopeVersion",
        "attributes": table.map_of("SpanAttributes"),
        "start": "toUnixTimestamp64Nano(Timestamp)",
        "took": "reinterpretAsInt64(Duration)",
        "status": "StatusCode",
        "message": "StatusMessage",
        "event_times": "arrayMap(one -> toUnixTimestamp64Nano(one), `Events.Timestamp`)",
        "event_names": "`Events.Name`",
        "event_attributes": _each(table, "Events.Attributes"),
        "link_traces": "`Links.TraceId`",
        "link_spans": "`Links.SpanId`",
        "link_states": "`Links.TraceState`",
        "link_attributes": _each(table, "Links.Attributes"),
    }
    return f"SELECT {', '.join(f'{how} AS {name}' for name, how in parts.items())} FROM {table.quoted()} {where}"


def _each(table: Table, column: str) -> str:
    """Return the expression of the maps of a column of lists."""
    if "JSON" not in table.types.get(column, ""):
        return f"`{column}`"
    return f"arrayMap(one -> {Table('', '', {'one': 'JSON'}).map_of('one')}, `{column}`)"


def request_of(rows: Iterable[Mapping[str, Any]]) -> ExportTraceServiceRequest:
    """Return rows as one request; those of one resource and scope that follow each other stay together."""
    request = ExportTraceServiceRequest()
    under: ResourceSpans | None = None
    last: tuple[Any, ...] = ()
    for row in rows:
        place = row["resource"], row["scope"], row["scope_version"]
        if under is None or place != last:
            under, last = request.resource_spans.add(), place
            _put(under.resource.attributes, row["resource"])
            scope = under.scope_spans.add().scope
            scope.name, scope.version = row["scope"], row["scope_version"]
        _add(under.scope_spans[0].spans.add(), row)
    return request


def _add(span: Span, row: Mapping[str, Any]) -> None:
    span.trace_id, span.span_id = bytes.fromhex(row["trace_id"]), bytes.fromhex(row["span_id"])
    span.parent_span_id, span.trace_state = bytes.fromhex(row["parent"]), row["state"]
    span.name, span.kind = row["name"], _number(Span.SpanKind, f"SPAN_KIND_{row['kind']}")
    span.start_time_unix_nano = row["start"]
    span.end_time_unix_nano = row["start"] + row["took"]
    _put(span.attributes, row["attributes"])
    span.status.code, span.status.message = _number(Status.StatusCode, f"STATUS_CODE_{row['status']}"), row["message"]
    events = zip(row["event_times"], row["event_names"], row["event_attributes"], strict=True)
    for time, name, attributes in events:
        event = span.events.add(time_unix_nano=time, name=name)
        _put(event.attributes, attributes)
    links = zip(row["link_traces"], row["link_spans"], row["link_states"], row["link_attributes"], strict=True)
    for trace_id, span_id, state, attributes in links:
        link = span.links.add(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id), trace_state=state)
        _put(link.attributes, attributes)


def _number(words: Any, word: str) -> Any:
    """Return the number of a word of OTLP's; 0 (unspecified, unset) for one that is none."""
    return dict(words.items()).get(word.upper(), 0)


def _put(attributes: Any, texts: Mapping[str, str]) -> None:
    attributes.extend(KeyValue(key=key, value=value(key, text)) for key, text in texts.items())
