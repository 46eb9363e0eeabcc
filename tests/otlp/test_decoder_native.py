"""The native decoder and the Python one decode all input, malformed or not, to the same."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from backend.mutator import Mutator
from heavy import HEAVY, fuzz_cases
from missing import unused
from stagetrace import log
from stagetrace.otlp.decode import request as decoder
from stagetrace.otlp.decode import spans as decode_native
from stagetrace.otlp.decode import spans as spans_in_python
from stagetrace.otlp.decode.arrow_table import table
from stagetrace.otlp.decode.columns import KEYS as COLUMN_KEYS
from stagetrace.otlp.decode.columns import NAMES, REST, TYPED
from stagetrace.otlp.decode.request import SMALL, MalformedRequest, decode, decode_by
from stagetrace.otlp.decode.spans import (
    EVER,
    HELD,
    LARGEST,
    LATEST_NS,
    PYTHON,
    Implementation,
    NativeSpanColumns,
    Parts,
    SpanColumns,
    parts_in_python,
)
from stagetrace.otlp.decode.wire import varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from stagetrace.otlp.decode.request import Decoded

pytestmark = pytest.mark.native

FUZZ_CASES = fuzz_cases(3_000)
_AT_ONCE: Final = 200  # tables are compared for so many requests together: making them takes the time
HEAD: Final = b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8


@pytest.fixture(scope="module", autouse=True)
def extension() -> Any:
    """Skip where the extension is not built; CI has a compiler, so there that is a failure."""
    return unused() if decode_native.NATIVE is None else decode_native._in_c


def native() -> Implementation:
    assert decode_native.NATIVE is not None
    return decode_native.NATIVE


def decoded(implementation: Implementation, data: bytes) -> Decoded | str:
    try:
        return decode_by(implementation, data)
    except MalformedRequest as error:
        return str(error)


def by_both(data: bytes) -> tuple[list[Decoded], list[Decoded]]:
    """Return what both decode, after comparing all but the spans, whose tables are `compared` later."""
    found, wanted = decoded(native(), data), decoded(PYTHON, data)
    if isinstance(wanted, str) or isinstance(found, str):
        assert found == wanted
        return [], []
    assert (*found[:4], found.empty) == (*wanted[:4], wanted.empty)
    return [found], [wanted]


def plain(spans: pa.Table) -> dict[str, str]:
    """Return columns as text, in which -0.0 is not 0.0, and what is no number equals itself.

    What a span has beside the columns is in its own order, or in protobuf's: the messages are the same.
    """
    columns = spans.to_pydict()
    if REST in columns:
        columns[REST] = [one and Span.FromString(one).SerializeToString() for one in columns[REST]]
    return {name: repr(column) for name, column in columns.items()}


def compared(found: list[Decoded], wanted: list[Decoded]) -> None:
    spans = table(found)
    spans.validate(full=True)
    expected = table(wanted)
    assert spans.schema == expected.schema
    if not spans.equals(expected):
        assert plain(spans) == plain(expected)


def same(data: bytes) -> None:
    compared(*by_both(data))


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


@pytest.mark.heavier
@settings(max_examples=5_000 if HEAVY else 150, deadline=None)
@given(st.lists(wild_spans(), max_size=4), st.binary(max_size=12), st.booleans())
def test_any_spans_give_the_same(spans: list[bytes], junk: bytes, large: bool) -> None:
    """As a small request, which protobuf has checked, or as a large one, which it has not; and beside empty ones."""
    data = request_of(spans, delimited(1, b""), delimited(3, b"url"))
    same(data)
    same(b"\x0a\x00" + data + delimited(1, b"\x12\x00" + delimited(2, delimited(3, bytes(30)))))
    same(request_of([*spans, HEAD + junk]))
    if large:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder, "SMALL", 0)
            same(data)


@pytest.mark.parametrize("key", KEYS)
def test_every_value_under_every_key_gives_the_same(key: str) -> None:
    """Two of them too, in each order: the last of a key counts, and all are kept."""
    pairs = [KeyValue(key=key, value=value) for value in VALUES]
    spans = [Span(attributes=[pair]) for pair in pairs]
    spans += [Span(name="two", attributes=[pair, other]) for pair in pairs for other in pairs]
    same(request_of(HEAD + one.SerializeToString() for one in spans))


@pytest.mark.parametrize("implementation", ["native", "python"])
def test_equal_attributes_are_equal_bytes(implementation: str) -> None:
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
        found = decode_by(native() if implementation == "native" else PYTHON, request_of(HEAD + one for one in fields))
        assert set(table([found])["rest"].to_pylist()) == {wanted}


def test_fields_in_their_places_give_the_same() -> None:
    same(request_of(HEAD + one for one in FIELDS))
    same(request_of(HEAD + one + other for one in FIELDS for other in FIELDS))


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
@pytest.mark.heavier
def test_mutated_requests_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third as if it were large, so that its spans are checked one by one."""
    pending: list[tuple[bytes, list[Decoded], list[Decoded]]] = []
    accepted = 0
    for number, data in enumerate(fuzzed()):
        monkeypatch.setattr(decoder, "SMALL", 0 if number % 3 == 0 else SMALL)
        found, wanted = by_both(data)
        accepted += sum(one.accepted for one in found)
        pending.append((data, found, wanted))
        if len(pending) == _AT_ONCE:
            _compare_all(pending)
            pending = []
    _compare_all(pending)
    assert accepted > FUZZ_CASES


