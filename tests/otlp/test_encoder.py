"""Our encoder gives the message that the official one gives, whatever a span holds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from heavy import HEAVY
from stagetrace.otlp import encode as encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.native

INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.one_of(st.text(max_size=200), st.booleans(), INT64, st.floats(allow_nan=False), st.binary(max_size=50))
VALUES = st.recursive(
    SCALARS | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ATTRIBUTES = st.none() | st.dictionaries(st.text(max_size=20), VALUES, max_size=6)
STATES = st.sampled_from([None, TraceState(), TraceState([("a", "1"), ("b", "2")])])
CONTEXTS = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.sampled_from([TraceFlags(0), TraceFlags(1), TraceFlags(3)]),
    STATES,
)
TIMES = st.integers(0, 2**64 - 1)
EVENTS = st.builds(Event, st.text(max_size=20), ATTRIBUTES, TIMES)
LINKS = st.builds(Link, CONTEXTS, ATTRIBUTES)
STATUSES = st.sampled_from(
    [Status(), Status(StatusCode.OK), Status(StatusCode.ERROR), Status(StatusCode.ERROR, "it broke ü")]
)
RESOURCES = st.sampled_from(
    [
        Resource({}),
        Resource({"service.name": "a", "n": 1, "list": ["x", "y"]}),
        Resource({"service.name": "a", "n": 1, "list": ["x", "y"]}),  # equal to the one before, another object
        Resource({"service.name": "b"}, "https://schema.example/1"),
    ]
)
SCOPES = st.sampled_from(
    [
        None,
        InstrumentationScope("x"),
        InstrumentationScope("x", "1", "https://schema.example/2", {"k": True}),
        InstrumentationScope("x", "1", "https://schema.example/2", {"k": True}),
    ]
)
SPANS = st.builds(
    ReadableSpan,
    name=st.text(max_size=40),
    context=CONTEXTS,
    parent=st.none() | CONTEXTS,
    resource=RESOURCES,
    attributes=ATTRIBUTES,
    events=st.lists(EVENTS, max_size=3),
    links=st.lists(LINKS, max_size=3),
    kind=st.sampled_from(SpanKind),
    status=STATUSES,
    start_time=TIMES,
    end_time=TIMES,
    instrumentation_scope=SCOPES,
)


def encode_spans(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(encoder.encode_spans(spans))


@pytest.mark.thorough
@pytest.mark.heavier("4,000 lists of spans")
@settings(max_examples=4_000 if HEAVY else 60)
@given(st.lists(SPANS, max_size=6))
def test_any_spans_give_the_official_message(spans: Sequence[ReadableSpan]) -> None:
    assert encode_spans(spans) == official(spans)


def one(**attributes: Any) -> ReadableSpan:
    return ReadableSpan("x", SpanContext(1, 2, is_remote=False), attributes=attributes, start_time=1, end_time=2)


@pytest.mark.parametrize(
    "values",
    [(1, True, 1.0), (0, False, 0.0, -0.0), ([1], [True], [1.0]), ("1", b"1"), ("", b"", None, [], {})],
)
def test_equal_values_of_other_types_do_not_share_a_cache_entry(values: tuple[Any, ...]) -> None:
    for order in (values, values[::-1]):
        for value in order:
            span = [one(key=value)]
            assert encode_spans(span).SerializeToString() == official(span).SerializeToString()


@pytest.mark.parametrize("bad", [2**63, -(2**63) - 1, "\ud800", object(), [object()], {"a": object()}])
def test_an_attribute_that_cannot_be_sent_costs_itself_alone(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        span = [one(before=1, bad=bad, after=2)]
        assert encode_spans(span) == official(span)
    ours, theirs = (record.getMessage().split(":")[0] for record in caplog.records)
    assert ours == theirs == "Failed to encode key bad"


def test_not_a_number_and_infinity_survive() -> None:
    spans = [one(a=float("nan"), b=float("inf"), c=float("-inf"))]
    assert encode_spans(spans).SerializeToString() == official(spans).SerializeToString()


def test_what_the_sdk_dropped_is_counted() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        span_limits=SpanLimits(
            max_span_attributes=1, max_events=1, max_links=1, max_event_attributes=1, max_link_attributes=1
        ),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    link = Link(SpanContext(3, 4, is_remote=True), {"a": 1, "b": 2})
    span = provider.get_tracer("t").start_span("x", attributes={"a": 1, "b": 2}, links=[link, link])
    span.add_event("one", {"a": 1, "b": 2})
    span.add_event("two", {"a": 1, "b": 2})
    span.end()
    spans = exporter.get_finished_spans()
    encoded = encode_spans(spans)
    assert encoded == official(spans)
    sent = encoded.resource_spans[0].scope_spans[0].spans[0]
    assert (sent.dropped_attributes_count, sent.dropped_events_count, sent.dropped_links_count) == (1, 1, 1)


@pytest.mark.parametrize(
    "spans", [[ReadableSpan("\ud800", SpanContext(1, 2, is_remote=False), start_time=1, end_time=2)]]
)
def test_what_the_official_encoder_refuses_we_refuse(spans: list[ReadableSpan]) -> None:
    for encode in (encode_spans, official):
        with pytest.raises(UnicodeEncodeError):
            encode(spans)
