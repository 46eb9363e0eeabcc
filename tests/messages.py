"""OTLP messages made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stagetrace.store import SpanRow

_KINDS = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}


def value(given: Any) -> AnyValue:
    """Return a value of the kind that its Python type has."""
    if isinstance(given, list):
        return AnyValue(array_value=ArrayValue(values=map(value, given)))
    if isinstance(given, dict):
        return AnyValue(kvlist_value=KeyValueList(values=[attribute(*item) for item in given.items()]))
    return AnyValue(**{_KINDS[type(given)]: given})


def attribute(key: str, given: Any) -> KeyValue:
    return KeyValue(key=key, value=value(given))


def put(holder: Any, attributes: Mapping[str, Any]) -> None:
    """Add attributes to a span, a resource, or what else has some."""
    holder.attributes.extend(attribute(*item) for item in attributes.items())


def add_scope(message: Any, service: str, resource: Mapping[str, Any] | None = None) -> Any:
    """Add a resource to an export request; return the scope in it, which takes spans."""
    added = message.resource_spans.add()
    put(added.resource, {"service.name": service, **(resource or {})})
    return added.scope_spans.add()


def of_rows(rows: Iterable[SpanRow], shift_ns: int = 0) -> ExportTraceServiceRequest:
    """Return spans as an export request, each so much later."""
    message = ExportTraceServiceRequest()
    for row in rows:
        made = add_scope(message, row.service).spans.add(
            trace_id=bytes.fromhex(row.trace_id),
            span_id=bytes.fromhex(row.span_id),
            parent_span_id=bytes.fromhex(row.parent_span_id or ""),
            name=row.name,
            kind=Span.SpanKind.Value(f"SPAN_KIND_{row.kind}"),
            start_time_unix_nano=row.start_unix_nano + shift_ns,
            end_time_unix_nano=row.end_unix_nano + shift_ns,
        )
        made.status.code = 2 if row.status == "ERROR" else 0
        put(made, row.attributes)
    return message


def leaves(message: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each span of a message, after what is above it: resource spans, scope spans."""
    for over in message.resource_spans:
        for scope in over.scope_spans:
            for span in scope.spans:
                yield over, scope, span
