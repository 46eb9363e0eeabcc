"""The stages of a request, and its spans as bytes: in C as in Python, and as the official encoder has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, Status, StatusCode

from heavy import HEAVY
from otlp.schedules import (
    BOTH,
    IDENTITIES,
    IDENTITY,
    IN_PYTHON,
    START,
    UNUSUAL,
    UPGRADED,
    USUAL,
    Described,
    Implementation,
    Schedule,
    child,
    encoded,
    messages,
    schedules,
    shown,
    streams,
    typical,
)
from stagetrace.bridge.spans import _SCOPE as SCOPE
from stagetrace.bridge.spans import stage_span
from stagetrace.otlp import encode
from stagetrace.otlp.encode import Block, entry_rest
from stagetrace.request import marks
from stagetrace.request.stages import coalesced
from stagetrace.request.tiler import WIRE_OVERHEAD_NS
from stagetrace.semconv import INFERENCE, NETWORK_RECEIVE, NETWORK_SEND, stage_total_ms

if TYPE_CHECKING:
    from stagetrace.request.own_span import Identity

pytestmark = pytest.mark.native


def same(native: Implementation, schedule: Schedule, later: int = 20_000, **more: Any) -> Any:
    """Return the stages in C of a schedule, which both implementations have alike."""
    expected, got = (schedule.stages(how, later, **more) for how in (IN_PYTHON, native))
    assert shown(got) == shown(expected)
    return got


def same_request(native: Implementation, schedule: Schedule, later: int = 20_000, **more: Any) -> list[Any]:
    """Return the messages that both implementations encode alike."""
    expected, got = (messages(encoded(how, schedule.stages(how, later), **more)) for how in (IN_PYTHON, native))
    assert got == expected
    return got


@pytest.mark.thorough
@pytest.mark.heavier("5,000 schedules of marks")
@settings(max_examples=5_000 if HEAVY else 300, deadline=None)
@given(
    schedules(st.none() | USUAL | UNUSUAL),
    st.integers(-300_000, 300_000),
    st.sampled_from([1, 2, 5, 50, 1_000]),
    st.lists(st.integers(START, START + 10**7), max_size=3).map(sorted),
)
def test_any_schedule_gives_the_same(
    native: Implementation, schedule: Schedule, later: int, limit: int, cuts: list[int]
) -> None:
    """Segments, totals in their order, and the model; whatever is asked and told in between, and past any limit."""
    same(native, schedule, later, limit=limit, cuts=cuts)
    asked, expected = schedule.record(native, limit, cuts), schedule.record(IN_PYTHON, limit, cuts)
    got, wanted = asked.so_far(), expected.so_far()
    assert [(one.stage, one.start, one.context) for one in got] == [
        (one.stage, one.start, one.context) for one in wanted
    ]


@pytest.mark.thorough
@pytest.mark.heavier("5,000 requests")
@settings(max_examples=5_000 if HEAVY else 200, deadline=None)
@given(
    schedules(st.none() | USUAL | UNUSUAL, 150),
    st.integers(-300_000, 300_000),
    IDENTITIES,
    st.sampled_from([b"", Block({"k": "r" * 300}).encoded, Block({"k": "r" * 16_000}).encoded]),
    st.sampled_from([b"", UPGRADED]),
    USUAL | UNUSUAL,
)
def test_any_request_gives_the_same_message(
    native: Implementation,
    schedule: Schedule,
    later: int,
    identity: Identity,
    rest: bytes,
    mark: bytes,
    attributes: Any,
) -> None:
    """The stages and their entry span: ids, parent, trace state, totals, the model's attributes and its own."""
    more = {"identity": identity, "rest": rest, "mark": mark, "attributes": attributes}
    same_request(native, schedule, later, **more)


@pytest.mark.thorough
@pytest.mark.heavier("2,000 streams")
@settings(max_examples=2_000 if HEAVY else 200, deadline=None)
@given(streams(st.none() | USUAL | UNUSUAL), st.data())
def test_any_stream_gives_the_same(native: Implementation, schedule: Schedule, data: st.DataObject) -> None:
    """Sends and receives by the dozen, summed between any cuts."""
    times = st.sampled_from([event[0] for event in schedule.events]) | st.integers(START, START + 10**7)
    cuts = tuple(sorted(data.draw(st.sets(times, max_size=3))))
    same_request(native, schedule, attributes={"a": 1}, cuts=cuts)