def _compare_all(pending: list[tuple[bytes, list[Decoded], list[Decoded]]]) -> None:
    try:
        compared([one for _, found, _ in pending for one in found], [one for *_, wanted in pending for one in wanted])
    except Exception:
        for data, found, wanted in pending:
            try:
                compared(found, wanted)
            except Exception:  # noqa: PERF203
                print(data.hex())  # noqa: T201 -- the case, for the fix
                raise
        raise


@pytest.mark.parametrize("spans", [True, False])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=6),
            st.binary(min_size=20, max_size=140).map(lambda one: delimited(2, one)),
            st.sampled_from(
                [b"\x12\x00", b"\x12\x9c\x80\x00" + b"x" * 28, b"\x92\x00\x1c" + b"x" * 28, b"\x12", b"\x12\x7f"]
            ),
            st.binary(max_size=9).map(lambda one: delimited(3, one)),
        )
    ),
    st.integers(0, 4),
)
def test_any_message_is_taken_apart_the_same(spans: bool, pieces: list[bytes], most: int) -> None:
    data = b"".join(pieces)
    cut = 0 if spans else min(3, len(data))
    assert native().parts(data, cut, len(data), most, HELD) == parts_in_python(data, cut, len(data), most)


def test_both_report_a_part_that_is_too_large() -> None:
    for size in (LARGEST - 5, LARGEST - 4):
        data = delimited(3, bytes(size))
        found = native().parts(data, 0, len(data), 1, HELD)
        assert found == parts_in_python(data, 0, len(data), 1)
        assert found.large is (len(data) > LARGEST)


@pytest.mark.parametrize("most", [0, 2, 5, 8])
def test_both_stop_after_as_many_bad_spans(most: int) -> None:
    spans = [HEAD, HEAD + delimited(4, b"p"), HEAD[:18] + delimited(2, b"s") + delimited(5, b"no span id"), HEAD] * 3
    body = b"".join(delimited(2, one) for one in spans)
    held = parts_in_python(body, 0, len(body), 9).held
    found, wanted = NativeSpanColumns(), SpanColumns()
    refused = found.add(body, held, most)
    assert refused == wanted.add(body, held, most)
    assert found.size == wanted.size
    assert sum(refused.values()) == min(most + 1, 6)


def test_a_log_that_grows_is_read_as_a_whole() -> None:
    """5 MiB in spans of all sizes, one of which alone is larger than what the log begins with."""
    draw = random.Random(5)
    spans = [
        Span(attributes=[KeyValue(key="own", value=AnyValue(string_value="x" * draw.randrange(9000)))])
        for _ in range(900)
    ]
    spans[450].attributes.add(key="http.route").value.string_value = "/" * 2_000_000
    data = request_of(HEAD + one.SerializeToString() for one in spans)
    assert len(data) > SMALL
    same(data)
    small = [b"\x0a\x10" + struct.pack(">QQ", 1, at) + HEAD[18:] for at in range(9000)]
    same(request_of(small))  # which take more in columns than in the request


def test_spans_of_several_calls_and_requests_make_one_table() -> None:
    """Also when one request comes twice, and some have no span."""
    requests = [_good().SerializeToString(), b"", request_of([HEAD, HEAD + FIELDS[5]]), request_of([])]
    both = [by_both(one) for one in requests * 2]
    found, wanted = ([one for pair in both for one in pair[at]] for at in (0, 1))
    compared([*found, *found[:1]], [*wanted, *wanted[:1]])
    compared([], [])


