"""OTLP spans as rows."""

from __future__ import annotations

from dataclasses import replace

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stagetrace.store import SpanRow
from stagetrace.store.rows import distinct, row, value

ROW = SpanRow("ab" * 16, "cd" * 8, None, "name", "svc", "SERVER", 1, 2, {})


def test_every_kind_of_value_has_its_python_form() -> None:
    cases: list[tuple[AnyValue, object]] = [
        (AnyValue(string_value="a"), "a"),
        (AnyValue(bool_value=False), False),
        (AnyValue(int_value=2**62), 2**62),
        (AnyValue(double_value=0.5), 0.5),
        (AnyValue(bytes_value=b"\x00"), b"\x00"),
        (AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()])), [1, None]),
        (AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(int_value=1))])), {"k": 1}),
        (AnyValue(), None),
    ]
    assert [value(given) for given, _ in cases] == [expected for _, expected in cases]
    covered = {given.WhichOneof("value") for given, _ in cases} - {None}
    # Of the newer kinds, the index into a table of strings occurs in profiles alone.
    assert covered == {field.name for field in AnyValue.DESCRIPTOR.oneofs_by_name["value"].fields} - {
        "string_value_strindex"
    }


def test_kinds_and_statuses_are_words() -> None:
    words = [row("svc", Span(kind=number)).kind for number in Span.SpanKind.values()]
    assert words == ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
    statuses = [row("svc", Span(status=Status(code=number))).status for number in Status.StatusCode.values()]
    assert statuses == ["UNSET", "OK", "ERROR"]


def test_a_parent_of_zero_bytes_is_no_parent() -> None:
    assert row("svc", Span(parent_span_id=bytes(8))).parent_span_id is None
    assert row("svc", Span(parent_span_id=b"\x10" + bytes(7))).parent_span_id == "1000000000000000"


def test_of_two_copies_the_one_with_the_verdict_stays() -> None:
    judged = replace(ROW, attributes={"sla.breached": True})
    assert distinct([ROW, judged]) == distinct([judged, ROW]) == [judged]


def test_a_client_and_a_server_that_share_an_id_are_two_spans() -> None:
    client = replace(ROW, kind="CLIENT", service="caller", start_unix_nano=0)
    assert distinct([ROW, client, ROW]) == [client, ROW]


def test_a_span_that_only_follows_its_parent_is_marked() -> None:
    """As Jaeger translates OpenTracing's FOLLOWS_FROM: a parent, and a link to it that says what it is."""
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=b"p" * 8)
    assert row("svc", span).follows is False
    link = span.links.add(trace_id=b"t" * 16, span_id=b"p" * 8)
    assert row("svc", span).follows is False
    link.attributes.append(KeyValue(key="opentracing.ref_type", value=AnyValue(string_value="follows_from")))
    assert row("svc", span).follows is True
    link.span_id = b"o" * 8
    assert row("svc", span).follows is False
