"""Jaeger's changes to a trace that is not requested raw: for people to look at, not for counting.

The same adjustments as in Jaeger 2.13 (`cmd/query/app/querysvc/v2/adjuster`), in its order. Clock skew, which it
corrects only where configured to, is neither corrected nor remarked on here: times stay as recorded.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, MutableSequence
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

WARNINGS: Final = "@jaeger@warnings"
_ADDRESSES: Final = frozenset({"ip", "peer.ipv4"})
_LIBRARY: Final = frozenset(
    {
        "telemetry.sdk.language",
        "telemetry.sdk.name",
        "telemetry.sdk.version",
        "telemetry.distro.name",
        "telemetry.distro.version",
    }
)
_SPAN_ID_BYTES: Final = 8


def adjusted(traces: TracesData) -> TracesData:
    """Return `traces`, changed in place."""
    _tell_apart(traces)
    _warn_of_gaps(traces)
    for resource_spans in traces.resource_spans:
        _spell_addresses(resource_spans.resource.attributes)
        for span in _spans(resource_spans):
            _spell_addresses(span.attributes)
            _move_library(span, resource_spans)
            _drop_empty_links(span)
    return traces


def _spans(resource_spans: ResourceSpans) -> Iterator[Span]:
    for scope in resource_spans.scope_spans:
        yield from scope.spans


def _tell_apart(traces: TracesData) -> None:
    """Give server spans that share the id of a client span (Zipkin's way) one of their own, beneath that one."""
    spans = [span for resource_spans in traces.resource_spans for span in _spans(resource_spans)]
    clients = {span.span_id for span in spans if span.kind == Span.SPAN_KIND_CLIENT}
    used = {span.span_id for span in spans}
    renamed: dict[bytes, bytes] = {}
    number = 0
    for span in spans:
        if span.kind == Span.SPAN_KIND_SERVER and span.span_id in clients:
            number += 1
            while (fresh := number.to_bytes(_SPAN_ID_BYTES, "big")) in used:
                number += 1
            renamed[span.span_id] = fresh
            span.parent_span_id, span.span_id = span.span_id, fresh
    for span in spans:
        parent = renamed.get(span.parent_span_id)
        if parent is not None and parent != span.span_id:
            span.parent_span_id = parent


def _warn_of_gaps(traces: TracesData) -> None:
    """Add warnings to spans whose parent is missing, and to repeated ids."""
    spans = [span for resource_spans in traces.resource_spans for span in _spans(resource_spans)]
    seen: set[bytes] = set()
    for span in spans:
        if span.span_id in seen:
            _warn(span, "duplicate span IDs; skipping clock skew adjustment")
        seen.add(span.span_id)
    for span in spans:
        if any(span.parent_span_id) and span.parent_span_id not in seen:
            _warn(
                span, f"parent span ID={span.parent_span_id.hex()} is not in the trace; skipping clock skew adjustment"
            )


def _spell_addresses(attributes: MutableSequence[KeyValue]) -> None:
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        if attribute.key in _ADDRESSES and kind in ("int_value", "double_value"):
            number = int(getattr(attribute.value, kind)) & 0xFFFFFFFF
            attribute.value.string_value = str(ipaddress.IPv4Address(number))


def _move_library(span: Span, resource_spans: ResourceSpans) -> None:
    """Move attributes of the library from the span to its resource, unless that has its own."""
    for attribute in [one for one in span.attributes if one.key in _LIBRARY]:
        its = next((one for one in resource_spans.resource.attributes if one.key == attribute.key), None)
        if its is not None and its.value != attribute.value:
            _warn(span, f"conflicting values between Span and Resource for attribute {attribute.key}")
            continue
        if its is None:
            resource_spans.resource.attributes.add().CopyFrom(attribute)
        span.attributes.remove(attribute)


def _drop_empty_links(span: Span) -> None:
    kept = [link for link in span.links if any(link.trace_id)]
    for _ in range(len(span.links) - len(kept)):
        _warn(span, "Invalid span link removed")
    if len(kept) < len(span.links):
        kept = [type(link).FromString(link.SerializeToString()) for link in kept]
        del span.links[:]
        span.links.extend(kept)


def _warn(span: Span, text: str) -> None:
    found: AnyValue | None = next((one.value for one in span.attributes if one.key == WARNINGS), None)
    if found is None:
        found = span.attributes.add(key=WARNINGS).value
    found.array_value.values.add(string_value=text)
