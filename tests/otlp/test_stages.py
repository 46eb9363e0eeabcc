"""The twins in C give what the reference gives, to the byte, and so what the official encoder gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from heavy import HEAVY
from otlp.schedules import (
    CONTEXT,
    HEAD,
    IDENTITIES,
    IDENTITY,
    IDS,
    MARKS,
    START,
    UNUSUAL,
    UPGRADED,
    USUAL,
    Schedule,
    both,
    both_make,
    schedules,
    streams,
    typical,
)
from stagetrace.otlp.encode import request_encoder as stages
from stagetrace.otlp.encode.span_encoder import Block, encode_stages, entry_rest, stage_head
from stagetrace.recording.segments import Segment, coalesced
from stagetrace.recording.spans import SCOPE, stage_span
from stagetrace.recording.tiler import WIRE_OVERHEAD_NS, Tiler
from stagetrace.semconv import INFERENCE, NETWORK_RECEIVE, NETWORK_SEND, stage_total_ms

if TYPE_CHECKING:
    from stagetrace.otlp.encode.request_encoder import Make, Tile
    from stagetrace.recording.own_span import Identity

pytestmark = pytest.mark.native

ENTRY = ReadableSpan("entry", CONTEXT, resource=Resource({}))


@pytest.mark.heavier
@settings(max_examples=5_000 if HEAVY else 200, deadline=None)
@given(
    schedules(st.none() | USUAL | UNUSUAL),
    st.integers(-300_000, 300_000),
    st.integers(-300_000, 300_000),
    st.sampled_from([b"", HEAD, HEAD * 10, HEAD * 500]),
    st.sampled_from([b"", UPGRADED]),
)
def test_any_schedule_gives_the_same(
    native: Tile, schedule: Schedule, now: int, end: int, head: bytes, mark: bytes
) -> None:
    """Bytes, count, totals in their order, and the model; whatever start, now and end are to each other."""
    both(native, schedule.events, START, schedule.now + now, schedule.now + end, head, IDS * 2, mark)
    both(native, schedule.events, START + max(end, 0), schedule.now + now, START + abs(now), head, IDS * 2, mark)


@pytest.mark.heavier
@settings(max_examples=5_000 if HEAVY else 200, deadline=None)
@given(
    schedules(st.none() | USUAL | UNUSUAL),
    st.integers(-300_000, 300_000),
    IDENTITIES,
    st.binary(max_size=300) | st.sampled_from([b"r" * 16_000, b"r" * 5_000]),
    st.sampled_from([b"", UPGRADED]),
    USUAL | UNUSUAL,
)
def test_any_request_gives_the_same(
    make: Make, schedule: Schedule, end: int, identity: Identity, rest: bytes, mark: bytes, attributes: Any
) -> None:
    """The stages and their entry span: ids, parent, trace state, totals, the model's attributes and its own."""
    both_make(make, schedule.events, START, schedule.now + end, identity, IDS * 2, mark, rest, attributes)
    both_make(make, schedule.events, START + abs(end), START + 1, identity, IDS * 2, mark, rest, attributes)


@pytest.mark.heavier
@settings(max_examples=2_000 if HEAVY else 200, deadline=None)
@given(streams(st.none() | USUAL | UNUSUAL), st.data())
def test_any_stream_gives_the_same(native: Tile, make: Make, schedule: Schedule, data: st.DataObject) -> None:
    """Sends and receives by the dozen, summed between any cuts."""
    times = st.sampled_from([event[0] for event in schedule.events]) | st.integers(START, START + 10**7)
    cuts = tuple(sorted(data.draw(st.sets(times, max_size=3))))
    both(native, *schedule.arguments(), cuts)
    both_make(make, *schedule.to_make({"a": 1}), cuts)


def test_a_stream_of_sixty_chunks_is_few_spans(native: Tile) -> None:
    schedule = Schedule().add(100_000, f"+{INFERENCE}").add(2_000_000, f"-{INFERENCE}")
    for _ in range(60):
        schedule.add(100_000, f"+{NETWORK_SEND}").add(60_000, f"-{NETWORK_SEND}")
    encoded, count, totals, _ = both(native, *schedule.arguments(), (START + 2_260_000,))
    assert count == 6
    assert totals["network.send"] == 60 * 60_000 + 20_000
    *_, waited, sent = ScopeSpans.FromString(encoded).spans
    assert [(one.name, one.attributes[1].value.int_value) for one in (waited, sent)] == [
        ("postprocess", 59),
        ("network.send", 59),
    ]


@pytest.mark.parametrize("size", [0, 1 << 7, 1 << 14, 1 << 21])
def test_entry_spans_of_any_size_give_the_same(make: Make, size: int) -> None:
    """On either side of where the length takes one more byte, and in turn all sizes of what comes before `rest`."""
    for rest in {max(0, size - change) for change in range(-3, 130)}:
        both_make(make, [], START, START, IDENTITY, IDS, b"", b"r" * rest, {})  # no time, so no stage
    schedule = Schedule().add(100_000, "+" + "n" * size).add(100_000, f"+{INFERENCE}", {"a": "v" * size})
    both_make(make, *schedule.to_make({"b": "w" * size, "c": [1]}))


