"""OTLP to columns and back: nothing is lost, whatever a request holds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from heavy import fuzz_cases
from stagetrace import semconv
from stagetrace.otlp.decode import request as decoder
from stagetrace.otlp.decode.arrow_table import table
from stagetrace.otlp.decode.columns import TYPED
from stagetrace.otlp.decode.request import SMALL, MalformedRequest, decode
from stagetrace.otlp.decode.to_otlp import request_of
from stagetrace.otlp.decode.wire import varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

FUZZ_CASES = fuzz_cases(3_000)


def request(*spans: Span) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    resource_spans = made.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "api"
    resource_spans.scope_spans.add().spans.extend(spans)
    return made


def span(name: str = "one", **fields: Any) -> Span:
    return Span(**{"trace_id": b"t" * 16, "span_id": b"s" * 8, "name": name, **fields})


def attribute(key: str, **value: Any) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(**value))


def rows(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table([decode(data)]).to_pylist()
    return found


def sorted_attributes(message: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """Return the request with each span's attributes sorted by key, stable: their order means nothing to OTLP."""
    for one in spans(message):
        kept = sorted(one.attributes, key=lambda pair: pair.key)
        del one.attributes[:]
        one.attributes.extend(kept)
    return message


def spans(message: ExportTraceServiceRequest) -> Sequence[Span]:
    return [one for resource in message.resource_spans for scope in resource.scope_spans for one in scope.spans]


def assert_kept(sent: ExportTraceServiceRequest) -> None:
    """Check that what comes back out of the columns is what was sent."""
    data = sent.SerializeToString()
    back = request_of(rows(data))
    assert sorted_attributes(back) == sorted_attributes(ExportTraceServiceRequest.FromString(data))


def test_every_field_of_the_protocol_survives() -> None:
    """Walk the descriptors and set each field: a field that a newer protocol brings is covered the day it comes."""
    sent = ExportTraceServiceRequest()
    _fill(sent, depth=0)
    resource_spans = sent.resource_spans[0]
    first = resource_spans.scope_spans[0].spans[0]
    first.trace_id, first.span_id, first.parent_span_id = b"t" * 16, b"s" * 8, b"p" * 8
    assert {field.name for field, _ in first.ListFields()} == {field.name for field in Span.DESCRIPTOR.fields}
    assert_kept(sent)