@pytest.mark.parametrize("how", BOTH)
def test_a_stream_of_sixty_chunks_is_few_spans(how: Implementation) -> None:
    schedule = Schedule().add(100_000, f"+{INFERENCE}").add(2_000_000, f"-{INFERENCE}")
    for _ in range(60):
        schedule.add(100_000, f"+{NETWORK_SEND}").add(60_000, f"-{NETWORK_SEND}")
    stages = schedule.stages(how)
    assert stages.totals()["network.send"] == 60 * 60_000 + 20_000
    *_, waited, sent, _ = spans = messages(encoded(how, stages, cuts=(START + 2_260_000,)))
    assert len(spans) == 7
    assert [(one.name, one.attributes[1].value.int_value) for one in (waited, sent)] == [
        ("postprocess", 59),
        ("network.send", 59),
    ]


@pytest.mark.parametrize("size", [0, 1 << 7, 1 << 14, 1 << 21])
def test_entry_spans_of_any_size_give_the_same(native: Implementation, size: int) -> None:
    """On either side of where the length takes one more byte, and in turn all sizes of what comes before `rest`."""
    for change in range(-3, 130):
        same_request(native, Schedule(), 0, attributes={"k": "r" * max(0, size - change)})  # no time, so no stage
    schedule = Schedule().add(100_000, "+" + "n" * size).add(100_000, f"+{INFERENCE}", {"a": "v" * size})
    same_request(native, schedule, attributes={"b": "w" * size, "c": [1]})


@pytest.mark.parametrize("how", BOTH)
def test_totals_are_divided_as_doubles(how: Implementation) -> None:
    """Nanoseconds that no double holds, too."""
    for length in (1, 3, 999_999, (1 << 53) + 1, (1 << 60) + 12_345, (1 << 62) + 3):
        (*_, entry) = messages(encoded(how, Schedule().stages(how, length)))
        assert [(pair.key, pair.value.double_value) for pair in entry.attributes] == [
            ("ml.stage.handler.ms", length / 1e6)
        ]


@pytest.mark.parametrize("number", [0, 1, 12, 13, 128, 129, 1_000, 2_500])
@pytest.mark.parametrize("names", [1, 3, 200, 2_000])
@pytest.mark.parametrize("asks", [False, True])
def test_long_requests_give_the_same(native: Implementation, number: int, names: int, asks: bool) -> None:
    """Each event is a stage of its own, of which any number are somebody's parent."""
    schedule = Schedule()
    for turn in range(number):
        schedule.add(100_000, f"+mark {turn % names}", {"turn": turn})
        if asks and not turn % 7:
            schedule.add(0, "?")
    same(native, schedule)
    spans = same_request(native, schedule, attributes={"a": 1})
    assert len(spans) <= 130 + 3 * 64
    kept = [pair for pair in spans[-1].attributes if pair.key.startswith("ml.stage.")]
    assert len(kept) <= min(number, names, 127 + 64) + 1


@pytest.mark.parametrize("gap", [0, 1, WIRE_OVERHEAD_NS - 1, WIRE_OVERHEAD_NS, WIRE_OVERHEAD_NS + 1])
@pytest.mark.parametrize("asks", [False, True])
def test_gaps_on_the_wire_end_at_the_same_length(native: Implementation, gap: int, asks: bool) -> None:
    schedule = Schedule()
    for name in (NETWORK_RECEIVE, NETWORK_RECEIVE, NETWORK_SEND, NETWORK_SEND):
        schedule.add(gap, f"+{name}").add(10, f"-{name}")
        if asks:
            schedule.add(0, "?")
    same(native, schedule, gap)


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
def test_corners_of_the_tiling_are_the_same(native: Implementation, corner: str, described: int) -> None:
    """`described` is the event that has attributes."""
    schedule = Schedule()
    for number, (wait, what) in enumerate(CORNERS[corner]):
        schedule.add(wait, what, {"a": 1} if number == described else None)
    same(native, schedule)


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("key", ["ml.model.name", "ml.model.version", "a"])
@pytest.mark.parametrize("turn", [0, 1])
def test_models_that_a_person_names_are_the_same(native: Implementation, corner: str, key: str, turn: int) -> None:
    """Each event has attributes; every other one says something of the model."""
    schedule = Schedule()
    for number, (wait, what) in enumerate(CORNERS[corner]):
        says = {key: str(number), "a": number} if number % 2 == turn else {"ml.framework": str(number), "a": number}
        schedule.add(wait, what, says)
    same(native, schedule)


