"""The quick way to and from JSON gives what protobuf's own gives, and leaves to it what is odd."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from stagetrace.otlp.decode import json as json_form
from stagetrace.otlp.decode import json as json_spans

VALUES: tuple[dict[str, Any], ...] = (
    {"string_value": "é\n"},
    {"string_value": ""},
    {"int_value": -(2**63)},
    {"int_value": 0},
    {"double_value": 0.1},
    {"double_value": 50.0},
    {"double_value": float("inf")},
    {"double_value": float("nan")},
    {"bool_value": False},
    {"bytes_value": b"\x00\xff"},
    {"array_value": {"values": [{"string_value": "a"}, {}]}},
    {"kvlist_value": {"values": [{"key": "k", "value": {"int_value": 7}}]}},
    {},
)


def made(seed: int) -> ExportTraceServiceRequest:
    """Return a request in which any field may be there or not."""
    draw = random.Random(seed)
    request = ExportTraceServiceRequest()
    for _ in range(draw.randrange(3)):
        resource = request.resource_spans.add(schema_url=draw.choice(("", "https://example/1")))
        if draw.random() < 0.7:
            resource.resource.attributes.add(key="service.name").value.string_value = "s"
        for _ in range(draw.randrange(3)):
            scope = resource.scope_spans.add()
            if draw.random() < 0.7:
                scope.scope.name = "scope"
            for _ in range(draw.randrange(4)):
                _fill(scope.spans.add(), draw)
    return request


def _fill(span: Any, draw: random.Random) -> None:
    span.trace_id, span.span_id = draw.randbytes(16), draw.randbytes(8)
    for name, value in (
        ("trace_state", "a=b"), ("parent_span_id", draw.randbytes(8)), ("name", "é\u2028"), ("kind", 9),
        ("flags", 2**32 - 1), ("start_time_unix_nano", 2**64 - 1), ("end_time_unix_nano", 1),
        ("dropped_attributes_count", 3), ("dropped_events_count", 1), ("dropped_links_count", 2),
    ):  # fmt: skip
        if draw.random() < 0.6:
            setattr(span, name, value)
    for _ in range(draw.randrange(5)):
        key = draw.choice(("k", "k", "é", ""))
        span.attributes.add(key=key, value=draw.choice(VALUES)) if draw.random() < 0.9 else span.attributes.add(key=key)
    if draw.random() < 0.2:
        span.events.add(name="e", time_unix_nano=5).attributes.add(key="x").value.double_value = 1.0
    if draw.random() < 0.2:
        span.links.add(trace_id=draw.randbytes(16), span_id=draw.randbytes(8))
    if draw.random() < 0.5:
        span.status.SetInParent()
        span.status.code = draw.choice((0, 2, 7))


def document(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """Return what protobuf's JSON is, with ids in hex."""
    found = json_format.MessageToDict(request, use_integers_for_enums=True)
    for resource in found.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                for blocker in (span, *span.get("links", ())):
                    for key in ("traceId", "spanId", "parentSpanId"):
                        if key in blocker:
                            blocker[key] = base64.b64decode(blocker[key]).hex()
    return dict(found)


@pytest.mark.parametrize("seed", range(300))
def test_what_is_written_is_protobufs_json_and_comes_back(seed: int) -> None:
    request = made(seed)
    line = json_form.encode(request)
    assert line == json.dumps(document(request), ensure_ascii=False, separators=(",", ":"))
    back, rejected, _ = json_form.parse(line)
    assert rejected == 0
    assert back.SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)


ODD_VALUES: tuple[dict[str, Any], ...] = (
    {"intValue": "1e3"}, {"intValue": 1.0}, {"intValue": "--1"}, {"intValue": True}, {"intValue": "9" * 30}, {},
    {"doubleValue": "NaN"}, {"doubleValue": 1e999}, {"doubleValue": 10**400}, {"boolValue": 1}, {"no_such": 1},
    {"stringValue": "x", "intValue": 1}, {"stringValue": None},
)  # fmt: skip
ODD: tuple[tuple[str, Any], ...] = (
    ("traceId", "AA" * 15 + " A"), ("traceId", None), ("traceId", 7), ("spanId", "zz"), ("name", None), ("name", 5),
    ("name", "\ud800"), ("kind", "SPAN_KIND_SERVER"), ("kind", "2"), ("kind", 2.0), ("kind", True), ("kind", 2**40),
    ("startTimeUnixNano", "-1"), ("startTimeUnixNano", 2**64), ("startTimeUnixNano", 1.0),
    ("startTimeUnixNano", "\u0661"), ("startTimeUnixNano", " 1"), ("startTimeUnixNano", True), ("attributes", None),
    ("attributes", {}), ("attributes", [None]), ("attributes", [{"key": "a"}]),
    ("attributes", [{"key": 1, "value": {"boolValue": True}}]),
    ("attributes", [{"key": "a", "value": {"stringValue": "x"}, "other": 1}]), ("status", None),
    ("status", {"code": "2"}), ("status", {"other": 1}), ("flags", -1), ("flags", 2**32), ("no_such", 1),
    ("trace_id", "00" * 16), ("links", [{}]), ("droppedAttributesCount", -1), ("traceState", 1),
    *(("attributes", [{"key": "a", "value": value}]) for value in ODD_VALUES),
)  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ODD)
def test_what_is_odd_is_read_or_refused_as_protobuf_does(key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    span = {"traceId": "0a" * 16, "spanId": "0b" * 8, "name": "before", "kind": 2, key: value}
    line = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    quick, *refused = json_form.parse(line)
    monkeypatch.setattr(json_spans, "read", lambda *_: False)
    slow, *rest = json_form.parse(line)
    assert (quick.SerializeToString(), refused) == (slow.SerializeToString(), rest)


def test_ordinary_spans_take_the_quick_way() -> None:
    """Else it would be of no use, and nobody would notice."""
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="n", kind=Span.SPAN_KIND_SERVER, start_time_unix_nano=5)
    span.status.code = Status.STATUS_CODE_ERROR
    for value in ({"string_value": "a"}, {"int_value": 1}, {"double_value": 0.5}, {"bool_value": True}):
        span.attributes.add(key="k", value=value)
    written = json_spans.write(span)
    assert written is not None
    read = Span()
    assert json_spans.read(json.loads(json.dumps(written)), read)
    assert read == span
