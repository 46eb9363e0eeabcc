"""What bounds the work of decoding: depth, numbers of messages, and a caller that no longer wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from stagetrace.otlp.decode import request as decoder
from stagetrace.otlp.decode.request import (
    MOST_HELD,
    MOST_HOLDERS,
    SMALL,
    TOO_MANY,
    MalformedRequest,
    TooManyHolders,
    Unreadable,
    decode,
    read,
)
from stagetrace.otlp.decode.wire import TOO_DEEP, holds_more, varint

if TYPE_CHECKING:
    from stagetrace.otlp.decode.spans import Decoded

IDS = b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8


def delimited(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + varint(len(content)) + content


def request_of(*spans: bytes, resource: bytes = b"", scope: bytes = b"") -> bytes:
    return delimited(0x0A, resource + delimited(0x12, scope + b"".join(delimited(0x12, one) for one in spans)))


def nested(depth: int, *, maps: bool = False) -> bytes:
    """Return the field `attributes` of a span, or of a resource: so many arrays or maps within each other."""
    value = b"\x18\x01"
    for _ in range(depth):
        value = (
            delimited(0x32, delimited(0x0A, delimited(0x12, value)))
            if maps
            else delimited(0x2A, delimited(0x0A, value))
        )
    return delimited(0x4A, delimited(0x0A, b"k") + delimited(0x12, value))


def group(depth: int) -> bytes:
    """Return so many groups within each other, fields that OTLP does not have."""
    return b"\xf3\x07" * depth + b"\xf4\x07" * depth


def of_resource(attribute: bytes) -> bytes:
    return delimited(0x0A, b"\x0a" + attribute[1:])


def of_scope(attribute: bytes) -> bytes:
    return delimited(0x0A, b"\x1a" + attribute[1:])


def of_event(attribute: bytes) -> bytes:
    return IDS + delimited(0x5A, b"\x1a" + attribute[1:])


def of_link(attribute: bytes) -> bytes:
    return IDS + delimited(0x6A, b"\x22" + attribute[1:])


# what -> the greatest depth, and a request with it at some depth
DEEPEST: dict[str, tuple[int, Any]] = {
    "arrays in a span": (29, lambda depth: request_of(IDS + nested(depth))),
    "maps in a span": (19, lambda depth: request_of(IDS + nested(depth, maps=True))),
    "arrays in an event": (29, lambda depth: request_of(of_event(nested(depth)))),
    "maps in a link": (19, lambda depth: request_of(of_link(nested(depth, maps=True)))),
    "arrays in a scope": (29, lambda depth: request_of(IDS, scope=of_scope(nested(depth)))),
    "arrays in a resource": (30, lambda depth: request_of(IDS, resource=of_resource(nested(depth)))),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("what", DEEPEST)
def test_one_level_more_than_the_deepest_is_refused(what: str, large: bool) -> None:
    """Below and above the size from which spans are checked one by one, and beside a span that is good."""
    deepest, made = DEEPEST[what]
    filler = request_of(IDS + delimited(0x2A, b"x" * SMALL * large))
    for depth, refused in ((deepest, 0), (deepest + 1, 1), (48, 1), (49, 1), (500, 1)):
        found = decode(filler + made(depth))
        assert (found.accepted, found.rejected) == (2 - refused, refused), depth
        assert found.reason == (TOO_DEEP if refused else None)


def test_groups_count_as_levels() -> None:
    """OTLP has none, but protobuf reads them, and where they nest too deep nothing around them is readable."""
    for depth, accepted in ((61, 2), (62, 1), (97, 1), (500, 1)):
        assert decode(request_of(IDS, IDS + group(depth))).accepted == accepted


@pytest.mark.thorough
@pytest.mark.parametrize("large", [False, True])
def test_a_span_of_more_messages_than_are_read_is_refused(large: bool) -> None:
    good = IDS + delimited(0x2A, b"x" * SMALL * large)
    for number, refused in ((MOST_HELD, 0), (MOST_HELD + 1, 1)):
        for many in (b"\x4a\x00" * number, b"\x5a\x00" * number, delimited(0x4A, b"\x12\x00" * (number - 1))):
            found = decode(request_of(good, IDS + many + bytes((0x2A, 1, 120)), good))
            assert (found.accepted, found.rejected) == (3 - refused, refused)
            assert found.reason == (TOO_MANY if refused else None)


def test_messages_are_counted_at_any_depth_and_texts_are_none() -> None:
    span = Span(name="\x0a\x00" * 1000)
    span.events.add().attributes.add(key="k").value.array_value.values.add().string_value = "\x0a\x00" * 1000
    data = span.SerializeToString()
    assert holds_more(Span, data, 4)  # the event, its attribute, the value, the array, the value in it
    assert not holds_more(Span, data, 5)
    assert not holds_more(Span, b"\xff" * 100, 0)


def refuse() -> None:
    raise KeyError("stop")


def test_resources_and_scopes_are_limited_where_somebody_has_sent_them() -> None:
    def found(data: bytes) -> Decoded:
        return decode(data, lambda: None)

    one, of_two = b"\x0a\x00", delimited(0x0A, b"\x12\x00")
    assert found(one * MOST_HOLDERS).empty == MOST_HOLDERS
    assert found(of_two * (MOST_HOLDERS // 2)).empty == MOST_HOLDERS // 2
    for data in (one * (MOST_HOLDERS + 1), delimited(0x0A, b"\x12\x00" * MOST_HOLDERS)):
        with pytest.raises(TooManyHolders, match="100000 resources and scopes; send smaller batches"):
            found(data)
        assert decode(data).accepted == 0


def test_what_holds_no_span_is_counted_apart() -> None:
    around = delimited(0x1A, b"a schema URL of thirty bytes and more")
    data = (
        b"\x0a\x00" + delimited(0x0A, around) + delimited(0x0A, delimited(0x12, around) + b"\x12\x00") + request_of(IDS)
    )
    found = decode(data)
    assert (found.accepted, found.rejected, found.reason, found.empty) == (1, 0, None, 4)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_work_ends_by_the_error_of_its_caller(after: int) -> None:
    """Also between two steps of one scope."""
    calls = iter(range(after))

    def check() -> None:
        if next(calls, None) is None:
            refuse()

    with pytest.raises(KeyError, match="stop"):
        decode(request_of(*[IDS + delimited(0x2A, b"x" * 1000)] * 10_000), check)


def test_what_is_not_readable_as_a_whole_is_read_in_parts() -> None:
    cuts = ["other"]
    unreadable = Unreadable(cuts, " of a file")
    data = request_of(IDS, IDS + b"\x2a\x01\xff", IDS + nested(48), IDS + nested(60))
    for _ in range(2):  # a search may read a span more than once
        found = read(TracesData, data, unreadable)
        assert found == TracesData.FromString(request_of(IDS))
    read(TracesData, request_of(IDS, resource=delimited(0x1A, b"\xff")) + request_of(IDS), unreadable)
    assert cuts == ["other", "4 spans of a file cannot be read, and are excluded"]
    for bad in (b"\x0a\x7f", request_of(IDS + b"\x2a\x01\xff"), request_of(IDS)[:-1]):
        with pytest.raises(DecodeError):
            read(TracesData, bad, unreadable)


def test_nothing_but_what_is_too_deep_is_no_malformed_request() -> None:
    assert decode(request_of(IDS + nested(48))).reason == decode(request_of(IDS + nested(90))).reason == TOO_DEEP
    with pytest.raises(MalformedRequest):
        decode(request_of(IDS + b"\x2a\x01\xff"))
    assert decoder.decode(b"").accepted == 0