def test_totals_are_divided_as_the_reference_does(make: Make) -> None:
    """Nanoseconds that no double holds, too."""
    for length in (1, 3, 999_999, (1 << 53) + 1, (1 << 60) + 12_345, (1 << 62) + 3):
        encoded = both_make(make, [], START, START + length, IDENTITY, IDS, b"", b"", {})
        pairs = ScopeSpans.FromString(encoded).spans[-1].attributes
        assert [(pair.key, pair.value.double_value) for pair in pairs] == [("ml.stage.handler.ms", length / 1e6)]


@pytest.mark.parametrize("number", [0, 1, 2, 63, 126, 127])
@pytest.mark.parametrize("names", [1, 3, 200])
def test_long_requests_give_the_same(native: Tile, make: Make, number: int, names: int) -> None:
    """Up to the most that the twin takes, each event a stage of its own."""
    schedule = Schedule()
    for turn in range(number):
        schedule.add(100_000, f"+mark {turn % names}", {"turn": turn})
    both_make(make, *schedule.to_make({"a": 1}))
    count = both(native, *schedule.arguments())[1]
    assert count == (number if names > 1 else min(number, 1)) + 1


@pytest.mark.parametrize("gap", [0, 1, WIRE_OVERHEAD_NS - 1, WIRE_OVERHEAD_NS, WIRE_OVERHEAD_NS + 1])
def test_gaps_on_the_wire_end_where_the_reference_ends_them(native: Tile, gap: int) -> None:
    schedule = Schedule()
    for name in (NETWORK_RECEIVE, NETWORK_RECEIVE, NETWORK_SEND, NETWORK_SEND):
        schedule.add(gap, f"+{name}").add(10, f"-{name}")
    both(native, *schedule.arguments(gap))


CORNERS = {
    "a transform of no length is none": [(90, "+transform"), (0, "-transform")],
    "a gap of no length between two inferences": [
        (90, "+inference"),
        (9, "-inference"),
        (0, "+inference"),
        (9, "-queue"),
    ],
    "a marked send, then a short gap and a send": [
        (90_000, "+*network.send"),
        (9, "-*network.send"),
        (9, "+network.send"),
    ],
    "a marked inference, then one that is not": [(90, "+*inference"), (90, "+inference"), (9, "-*inference")],
    "a marked inference with two in it, then another mark": [
        *((90, "+*inference"), (90, "+inference"), (9, "-inference"), (90, "+inference"), (9, "-*inference")),
        *((9, "+*inference"), (90, "+inference")),
    ],
    "a mark of another name in a marked inference": [
        *((90, "+*inference"), (90, "+*tokenize"), (9, "+inference"), (9, "-*tokenize"), (9, "+inference")),
    ],
    "a marked transform": [(90, "+transform"), (90, "+*transform"), (9, "-*transform"), (9, "-transform")],
    "two transforms, gaps before, between and after": [
        *((90, "+transform"), (90, "-transform"), (90, "+transform"), (90, "-transform")),
    ],
    "a transform that more unmarked time follows": [(90, "+transform"), (90_000, "-transform"), (70_001, "+queue")],
    "a transform that as much unmarked time follows": [(90, "+transform"), (90_000, "-transform"), (70_000, "+queue")],
    "a transform that is followed by what only prepares": [
        *((90, "+transform"), (90_000, "-transform"), (90_000, "+prepare"), (90_000, "-prepare"), (0, "+queue")),
    ],
    "what only prepares, and a model inside a mark": [
        *((90, "+prepare"), (90, "-prepare"), (90, "+*mark"), (90, "+inference"), (90, "-inference"), (90, "-*mark")),
    ],
    "what only prepares": [(90, "+prepare"), (90_000, "-prepare")],
    "what only prepares, then a transform": [(90, "+prepare"), (90, "-prepare"), (90, "+transform")],
    "a mark named as what only prepares": [(90, "+*prepare"), (90, "-*prepare"), (90, "+prepare")],
    "an end without a begin": [(90, "-inference"), (90, "-queue"), (90, "+queue"), (90, "-queue"), (90, "-queue")],
}


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("described", [0, 1, 2, 3])
def test_corners_of_the_tiling_are_the_same(native: Tile, corner: str, described: int) -> None:
    """`described` is the event that has attributes."""
    schedule = Schedule()
    for number, (wait, what) in enumerate(CORNERS[corner]):
        schedule.add(wait, what, {"a": 1} if number == described else None)
    both(native, *schedule.arguments())


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("key", ["ml.model.name", "ml.model.version", "a"])
def test_models_that_a_person_names_are_the_same(native: Tile, corner: str, key: str) -> None:
    """Each event has attributes; every other one says something of the model."""
    schedule = Schedule()
    for number, (wait, what) in enumerate(CORNERS[corner]):
        schedule.add(wait, what, {key: str(number)} if number % 2 else {"ml.framework": str(number), "a": number})
    both(native, *schedule.arguments())
    schedule = Schedule()
    for number, (wait, what) in enumerate(CORNERS[corner]):
        schedule.add(wait, what, {"ml.framework": str(number)} if number % 2 else {key: str(number), "a": number})
    both(native, *schedule.arguments())