@pytest.mark.parametrize("how", BOTH)
def test_no_two_spans_have_the_same_id(how: Implementation) -> None:
    """The stage that was somebody's parent has the id that was given out."""
    stages = typical().add(10, f"+{INFERENCE}").add(10, "?").stages(how)
    requests = [ScopeSpans.FromString(encoded(how, stages)[0]).spans for _ in range(100)]
    ids = [span.span_id for spans in requests for span in spans[:-2]]
    assert len(set(ids)) == len(ids) > 1_000
    assert {spans[-2].span_id for spans in requests} == {(1).to_bytes(8, "big")}


@pytest.mark.parametrize("how", BOTH)
def test_a_stage_that_happened_elsewhere_has_its_id_and_its_link(how: Implementation) -> None:
    """It was told of afterwards: the marks are put in the order of time."""
    schedule = Schedule().add(500, "+queue").add(500, "-queue")
    schedule.visit(START + 100, START + 200, Described(INFERENCE, {"ml.batch.size": 2}, child(77), child(88)))
    stages = schedule.stages(how, 0)
    assert [(one.stage, one.end - one.start) for one in stages.segments()] == [
        *(("preprocess", 100), ("inference", 100), ("postprocess", 300), ("queue", 500)),
    ]
    assert (stages.model, stages.segments()[1].context, stages.segments()[1].link) == (
        *({"ml.batch.size": 2}, child(77), child(88)),
    )
    entry = ReadableSpan("entry", IDENTITY.context, resource=Resource({}))  # type: ignore[arg-type]
    (other,) = official([stage_span(stages.segments()[1], entry, {})]).resource_spans[0].scope_spans[0].spans
    _, span, *_ = messages(encoded(how, stages))
    other.span_id = b""
    for one in (span, other):
        one.attributes.sort(key=lambda pair: pair.key)
    assert span == other


def test_recording_uses_what_was_compiled(native: Implementation) -> None:
    assert encode.NATIVE
    assert (marks.Marks, marks.Mark) == native[:2]
    assert encode.encode_request is native.encode
    assert len(messages(encoded(native, typical().stages(native), attributes={"a": 1}))) == 13


@pytest.mark.thorough
@pytest.mark.parametrize("how", BOTH)
@settings(max_examples=200, deadline=None)
@given(
    schedule=schedules(st.none() | USUAL, 60),
    identity=IDENTITIES,
    own=USUAL,
    failed=st.booleans(),
    extra=st.sampled_from([{}, {"sla.upgraded": True}]),
)
def test_the_official_encoder_makes_the_same_request(
    how: Implementation,
    schedule: Schedule,
    identity: Identity,
    own: dict[str, Any],
    failed: bool,
    extra: dict[str, Any],
) -> None:
    """All spans, decoded by protobuf; attributes in any order, of one name only once."""
    stages = schedule.stages(how)
    segments = coalesced(stages.segments())
    totals: dict[str, float] = {}
    for segment in segments:
        totals[segment.stage] = totals.get(segment.stage, 0) + segment.end - segment.start
    shared = {"http.request.method": "POST"}
    taken = {**shared, **{stage_total_ms(stage): total / 1e6 for stage, total in totals.items()}, **stages.model}
    own = {key: value for key, value in own.items() if key not in taken}
    times = (START, max(schedule.now + 20_000, START))
    entry = ReadableSpan(
        name="POST /predict",
        context=identity.context,  # type: ignore[arg-type]
        parent=identity.parent,  # type: ignore[arg-type]
        resource=Resource({}),
        attributes={**taken, **own},
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
        start_time=times[0],
        end_time=times[1],
        instrumentation_scope=SCOPE,
    )
    rest = entry_rest(entry.name, entry.kind.value, [Block(shared)], failed=failed)
    spans = messages(encoded(how, stages, times, identity, Block(extra).encoded, rest, own))
    expected = [*(stage_span(segment, entry, extra) for segment in segments), entry]
    for span, other in zip(spans, official(expected).resource_spans[0].scope_spans[0].spans, strict=True):
        other.trace_id, other.trace_state = span.trace_id, span.trace_state  # a parent's are those of the schedule
        if other.parent_span_id == span.parent_span_id and span is not spans[-1]:
            other.span_id = b""
        for one in (span, other):
            one.attributes.sort(key=lambda pair: pair.key)
        assert span == other
