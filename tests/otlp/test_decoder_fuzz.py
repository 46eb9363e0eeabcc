"""Any spans, as encoders write them and as none does, are decoded to what protobuf's own messages hold."""

from __future__ import annotations

import random
import struct
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from backend.mutator import Mutator
from heavy import HEAVY, fuzz_cases
from stagetrace import semconv
from stagetrace.otlp.decode import request as decoder
from stagetrace.otlp.decode import spans as decode_spans
from stagetrace.otlp.decode.arrow_table import table
from stagetrace.otlp.decode.columns import DOUBLE, FIXED, INT, OTHER_MS, REST, SPARSE, TYPED
from stagetrace.otlp.decode.request import SMALL, TOO_SMALL, MalformedRequest, decode
from stagetrace.otlp.decode.spans import LARGEST, LATEST_NS, SpanColumns, take_apart
from stagetrace.otlp.decode.to_otlp import request_of as back_to_otlp
from stagetrace.otlp.decode.wire import is_readable, varint
from stagetrace.system.bounded import BoundedCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FUZZ_CASES = fuzz_cases(3_000)
OWN: Final = [name for name, _ in (*FIXED, *SPARSE) if name != REST]
HEAD: Final = b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8


# --- what is right, by protobuf's messages


def columns_of(span: Span) -> dict[str, Any] | None:
    """Return the columns of a span that have a value, all but REST; None of a span that is refused."""
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or len(span.parent_span_id) not in {0, 8}:
        return None
    if not any(span.trace_id) or not any(span.span_id) or not is_readable(Span, span.SerializeToString()):
        return None
    found: dict[str, Any] = {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id if any(span.parent_span_id) else None,
        "name": span.name,
        "kind": span.kind,
        "status": span.status.code if span.HasField("status") else None,
        "start_unix_nano": min(span.start_time_unix_nano, LATEST_NS),
        "end_unix_nano": min(span.end_time_unix_nano, LATEST_NS),
        "flags": span.flags,
    }
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value: Any = None if kind is None else getattr(pair.value, kind)
        number = float(value) if kind in (INT, DOUBLE) and isfinite(value) else None
        typed = TYPED.get(pair.key)
        if typed is not None:
            found[typed.column] = number if typed.kind == DOUBLE else value if typed.kind == kind else None
        elif number is not None and semconv.stage_of_total(pair.key):
            found[OTHER_MS] = found[OTHER_MS] + number if OTHER_MS in found else number
    return found


def normal(span: Span) -> bytes:
    """Return a span with its attributes sorted by key, stable: their order means nothing to OTLP."""
    copy = Span.FromString(span.SerializeToString())
    kept = sorted(copy.attributes, key=lambda pair: pair.key)
    del copy.attributes[:]
    copy.attributes.extend(kept)
    return copy.SerializeToString()


def right(data: bytes) -> int:
    """Check what is decoded of a request that protobuf reads; return the number of spans, and of others 0."""
    try:
        sent = ExportTraceServiceRequest.FromString(data)
    except DecodeError:
        return 0
    spans = [one for resource in sent.resource_spans for scope in resource.scope_spans for one in scope.spans]
    wanted = [(one, columns) for one in spans if (columns := columns_of(one)) is not None]
    try:
        found = decode(data)
    except MalformedRequest:
        assert not wanted
        return 0
    if found.accepted < len(wanted):  # what nests too deep was replaced by a later value of its field: only bytes tell
        assert not is_readable(ExportTraceServiceRequest, data)
        return 0
    assert found.accepted == len(wanted)
    columns = table([found])
    columns.validate(full=True)
    rows = columns.to_pylist()
    for row, (_, expected) in zip(rows, wanted, strict=True):
        # As text, in which -0.0 is not 0.0.
        assert repr([row.get(name) for name in OWN]) == repr([expected.get(name) for name in OWN])
    back = back_to_otlp(rows)
    spans = [one for resource in back.resource_spans for scope in resource.scope_spans for one in scope.spans]
    assert [normal(one) for one in spans] == [normal(one) for one, _ in wanted]
    return found.accepted


