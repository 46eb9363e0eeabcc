"""OTLP spans (`TracesData`) to rows: the form in which every other part of the reading side sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from stagetrace.store.base import SpanEvent, SpanLink, SpanRow, Value

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource


class ServiceSpan(NamedTuple):
    """An OTLP span with its resource and scope, and the service that its resource names (empty where it names none)."""

    service: str
    span: trace_pb2.Span
    resource_spans: trace_pb2.ResourceSpans
    scope_spans: trace_pb2.ScopeSpans

    def row(self) -> SpanRow:
        """Return it as a row."""
        return row(self.service, self.span, self.resource_spans.resource)


_KINDS: Final = {number: name.removeprefix("SPAN_KIND_") for name, number in trace_pb2.Span.SpanKind.items()}
_STATUSES: Final = {number: name.removeprefix("STATUS_CODE_") for name, number in trace_pb2.Status.StatusCode.items()}
_SERVICE_NAME: Final = "service.name"
REF_TYPE: Final = "opentracing.ref_type"  # of a link: its type in OpenTracing
FOLLOWS_FROM: Final = "follows_from"


def spans_of(data: trace_pb2.TracesData | ExportTraceServiceRequest) -> Iterator[ServiceSpan]:
    """Yield each span of one message."""
    for resource_spans in data.resource_spans:
        service = _service(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ServiceSpan(service, span, resource_spans, scope_spans)


def request_of(spans: Iterable[ServiceSpan]) -> ExportTraceServiceRequest:
    """Return spans as one request, without loss; those of one resource or scope stay together."""
    request = ExportTraceServiceRequest()
    resource_spans = scope_spans = None
    for one in spans:
        if one.resource_spans is not resource_spans:
            resource_spans, scope_spans = one.resource_spans, None
            under_resource = request.resource_spans.add(schema_url=resource_spans.schema_url)
            under_resource.resource.CopyFrom(resource_spans.resource)
        if one.scope_spans is not scope_spans:
            scope_spans = one.scope_spans
            under_scope = under_resource.scope_spans.add(schema_url=scope_spans.schema_url)
            under_scope.scope.CopyFrom(scope_spans.scope)
        under_scope.spans.add().CopyFrom(one.span)
    return request


def row(service: str, span: trace_pb2.Span, resource: Resource | None = None) -> SpanRow:
    """Return one span as a row."""
    return SpanRow(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        # Some exporters write a root's parent as eight zero bytes instead of nothing.
        parent_span_id=span.parent_span_id.hex() if any(span.parent_span_id) else None,
        name=span.name,
        service=service,
        kind=_KINDS.get(span.kind, str(span.kind)),
        start_unix_nano=span.start_time_unix_nano,
        end_unix_nano=span.end_time_unix_nano,
        attributes=values(span.attributes),
        status=_STATUSES.get(span.status.code, str(span.status.code)),
        resource={} if resource is None else values(resource.attributes),
        follows=any(_is_follows(link, span) for link in span.links),
        events=tuple(SpanEvent(one.time_unix_nano, one.name, values(one.attributes)) for one in span.events),
        links=tuple(SpanLink(one.trace_id.hex(), one.span_id.hex(), values(one.attributes)) for one in span.links),
    )


def _is_follows(link: trace_pb2.Span.Link, span: trace_pb2.Span) -> bool:
    """Return whether a link marks the parent as followed only, as Jaeger translates FOLLOWS_FROM."""
    is_parent = (link.trace_id, link.span_id) == (span.trace_id, span.parent_span_id)
    return is_parent and values(link.attributes).get(REF_TYPE) == FOLLOWS_FROM


def values(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    """Return attributes as Python values; the last one wins where a key repeats."""
    return {attribute.key: value(attribute.value) for attribute in attributes}


def value(any_value: AnyValue) -> Value:
    """Return an OTLP value as str, bool, int, float, bytes, list, dict or None."""
    kind = any_value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value(item) for item in any_value.array_value.values]
    if kind == "kvlist_value":
        return values(any_value.kvlist_value.values)
    plain: Value = getattr(any_value, kind)
    return plain


def _service(attributes: Iterable[KeyValue]) -> str:
    """Return the service name of a resource, or an empty one."""
    return next((item.value.string_value for item in attributes if item.key == _SERVICE_NAME), "")


def by_trace(messages: Iterable[trace_pb2.TracesData]) -> Iterator[tuple[bytes, list[ServiceSpan]]]:
    """Yield (trace id, its spans) out of messages in which the parts of one trace follow each other."""
    spans = (span for message in messages for span in spans_of(message))
    for trace_id, group in groupby(spans, key=lambda one: one.span.trace_id):
        yield trace_id, list(group)


def distinct(spans: Iterable[SpanRow]) -> list[SpanRow]:
    """Return each span once, by start. Of several copies the one with most attributes stays: it has the verdict."""
    best: dict[tuple[str, str, str], SpanRow] = {}
    for span in spans:
        # Client and server of one call share an id in traces that came from Zipkin.
        key = (span.span_id, span.service, span.kind)
        if key not in best or len(span.attributes) > len(best[key].attributes):
            best[key] = span
    return sorted(best.values(), key=lambda span: (span.start_unix_nano, span.end_unix_nano, span.span_id))
