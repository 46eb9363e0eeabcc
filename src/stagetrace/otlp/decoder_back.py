"""Stored columns back to OTLP, without loss: `decoder` the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from stagetrace.otlp.decoder_columns import FIXED, REST, TYPED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What `span_of` reads of a row; `resource` and `scope` come on top for `traces_data`.
NEEDED: Final = (*(name for name, _ in FIXED), *(typed.column for typed in TYPED.values()), REST)
_TYPED: Final = tuple((key, typed.column, typed.kind) for key, typed in TYPED.items())


def span_of(row: Mapping[str, Any]) -> Span:
    """Return the span that a row was made of, its typed attributes first."""
    span = Span(
        trace_id=row["trace_id"],
        span_id=row["span_id"],
        name=row["name"],
        kind=row["kind"],
        start_time_unix_nano=row["start_unix_nano"],
        end_time_unix_nano=row["end_unix_nano"],
        flags=row["flags"],
    )
    if (parent := row.get("parent_span_id")) is not None:
        span.parent_span_id = parent
    if (status := row.get("status")) is not None:
        span.status.code = status
        span.status.SetInParent()
    kept_as_is = row.get(REST)
    rest = Span.FromString(kept_as_is) if kept_as_is else None
    kept = {attribute.key for attribute in rest.attributes} if rest else ()
    for key, column, kind in _TYPED:
        found = row.get(column)
        # A value of another type than its column, and a key that came twice, are in the rest as they were.
        if found is not None and key not in kept:
            attribute = span.attributes.add(key=key)
            setattr(attribute.value, kind, found)
    if rest:
        span.MergeFrom(rest)
    return span


def request_of(rows: Iterable[Mapping[str, Any]]) -> ExportTraceServiceRequest:
    """Return a request with the spans of these rows under their resources and scopes."""
    request = ExportTraceServiceRequest()
    _fill(request, rows)
    return request


def traces_of(rows: Iterable[Mapping[str, Any]]) -> TracesData:
    """Return a TracesData with the spans of these rows under their resources and scopes."""
    traces = TracesData()
    _fill(traces, rows)
    return traces


def _fill(message: ExportTraceServiceRequest | TracesData, rows: Iterable[Mapping[str, Any]]) -> None:
    resources: dict[bytes, ResourceSpans] = {}
    scopes: dict[tuple[bytes, bytes], ScopeSpans] = {}
    for row in rows:
        key = (row["resource"], row["scope"])
        scope = scopes.get(key)
        if scope is None:
            resource = resources.get(key[0])
            if resource is None:
                resource = resources[key[0]] = message.resource_spans.add()
                resource.MergeFromString(key[0])
            scope = scopes[key] = resource.scope_spans.add()
            scope.MergeFromString(key[1])
        scope.spans.append(span_of(row))