def delimited(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def request_of(spans: Iterable[bytes], resource: bytes = b"", scope: bytes = b"") -> bytes:
    """Return a request of serialized spans, with whatever else its two messages have."""
    return delimited(1, resource + delimited(2, scope + b"".join(delimited(2, one) for one in spans)))


# --- what a span may be made of, as encoders write it and as none does

LONG: Final = "x" * 300


def nested(depth: int) -> AnyValue:
    """Return a value of so many arrays within each other; 29 may be in an attribute of a span."""
    value = innermost = AnyValue()
    for _ in range(depth):
        innermost = innermost.array_value.values.add()
    return value


VALUES: Final[tuple[AnyValue, ...]] = (
    *(AnyValue(string_value=text) for text in ("", "text", "ü" * 40, "y" * 63, "y" * 64, LONG)),
    *(AnyValue(bool_value=value) for value in (True, False)),
    *(AnyValue(int_value=value) for value in (0, 1, -1, 127, 128, 2**63 - 1, -(2**63))),
    *(AnyValue(double_value=value) for value in (0.0, -0.0, 0.1, 1e299, 1e301, float("inf"), float("-inf"))),
    AnyValue(double_value=float("nan")), AnyValue(bytes_value=b"\xff"), AnyValue(),
    AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)])), AnyValue(kvlist_value=KeyValueList()),
    nested(29), nested(30), nested(46),
)  # fmt: skip
KEYS: Final = (*TYPED, "", "own", "ml.stage.", "ml.stage.x.ms", "ml.stage.x", "o" * 63, "o" * 64, "o" * 130)


def overlong(number: int) -> bytes:
    """Return a number in one byte more than it takes, as protobuf reads it and no encoder writes it."""
    written = bytearray(varint(number))
    written[-1] |= 0x80
    return bytes((*written, 0))


@st.composite
def attributes(draw: st.DrawFn) -> bytes:
    """Draw the field of an attribute."""
    key, value = draw(st.sampled_from(KEYS)).encode(), draw(st.sampled_from(VALUES)).SerializeToString()
    short: Any = draw(st.sampled_from((varint, varint, varint, overlong)))
    pair: bytes = draw(
        st.sampled_from(
            (
                *[b"\x0a" + short(len(key)) + key + b"\x12" + short(len(value)) + value] * 6,
                b"\x12" + varint(len(value)) + value + b"\x0a" + varint(len(key)) + key,
                KeyValue(key=key.decode(), key_strindex=7).SerializeToString() + delimited(2, value),
                delimited(1, key) + delimited(2, value + VALUES[0].SerializeToString()),
                delimited(1, key) + delimited(2, value) + delimited(30, b"newer"),
                delimited(1, key) + delimited(2, b"\x10\x02"), delimited(1, key) + delimited(2, b"\x18\x81\x00"),
                delimited(1, key), b"",
            )
        )
    )  # fmt: skip
    length: Any = draw(st.sampled_from((varint, varint, overlong)))
    return b"\x4a" + bytes(length(len(pair))) + pair


def fixed(tag: int, *times: int) -> list[bytes]:
    return [bytes((tag,)) + struct.pack("<Q", time) for time in times]


FIELDS: Final[tuple[bytes, ...]] = (
    *(delimited(4, parent) for parent in (b"p" * 8, bytes(8), b"", b"p" * 7, b"p" * 200)),
    *(delimited(5, name) for name in (b"", b"name", b"n" * 127, b"n" * 128, "ü".encode() * 200)),
    *(b"\x30" + number for number in (b"\x00", b"\x02", b"\x7f", b"\x80\x01", b"\xff" * 9 + b"\x01")),
    *fixed(0x39, 0, 1, LATEST_NS, LATEST_NS + 1, 2**64 - 1),
    *fixed(0x41, 0, 1, LATEST_NS, LATEST_NS + 1, 2**64 - 1),
    *(
        delimited(15, status)
        for status in (
            b"", b"\x18\x00", b"\x18\x02", b"\x18\x80\x01", b"\x08\x01", b"\x12\x00", b"\x18\x01\x18\x02",
            Status(code=Status.STATUS_CODE_OK, message="m").SerializeToString(),
        )
    ),
    *(b"\x85\x01" + struct.pack("<I", flags) for flags in (0, 0x301, 2**32 - 1)),
    *(delimited(3, b"a=b"), delimited(11, b""), delimited(13, Span.Link(trace_id=b"x").SerializeToString())),
    b"\x50\x07", b"\xca\x00\x00", delimited(200, b"newer"), b"\xf3\x07\x08\x01\xf4\x07", HEAD[:18], HEAD[18:],
)  # fmt: skip


@st.composite
def wild_spans(draw: st.DrawFn) -> bytes:
    """Draw a span of parts in any order, each any number of times."""
    parts = st.one_of(st.sampled_from(FIELDS), attributes())
    head = draw(st.sampled_from([HEAD] * 9 + [b"", HEAD[18:] + HEAD[:18], b"\x0a\x10" + bytes(16) + HEAD[18:]]))
    return head + b"".join(draw(st.lists(parts, max_size=9)))