def _fill(message: Message, depth: int) -> None:
    """Set each field; of a oneof, one after the other in messages that repeat."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is None or field is field.containing_oneof.fields[0]:
            _set(message, field, depth)


def _set(message: Message, field: Any, depth: int) -> None:
    if field.message_type is None:
        plain: Any = {
            FieldDescriptor.CPPTYPE_STRING: b"bytes" if field.type == FieldDescriptor.TYPE_BYTES else "text",
            FieldDescriptor.CPPTYPE_BOOL: True,
            FieldDescriptor.CPPTYPE_DOUBLE: 0.1,
        }.get(field.cpp_type, 3 if field.enum_type is None else 2)
        if field.is_repeated:
            getattr(message, field.name).append(plain)
        else:
            setattr(message, field.name, plain)
    elif field.is_repeated:
        if field.message_type.name == "KeyValue" and depth < 8:
            for kind in AnyValue.DESCRIPTOR.fields:
                pair = getattr(message, field.name).add(key=f"key.{kind.name}", key_strindex=4)
                _set(pair.value, kind, depth + 4)
        elif depth < 12:
            _fill(getattr(message, field.name).add(), depth + 1)
    elif depth < 12:
        getattr(message, field.name).SetInParent()
        _fill(getattr(message, field.name), depth + 1)


@pytest.mark.parametrize(
    "attributes",
    [
        [attribute(key, **{kind: value})]
        for key in TYPED
        for kind, value in (
            *(("string_value", "text"), ("string_value", ""), ("bool_value", True), ("bool_value", False)),
            *(("int_value", 7), ("int_value", 0), ("int_value", -1), ("double_value", 0.1), ("double_value", 0.0)),
            *(("double_value", -0.0), ("double_value", float("inf")), ("bytes_value", b"\xff")),
        )
    ]
    + [
        [KeyValue(key=key)]  # no value at all
        for key in (*TYPED, "own")
    ]
    + [
        [attribute("http.route", string_value="/a"), attribute("http.route", string_value="/b")],
        [attribute("http.route", string_value="/a"), attribute("http.route", int_value=1)],
        [attribute("own", string_value="x" * 100_000), attribute("http.route", string_value="/" * 300)],
        [attribute("", string_value=""), attribute("own")],
        [KeyValue(key="http.route", value=AnyValue(string_value="/a"), key_strindex=5)],
        [attribute("ml.stage.rerank.ms", double_value=1.5), attribute("ml.stage.cache.ms", double_value=2.0)],
        [attribute("ml.stage.rerank.ms", double_value=1.5), attribute("ml.stage.rerank.ms", double_value=2.0)],
    ],
    ids=lambda attributes: repr(attributes)[:200],
)
def test_attributes_of_every_type_survive_under_every_key(attributes: Sequence[KeyValue]) -> None:
    assert_kept(request(span(attributes=attributes), span("after", attributes=attributes)))


@pytest.mark.parametrize(
    "odd",
    [
        {"parent_span_id": bytes(8)},
        {"start_time_unix_nano": 2**64 - 1, "end_time_unix_nano": 2**63},
        {"start_time_unix_nano": 2**63 - 1, "end_time_unix_nano": 1},
        {"kind": 77},
        {"kind": -3},
        {"flags": 2**32 - 1},
        {"name": "ü" * 300},
        {"name": ""},
        {"status": {}},
        {"status": {"code": 2}},
        {"status": {"code": 2, "message": "why"}},
        {"status": {"code": 99}},
        {"status": {"message": "only"}},
        {"trace_state": "a=b"},
        {"dropped_attributes_count": 1, "dropped_events_count": 2, "dropped_links_count": 3},
        {"events": [{"name": "e", "time_unix_nano": 2**64 - 1}], "links": [{"trace_id": b"x", "span_id": b"y"}]},
    ],
    ids=repr,
)
def test_odd_values_survive(odd: dict[str, Any]) -> None:
    assert_kept(request(span(), span(**odd), span()))


def test_columns_say_what_the_span_says() -> None:
    """The columns are what queries see; each is checked once against what was sent."""
    values: dict[str, Any] = {
        "string_value": "text", "bool_value": True, "int_value": 7, "double_value": 0.25,
    }  # fmt: skip
    sent = span(
        parent_span_id=b"p" * 8, kind=2, status={"code": 2}, flags=0x301, start_time_unix_nano=5, end_time_unix_nano=9,
        attributes=[attribute(key, **{typed.kind: values[typed.kind]}) for key, typed in TYPED.items()]
        + [attribute(semconv.stage_total_ms("rerank"), double_value=2.0)],
    )  # fmt: skip
    (row,) = rows(request(sent).SerializeToString())
    assert row["rest"] == Span(attributes=sent.attributes[-1:]).SerializeToString()
    assert {typed.column: row[typed.column] for typed in TYPED.values()} == {
        typed.column: values[typed.kind] for typed in TYPED.values()
    }
    fixed = ("trace_id", "span_id", "parent_span_id", "name", "kind", "status", "start_unix_nano", "end_unix_nano")
    assert [row[name] for name in fixed] == [b"t" * 16, b"s" * 8, b"p" * 8, "one", 2, 2, 5, 9]
    assert (row["flags"], row["service"], row["other_ms"]) == (0x301, "api", 2.0)


def test_a_whole_number_counts_where_a_fraction_was_meant() -> None:
    """`sla.threshold_ms: 50` is an int for some SDKs. It is a threshold all the same, and stays an int."""
    sent = request(span(attributes=[attribute(semconv.SLA_THRESHOLD_MS, int_value=50)]))
    assert rows(sent.SerializeToString())[0]["threshold_ms"] == 50.0
    assert_kept(sent)


def test_fields_of_a_newer_protocol_survive() -> None:
    """Unknown fields, anywhere, come back as the bytes they were."""
    unknown = varint(200 << 3 | 2) + varint(3) + b"new"
    small = varint(29 << 3) + b"\x07"
    inner = span(attributes=[attribute("own", int_value=1)], status={"code": 1}).SerializeToString()
    data = inner + unknown + small + unknown
    scope = b"\x12" + varint(len(data)) + data + small
    resource = b"\x12" + varint(len(scope)) + scope + unknown
    sent = b"\x0a" + varint(len(resource)) + resource
    assert request_of(rows(sent)).SerializeToString() == ExportTraceServiceRequest.FromString(sent).SerializeToString()
    assert unknown + small + unknown in request_of(rows(sent)).SerializeToString()


def _scoped(data: bytes) -> bytes:
    scope = b"\x12" + varint(len(data)) + data
    resource = b"\x12" + varint(len(scope)) + scope
    return b"\x0a" + varint(len(resource)) + resource


@pytest.mark.parametrize("seed", range(20))
def test_fields_in_any_order_and_more_than_once_mean_the_same(seed: int) -> None:
    """Protobuf allows any order, and the last of a field counts; no encoder does it, and it is no reason to lose."""
    draw = random.Random(seed)
    parts = [
        one.SerializeToString()
        for one in (
            Span(trace_id=b"t" * 16), Span(span_id=b"s" * 8), Span(name="a"), Span(name="b"),
            Span(kind=Span.SPAN_KIND_SERVER),
            Span(parent_span_id=b"p" * 8), Span(start_time_unix_nano=2**64 - 1), Span(start_time_unix_nano=3),
            Span(flags=1), Span(flags=2), Span(status=Status(message="m")),
            Span(status=Status(code=Status.STATUS_CODE_ERROR)),
            Span(attributes=[attribute("http.route", string_value="/a")]),
            Span(attributes=[attribute("own", int_value=1)]), Span(events=[Span.Event(name="e")]),
        )
    ]  # fmt: skip
    draw.shuffle(parts)
    data = _scoped(b"".join(parts))
    sent = sorted_attributes(ExportTraceServiceRequest.FromString(data))
    assert sorted_attributes(request_of(rows(data))) == sent


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"trace_id": b""}, "trace id"),
        ({"trace_id": bytes(16)}, "trace id"),
        ({"trace_id": b"t" * 15}, "trace id"),
        ({"span_id": bytes(8)}, "span id"),
        ({"span_id": b"s" * 9}, "span id"),
        ({"parent_span_id": b"p"}, "parent span id"),
    ],
)
def test_a_bad_span_is_refused_and_its_neighbours_stay(bad: dict[str, Any], reason: str) -> None:
    mark = attribute("http.route", string_value="/a")
    sent = request(span("before"), span("bad", **bad, attributes=[mark]), span("after", attributes=[mark]))
    decoded = decode(sent.SerializeToString())
    assert (decoded.accepted, decoded.rejected) == (2, 1)
    assert reason in str(decoded.reason)
    assert [row["name"] for row in table([decoded]).to_pylist()] == ["before", "after"]
    assert [row["route"] for row in table([decoded]).to_pylist()] == [None, "/a"]


def test_invalid_text_costs_one_span() -> None:
    """Protobuf refuses the whole request for one byte that is no UTF-8; its neighbours are kept all the same."""
    good = request(span("before"), span("BROKEN"), span("after")).SerializeToString()
    decoded = decode(good.replace(b"BROKEN", b"BRO\xffEN"))
    assert (decoded.accepted, decoded.rejected) == (2, 1)
    assert [row["name"] for row in table([decoded]).to_pylist()] == ["before", "after"]


@pytest.mark.parametrize("data", [b"\xff" * 30, b"\x0a\x7f", b"no protobuf at all", b"\x0a\xff\xff\xff\xff\x0f"])
def test_what_is_no_otlp_is_refused_as_that(data: bytes) -> None:
    with pytest.raises(MalformedRequest, match="no OTLP"):
        decode(data)


def test_nothing_is_nothing() -> None:
    assert decode(b"")[:4] == ([], 0, 0, None)
    assert decode(ExportTraceServiceRequest(resource_spans=[ResourceSpans()]).SerializeToString())[:4] == (
        [],
        0,
        0,
        None,
    )


def test_a_large_request_is_read_as_a_small_one() -> None:
    many = [
        span(str(at), span_id=at.to_bytes(8, "big"), attributes=[attribute("own", string_value="x" * 300)])
        for at in range(1, 6000)
    ]
    sent = request(*many)
    assert len(sent.SerializeToString()) > SMALL
    assert_kept(sent)


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x12\x00" * 2_000_000,  # spans of nothing
        (b"\x12" + bytes((60,)) + b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8 + b"\x4a\x00" * 16) * 60_000,
    ],
    ids=["empty spans", "empty attributes"],
)
def test_hostile_sizes_stay_in_bounds(hostile: bytes) -> None:
    """A few MiB of nearly empty parts must not unpack to gigabytes."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inner = b"\x12" + varint(len(hostile)) + hostile
    try:
        decoded = decode(b"\x0a" + varint(len(inner)) + inner)
    except MalformedRequest:
        pass
    else:
        assert decoded.accepted + decoded.rejected >= 60_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*TYPED, "own", "", "ml.stage.x.ms"]),
            st.one_of(
                st.text(max_size=200), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)
            ),
        ),
        max_size=12,
    ),
    st.text(max_size=150),
)
def test_any_attributes_survive(pairs: Iterable[tuple[str, Any]], name: str) -> None:
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
    attributes = [attribute(key, **{kinds[type(value)]: value}) for key, value in pairs]
    assert_kept(request(span(name, attributes=attributes), span()))