def test_what_native_code_knows_of_the_columns_is_true() -> None:
    """COLUMN_KEYS has the columns in their order, as `joined` returns them; each of the kinds that C knows."""
    assert NAMES[9:-2] == tuple(typed.column for typed in TYPED.values())
    assert [key.decode() for key, _ in COLUMN_KEYS] == list(TYPED)
    assert {tag for _, tag in COLUMN_KEYS} <= {0x0A, 0x10, 0x18, 0x21}


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (3, 0, 4, 2, 1)])
def test_native_code_reads_what_encoders_write(order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order of the fields, without a call of Python; else it would be of no use, and nobody would notice."""
    span = Span(parent_span_id=b"p" * 8, name="name", kind=Span.SPAN_KIND_SERVER, flags=0x301)
    span.start_time_unix_nano, span.end_time_unix_nano = 5, 9
    for key in ("own", "ml.stage.own.ms", "http.route", "sla.threshold_ms"):
        span.attributes.add(key=key).value.double_value = 0.5
    span.attributes.add(key="long").value.array_value.values.add().string_value = LONG
    span.status.code, span.status.message = Status.STATUS_CODE_ERROR, "why"
    span.events.add(name="event", time_unix_nano=3)
    body = span.SerializeToString()
    parts = [HEAD[:18], HEAD[18:], body[:10], body[10:16], body[16:]]
    data = request_of([b"".join(parts[at] for at in order)])
    with monkeypatch.context() as patch:
        patch.setattr("stagetrace.otlp.decode.spans.Span", None)  # so that reading a span in Python fails
        found = decode_by(native(), data)
    compared([found], [decode_by(PYTHON, data)])


# --- what is no request, and no log


LOG: Final = object()  # a log without a span, in what follows
PLACE: Final = struct.pack("@QQ", 0, 3)
BAD_CALLS: Final[dict[str, tuple[str, tuple[Any, ...]]]] = {
    "parts of no bytes": ("decode_parts", ("text", 0, 1, 1, 0x12)),
    "parts that end before they begin": ("decode_parts", (b"abc", 2, 1, 1, 0x12)),
    "parts behind the data": ("decode_parts", (b"abc", 0, 4, 1, 0x12)),
    "parts before the data": ("decode_parts", (b"abc", -1, 3, 1, 0x12)),
    "parts without a limit": ("decode_parts", (b"abc", 0, 3, None, 0x12)),
    "parts without a tag": ("decode_parts", (b"abc", 0, 3, 1, None)),
    "parts up to more than fits": ("decode_parts", (b"abc", 0, 2**70, 1, 0x12)),
    "too few parts": ("decode_parts", (b"abc", 0, 3)),
    "add to no log": ("add_spans", (b"log", b"abc", b"", 1, EVER)),
    "add spans of no bytes": ("add_spans", (LOG, None, b"", 1, EVER)),
    "add spans at no bytes": ("add_spans", (LOG, b"abc", [], 1, EVER)),
    "add spans at half a place": ("add_spans", (LOG, b"abc", bytes(15), 1, EVER)),
    "add spans behind the data": ("add_spans", (LOG, b"abc", struct.pack("@QQ", 0, 4), 1, EVER)),
    "add spans far behind the data": ("add_spans", (LOG, b"abc", struct.pack("@QQ", 2**64 - 1, 2**64 - 1), 1, EVER)),
    "add spans backwards": ("add_spans", (LOG, b"abc", struct.pack("@QQ", 2, 1), 1, EVER)),
    "add without a limit": ("add_spans", (LOG, b"abc", PLACE, None, EVER)),
    "add without a latest start": ("add_spans", (LOG, b"abc", PLACE, 1, -1)),
    "too little to add": ("add_spans", (LOG, b"abc")),
    "columns of nothing": ("join_logs", (None,)),
    "columns of no logs": ("join_logs", ([b"", "text"],)),
    "an attribute of no bytes": ("find_attribute", ("text", bytes(8), b"k")),
    "an attribute at no bytes": ("find_attribute", (b"abc", None, b"k")),
    "an attribute without a key": ("find_attribute", (b"abc", bytes(8), "k")),
    "too little to find": ("find_attribute", (b"abc",)),
}


def call(extension: Any, what: str) -> Any:
    name, arguments = BAD_CALLS[what]
    return getattr(extension, name)(*(extension.open_log() if one is LOG else one for one in arguments))


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_calls_raise(extension: Any, what: str) -> None:
    with pytest.raises(Exception, match=r".") as raised:
        call(extension, what)
    assert not isinstance(raised.value, SystemError)


ODD: Final = b"\x2a\x01x" * 2 + HEAD  # a span with two names, which native code leaves to Python


def test_a_log_that_is_being_added_to_or_was_joined_takes_no_spans(
    extension: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_of_spans = extension.open_log()
    held = struct.pack("@QQ", 0, len(ODD))
    raised = []

    def in_the_middle(span: Span, take_fields: Any = spans_in_python._take_fields) -> Any:
        with pytest.raises(RuntimeError, match="being added"):
            extension.add_spans(log_of_spans, ODD, held, 1, EVER)
        with pytest.raises(RuntimeError, match="being added"):
            extension.join_logs([log_of_spans])
        raised.append(True)
        return take_fields(span)

    with monkeypatch.context() as patch:
        patch.setattr(spans_in_python, "_take_fields", in_the_middle)
        assert extension.add_spans(log_of_spans, ODD, held, 1, EVER) == (1, {})
    assert raised
    assert extension.add_spans(log_of_spans, ODD, held, 1, EVER) == (1, {})
    assert extension.join_logs([log_of_spans])[0][3] == HEAD[2:18] * 2
    with pytest.raises(RuntimeError, match="joined"):
        extension.add_spans(log_of_spans, ODD, held, 1, EVER)


@pytest.mark.parametrize(
    ("column", "value"), [("kind", "text"), ("flags", 2**70), ("name", b"x"), ("rest", "x"), ("name", "\ud800")]
)
def test_a_row_that_does_not_fit_leaves_nothing_behind(
    extension: Any, monkeypatch: pytest.MonkeyPatch, column: str, value: Any
) -> None:
    """As `row_or_reason` never returns one; nor does it raise anything."""
    log_of_spans, data = extension.open_log(), HEAD + ODD
    held = struct.pack("@QQQQ", 0, len(HEAD), len(HEAD), len(data))
    with monkeypatch.context() as patch:
        patch.setattr(spans_in_python, "_take_attributes", lambda *_: b"")
        patch.setattr(spans_in_python, "_take_fields", lambda _: {"trace_id": b"t", column: value})
        with pytest.raises((TypeError, OverflowError, UnicodeError)):
            extension.add_spans(log_of_spans, data, held, 1, EVER)
    assert extension.add_spans(log_of_spans, data, held, 1, EVER) == (2, {})
    assert extension.join_logs([log_of_spans])[3] == (0, None, struct.pack("4i", 0, 0, 0, 1), b"x")


@pytest.mark.parametrize("name", ["decode_parts", "open_log", "add_spans"])
def test_python_goes_on_where_native_code_fails_and_that_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, extension: Any, name: str
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(log, "once", lambda key, text: logged.append(f"{key}: {text}"))

    class Broken:
        decode_parts, open_log, add_spans, join_logs = (
            extension.decode_parts,
            extension.open_log,
            extension.add_spans,
            extension.join_logs,
        )

    monkeypatch.setattr(Broken, name, staticmethod(lambda *_: 1 // 0))
    data = _good().SerializeToString()
    wanted = table([decode(data)])
    monkeypatch.setattr(decode_native, "_in_c", Broken)
    assert plain(table([decode(data)])) == plain(wanted)
    assert all("decoder in C failed (ZeroDivisionError" in one and "report it" in one for one in logged)
    assert logged


def test_lists_and_logs_make_one_table() -> None:
    """As they do when the native implementation fails in the middle of a day."""
    data = _good().SerializeToString()
    found, wanted = by_both(data)
    assert plain(table([*found, *wanted, *found])) == plain(table(found * 3))


def test_what_is_no_span_is_refused_by_both() -> None:
    """`decode` never hands it over without a check."""
    junk, held = b"\xff" * 40, struct.pack("@QQ", 0, 40)
    for columns in (NativeSpanColumns(), SpanColumns()):
        assert columns.add(junk, held, 1, EVER) == {"not readable as protobuf": 1}
        assert columns.size == 0


def test_parts_are_named() -> None:
    assert isinstance(native().parts(b"", 0, 0, 0, HELD), Parts)


LEAKS = """
import resource, sys
import test_decoder_native as t

good = t._good().SerializeToString()
odd = t.request_of(t.HEAD + one + two for one in t.FIELDS for two in t.FIELDS[:12])
watched = [good, odd, t.NAMES, t.COLUMN_KEYS, *t.COLUMN_KEYS, t.LATEST_NS, t.parts_in_python]

def calls(number):
    for turn in range(number):
        t.table([t.decode(good)])
        if turn % 50 == 0:
            t.decode(odd)
            t.NativeSpanColumns().add(good, t.struct.pack("@QQQQ", 0, 9, 0, 9), 5)
        try:
            t.call(t.decode_native._in_c, [*t.BAD_CALLS][turn % len(t.BAD_CALLS)])
        except Exception:
            pass

def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

calls(1_000)
before, references = rss(), [sys.getrefcount(one) for one in watched]
calls(5_000)
after, now = rss(), [sys.getrefcount(one) for one in watched]
# A leak is of a hundred and more; the whole process has its hands on small numbers.
print(after - before, sum(abs(a - b) > 20 for a, b in zip(references, now)))
"""


@pytest.mark.thorough
def test_nothing_leaks() -> None:
    """5,000 good requests, 50,000 odd spans, 5,000 bad calls: no memory, no reference."""
    path = [Path(decoder.__file__).parents[3], Path(__file__).parents[1], Path(__file__).parent]
    done = subprocess.run(
        [sys.executable, "-c", LEAKS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, differing = map(int, done.stdout.split())
    assert differing == 0
    assert grown < 2_000  # KiB (bytes on macOS); a leak of a request, its logs or its columns would be 5,000 or more