@pytest.mark.thorough
@pytest.mark.heavier("5,000 requests")
@settings(max_examples=5_000 if HEAVY else 150, deadline=None)
@given(st.lists(wild_spans(), max_size=4), st.binary(max_size=12), st.booleans())
def test_any_spans_give_the_same(spans: list[bytes], junk: bytes, large: bool) -> None:
    """As a small request, which protobuf has checked, or as a large one, which it has not; and beside empty ones."""
    data = request_of(spans, delimited(1, b""), delimited(3, b"url"))
    right(data)
    right(b"\x0a\x00" + data + delimited(1, b"\x12\x00" + delimited(2, delimited(3, bytes(30)))))
    right(request_of([*spans, HEAD + junk]))
    if large:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder, "SMALL", 0)
            right(data)


@pytest.mark.parametrize("key", KEYS)
def test_every_value_under_every_key_gives_the_same(key: str) -> None:
    """Two of them too, in each order: the last of a key counts, and all are kept."""
    pairs = [KeyValue(key=key, value=value) for value in VALUES]
    spans = [Span(attributes=[pair]) for pair in pairs]
    spans += [Span(name="two", attributes=[pair, other]) for pair in pairs for other in pairs]
    right(request_of(HEAD + one.SerializeToString() for one in spans))


def test_equal_attributes_are_equal_bytes() -> None:
    """However they are written: a search by attribute looks for the bytes in what a span has beside its columns."""
    for kept in (*VALUES[:5], *VALUES[6:13]):
        value = kept.SerializeToString()
        wanted = Span(attributes=[KeyValue(key="own", value=kept)]).SerializeToString()
        numbers = (value[:1] + overlong(value[1]) + value[2:],) if value[0] in {0x0A, 0x10, 0x18} else ()
        pairs = [b"\x0a\x83\x00own" + delimited(2, value), b"\x0a\x03own\x12" + overlong(len(value)) + value]
        pairs += [delimited(2, value) + b"\x0a\x03own"]
        pairs += [b"\x0a\x03own" + delimited(2, one) for one in numbers if value[1] < 0x80]
        pair = b"\x0a\x03own" + delimited(2, value)
        fields = [*(delimited(9, one) for one in pairs), b"\x4a" + overlong(len(pair)) + pair]
        fields += [b"\xca\x00" + delimited(9, pair)[1:]]
        found = decode(request_of(HEAD + one for one in fields))
        assert set(table([found])["rest"].to_pylist()) == {wanted}


def test_fields_in_their_places_give_the_same() -> None:
    right(request_of(HEAD + one for one in FIELDS))
    right(request_of(HEAD + one + other for one in FIELDS for other in FIELDS))


def _good() -> ExportTraceServiceRequest:
    draw = random.Random(3)
    made = ExportTraceServiceRequest()
    for number in range(2):
        resource = made.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = f"service {number}"
        scope = resource.scope_spans.add()
        for at in range(3):
            one = scope.spans.add(trace_id=draw.randbytes(16), span_id=draw.randbytes(8), name=f"span {at}", kind=at)
            one.start_time_unix_nano, one.end_time_unix_nano, one.flags = at, at + 5, 0x101
            for key in draw.sample(list(TYPED), 6):
                one.attributes.add(key=key, value=draw.choice(VALUES))
            one.attributes.add(key="own").value.kvlist_value.values.add(key="k").value.array_value.values.add()
            one.status.code = Status.STATUS_CODE_ERROR
            one.events.add(name="event", time_unix_nano=3)
    return made


def fuzzed() -> Iterator[bytes]:
    """Yield mutated requests, mutated spans among good ones, and such as were large."""
    mutator, good = Mutator(11, _good()), _good()
    first, last = (one.SerializeToString() for one in good.resource_spans[0].scope_spans[0].spans[:2])
    whole = good.SerializeToString()
    for number in range(FUZZ_CASES):
        yield mutator.mutated(whole) if number % 2 else mutator.span_among_good_ones(first, last)