@pytest.mark.heavier(f"{FUZZ_CASES:,} mutated requests")
def test_mutated_requests_never_break_it() -> None:
    """What is read of a broken request is what protobuf reads of its parts; anything else is refused, never a crash."""
    draw = random.Random(7)
    seeds = [_seed(draw).SerializeToString() for _ in range(20)]
    for _ in range(FUZZ_CASES):
        data = _mutated(draw, draw.choice(seeds))
        try:
            decoded = decode(data)
        except MalformedRequest:
            continue
        if decoded.accepted:
            back = request_of(table([decoded]).to_pylist())
            assert len(spans(back)) == decoded.accepted
            if not decoded.rejected:
                assert len(spans(ExportTraceServiceRequest.FromString(data))) == decoded.accepted


@pytest.mark.parametrize("tag", [b"\x00", b"\x07", b"\xc8\xcf\xb4\xab\x54", b"\xf8\xff\xff\xff\x1f"])
def test_a_tag_that_is_no_field_is_refused(tag: bytes) -> None:
    """Field number 0, and numbers beyond 32 bits, which protobuf does not read: the spans before are kept."""
    good = request(span()).SerializeToString()
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(good + tag + b"\x01")
    decoded = decode(good + tag + b"\x01")
    assert (decoded.accepted, decoded.rejected) == (1, 1)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_group_in_a_span_is_kept_and_spoils_nothing(at: int) -> None:
    """Protobuf reads groups, which OTLP has none of, as fields that it does not know."""
    group = b"\xf3\x07" + b"\x08\x01" + b"\xf4\x07"  # field 126: begin, a number, end
    parts = [span(str(number), span_id=bytes([number + 1]) * 8).SerializeToString() for number in range(3)]
    parts[at] += group
    body = ScopeSpans().SerializeToString() + b"".join(b"\x12" + varint(len(one)) + one for one in parts)
    inner = b"\x12" + varint(len(body)) + body
    decoded = decode(b"\x0a" + varint(len(inner)) + inner)
    assert (decoded.accepted, decoded.rejected) == (3, 0)
    back = spans(request_of(table([decoded]).to_pylist()))
    assert [one.SerializeToString() for one in back] == parts