def test_a_typical_request_takes_no_way_out(native: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stages.tiled` and `request`, which recording calls, are the twins in C and do not fall back."""
    assert stages.NATIVE
    assert native(*typical().arguments())[1] == 12
    monkeypatch.setattr(stages, "tiled_in_python", None)
    monkeypatch.setattr(stages, "request_in_python", None)
    assert stages.tiled(*typical().arguments())[1] == 12
    assert stages.request(*typical().to_make({"a": 1}))[1] == 13


@settings(max_examples=200, deadline=None)
@given(schedules(st.none() | USUAL, 30), st.sampled_from([{}, MARKS]))
def test_the_bytes_are_what_the_official_encoder_makes_of_the_spans(
    native: Tile, schedule: Schedule, extra: dict[str, Any]
) -> None:
    """Span by span, decoded by protobuf; attributes in any order."""
    events, start, now, end, head, ids, mark = schedule.arguments(mark=Block(extra).encoded)
    spans = list(ScopeSpans.FromString(native(events, start, now, end, head, ids, mark)[0]).spans)
    tiler = Tiler(start)
    tiler.take(events)
    segments = coalesced(tiler.close(now, start, end))
    expected = [stage_span(segment, ENTRY, extra) for segment in segments]
    if not expected:
        assert not spans
        return
    official_spans = list(official(expected).resource_spans[0].scope_spans[0].spans)
    for number, (span, other) in enumerate(zip(spans, official_spans, strict=True)):
        other.span_id = ids[8 * number : 8 * number + 8]
        for one in (span, other):
            one.attributes.sort(key=lambda pair: pair.key)
        assert span == other


def test_a_stage_that_was_part_of_a_batch_has_its_link() -> None:
    segment = Segment("inference", 100)
    segment.end = 300
    segment.attributes = {"ml.batch.size": 2}
    segment.link = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))
    encoded = encode_stages([segment], stage_head(ENTRY.context), bytes(range(8)), b"")
    (span,) = ScopeSpans.FromString(encoded).spans
    (other,) = official([stage_span(segment, ENTRY, {})]).resource_spans[0].scope_spans[0].spans
    other.span_id = bytes(range(8))
    for one in (span, other):
        one.attributes.sort(key=lambda pair: pair.key)
    assert span == other


@settings(max_examples=200, deadline=None)
@given(schedules(st.none() | USUAL, 30), IDENTITIES, USUAL, st.booleans())
def test_the_official_encoder_makes_the_same_request(
    make: Make, schedule: Schedule, identity: Identity, own: dict[str, Any], failed: bool
) -> None:
    """All spans, decoded by protobuf; attributes in any order, of one name only once."""
    tiler = Tiler(START)
    tiler.take(schedule.events)
    segments = coalesced(tiler.close(schedule.now, START, schedule.now))
    totals: dict[str, float] = {}
    for segment in segments:
        totals[segment.stage] = totals.get(segment.stage, 0) + segment.end - segment.start
    shared = {"http.request.method": "POST"}
    taken = {**shared, **{stage_total_ms(stage): total / 1e6 for stage, total in totals.items()}, **tiler.model}
    own = {key: value for key, value in own.items() if key not in taken}
    entry = ReadableSpan(
        name="POST /predict",
        context=identity.context,
        parent=identity.parent,
        resource=Resource({}),
        attributes={**taken, **own},
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
        start_time=START,
        end_time=max(schedule.now, START),
        instrumentation_scope=SCOPE,
    )
    rest = entry_rest(entry.name, entry.kind.value, [Block(shared)], failed=failed)
    arguments = (schedule.events, START, max(schedule.now, START), identity, IDS, b"", rest, own)
    encoded, count = make(*arguments)
    spans = list(ScopeSpans.FromString(encoded).spans)
    expected = [*(stage_span(segment, entry, {}) for segment in segments), entry]
    official_spans = list(official(expected).resource_spans[0].scope_spans[0].spans)
    assert count == len(spans)
    for number, (span, other) in enumerate(zip(spans, official_spans, strict=True)):
        if number < count - 1:
            other.span_id = IDS[8 * number : 8 * number + 8]
        for one in (span, other):
            one.attributes.sort(key=lambda pair: pair.key)
        assert span == other