@pytest.mark.thorough
@pytest.mark.sample
@pytest.mark.heavier(f"{FUZZ_CASES:,} mutated requests")
def test_mutated_requests_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third as if it were large, so that its spans are checked one by one."""
    accepted = 0
    for number, data in enumerate(fuzzed()):
        monkeypatch.setattr(decoder, "SMALL", 0 if number % 3 == 0 else SMALL)
        try:
            accepted += right(data) or decode(data).accepted
        except MalformedRequest:
            continue
        except BaseException:
            print(data.hex())  # noqa: T201 -- the case, for the fix
            raise
    assert accepted > FUZZ_CASES


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=20, max_size=140).map(lambda one: delimited(2, one)),
            st.binary(max_size=9).map(lambda one: delimited(3, one)),
            st.sampled_from([b"\x12\x00", b"\x12\x9c\x80\x00" + b"x" * 28, b"\x92\x00\x1c" + b"x" * 28]),
        )
    ),
    st.sampled_from([b"", b"\x12", b"\x12\x7f", b"\x12\xff", b"\x12\x80\x01", b"\x0b", b"\xff" * 11]),
    st.integers(0, 4),
)
def test_any_message_is_taken_apart(fields: list[bytes], end: bytes, most: int) -> None:
    """Behind and before others, to its end or its first bytes that are no field."""
    data = b"\x12\x01" + b"".join(fields) + end
    found = take_apart(data + b"\x12" + bytes(40), 2, len(data), most)
    read: list[tuple[bytes, bytes | None]] = []
    for field in fields:
        if sum(size is None for _, size in read) > most:
            break
        is_held = field[:1] in {b"\x12", b"\x92"}
        content = field[-28:] if field[-28:] == b"x" * 28 else field[2 if len(field) < 130 else 3 :]
        read.append((field, (content if len(content) >= 28 else None) if is_held else b""))
    held = [content for _, content in read if content]
    places = struct.iter_unpack("@QQ", found.held)
    assert [data[first:after] for first, after in places] == held
    assert found.around == b"".join(field for field, content in read if content == b"")
    assert found.small == sum(content is None for _, content in read)
    assert found.broken is (end != b"" and found.small <= most)
    kept = [bool(content) for _, content in read]
    first, last = (kept.index(True), len(kept) - kept[::-1].index(True)) if held else (0, 0)
    assert found.dense is all(kept[first:last])


def test_a_part_that_is_too_large_is_reported() -> None:
    for size in (LARGEST - 5, LARGEST - 4):
        data = delimited(3, bytes(size))
        assert take_apart(data, 0, len(data), 1).large is (len(data) > LARGEST)


@pytest.mark.parametrize("most", [0, 2, 5, 8])
def test_no_span_is_read_after_as_many_bad_ones(most: int) -> None:
    spans = [HEAD, HEAD + delimited(4, b"p"), HEAD[:18] + delimited(2, b"s") + delimited(5, b"no span id"), HEAD] * 3
    found = SpanColumns()
    refused = found.add(map(Span.FromString, spans), most)
    assert sum(refused.values()) == min(most + 1, 6)
    assert found.size == {0: 1, 2: 3, 5: 5, 8: 6}[most]


def test_spans_of_all_sizes_are_read_as_a_whole() -> None:
    """5 MiB of them, one of which alone is 2 MB."""
    draw = random.Random(5)
    spans = [
        Span(attributes=[KeyValue(key="own", value=AnyValue(string_value="x" * draw.randrange(9000)))])
        for _ in range(900)
    ]
    spans[450].attributes.add(key="http.route").value.string_value = "/" * 2_000_000
    data = request_of(HEAD + one.SerializeToString() for one in spans)
    assert len(data) > SMALL
    right(data)
    small = [b"\x0a\x10" + struct.pack(">QQ", 1, at) + HEAD[18:] for at in range(9000)]
    right(request_of(small))  # which take more in columns than in the request


@pytest.mark.parametrize("between", [b"\x12\x00", delimited(3, b"a schema URL"), delimited(40, b"newer")])
def test_spans_with_something_between_are_each_read_once(between: bytes) -> None:
    """What is too small to be a span is counted there, and not as a span without ids."""
    spans = [delimited(2, HEAD + delimited(5, name)) for name in (b"a", b"b", b"")]
    found = decode(delimited(1, delimited(2, between.join(spans))))
    assert table([found])["name"].to_pylist() == ["a", "b", ""]
    assert found.reason == (TOO_SMALL if between == b"\x12\x00" else None)
    assert found.rejected == (2 if between == b"\x12\x00" else 0)


def test_spans_of_several_requests_make_one_table() -> None:
    """Also when one request comes twice, and some have no span."""
    requests = [_good().SerializeToString(), b"", request_of([HEAD, HEAD + FIELDS[5]]), request_of([])]
    found = [decode(one) for one in requests * 2]
    wanted = [row for one in found for row in table([one]).to_pylist()]
    names = table(found).column_names
    assert table(found).to_pylist() == [{name: row.get(name) for name in names} for row in wanted]
    assert table([]).num_rows == 0


def test_what_has_not_been_decoded_before_is_decoded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes and remainders of spans are remembered, a bounded number of them."""
    monkeypatch.setattr(decode_spans, "_known", BoundedCache(3))
    data = _good().SerializeToString()
    for _ in range(3):
        right(data)
        assert len(decode_spans._known) <= 3