def test_what_came_before_too_many_bad_spans_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_MOST_REFUSED", 3)
    bad = [span("x" * 40, trace_id=b"short") for _ in range(9)]
    decoded = decode(request(span("good"), *bad, span("after")).SerializeToString())
    assert (decoded.accepted, decoded.rejected) == (1, 5)
    assert [one["name"] for one in table([decoded]).to_pylist()] == ["good"]
    assert "the remainder was not read" in str(decoded.reason)


def _seed(draw: random.Random) -> ExportTraceServiceRequest:
    many = []
    for at in range(draw.randrange(1, 6)):
        one = span(f"span {at}", span_id=draw.randbytes(8), kind=2, start_time_unix_nano=at)
        one.attributes.add(key=draw.choice(list(TYPED))).value.string_value = "text"
        one.attributes.add(key="own").value.kvlist_value.values.add(key="k").value.array_value.values.add(int_value=1)
        one.events.add(name="event", time_unix_nano=3)
        many.append(one)
    return request(*many)


def _mutated(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(changed))
        match draw.randrange(5):
            case 0:
                changed[at] = draw.randrange(256)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = draw.randbytes(draw.randrange(1, 9))
            case 3:
                del changed[at : at + draw.randrange(1, 9)]
            case _:
                changed[at : at + 5] = b"\xff\xff\xff\xff\x0f"
        if not changed:
            break
    return bytes(changed)


def test_messages_around_spans_are_kept_apart() -> None:
    """Two resources and two scopes come back as two each, with their schema URLs."""
    sent = ExportTraceServiceRequest()
    for number in range(2):
        resource = ResourceSpans(schema_url=f"r{number}")
        for scope in range(2):
            resource.scope_spans.append(ScopeSpans(schema_url=f"s{scope}", spans=[span(f"{number}{scope}")]))
        sent.resource_spans.append(resource)
    assert_kept(sent)
