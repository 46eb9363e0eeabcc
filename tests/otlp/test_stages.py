"""The twins in C give what the reference gives, to the byte, and raise on whatever they were not made for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from missing import unused
from services import PYTHON, run_service
from sink import assert_tiled, run_sink
from stagetrace import guard
from stagetrace.otlp import stages
from stagetrace.otlp.encoder import Block, encode_stages, entry_rest, stage_head
from stagetrace.otlp.stages import request_in_python, tiled_in_python
from stagetrace.recording.entry import Identity
from stagetrace.recording.marks import BEGIN, BEGIN_MARK, END, END_MARK, Mark
from stagetrace.recording.spans import SCOPE, stage_span
from stagetrace.recording.tiler import MAX_SEGMENTS, PRIORITY, WIRE_OVERHEAD_NS, Segment, Tiler
from stagetrace.semconv import (
    INFERENCE,
    NETWORK_RECEIVE,
    NETWORK_SEND,
    QUEUE,
    SLA_UPGRADED,
    STAGES,
    TRANSFORM,
    stage_total_ms,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.otlp.stages import Make, Stages, Tile
    from stagetrace.recording.marks import Event

ROOT = Path(__file__).parents[2]
START = 1_700_000_000_000_000_000
CONTEXT = SpanContext(
    0x0102030405060708090A0B0C0D0E0F10,
    0x1112131415161718,
    is_remote=False,
    trace_flags=TraceFlags(TraceFlags.SAMPLED),
    trace_state=TraceState([("vendor", "1")]),
)
ENTRY = ReadableSpan("entry", CONTEXT, resource=Resource({}))
PLAIN = SpanContext((1 << 128) - 2, (1 << 64) - 3, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
IDENTITY = Identity(PLAIN, None, is_sampled=True)
# trace id, id of the parent, trace state: as `stage_head` makes it
HEAD = b"".join(
    (
        b"\x0a\x10" + CONTEXT.trace_id.to_bytes(16, "big"),
        b"\x22\x08" + CONTEXT.span_id.to_bytes(8, "big"),
        b"\x1a\x08vendor=1",
    )
)
IDS = bytes(range(256)) * 4
MARKS = {SLA_UPGRADED: True}
UPGRADED = Block(MARKS).encoded
Arguments = tuple[Any, ...]


@pytest.fixture(scope="module")
def native() -> Tile:
    if stages._in_c is None:
        unused("stagetrace.otlp._stages")
    return stages._in_c[0]


@pytest.fixture(scope="module")
def make(native: Tile) -> Make:
    assert native is not tiled_in_python
    return stages._in_c[1]  # type: ignore[index]


def both(native: Tile, *arguments: Any) -> Stages:
    """Return what both twins return for these arguments of `tiled`; it must be the same, or both raise the same."""
    try:
        expected = tiled_in_python(*arguments)
    except Exception as error:
        with pytest.raises(type(error)):
            native(*arguments)
        raise
    got = native(*arguments)
    assert got == expected
    assert list(got[2].items()) == list(expected[2].items())
    assert [type(one) for one in got] == [bytes, int, dict, type(expected[3])]
    assert list(got[3].items()) == list(expected[3].items())
    return got


def both_make(make: Make, *arguments: Any) -> bytes:
    """Return the bytes that both twins return for these arguments of `request`."""
    got = make(*arguments)
    assert got == request_in_python(*arguments)
    assert [type(one) for one in got] == [bytes, int]
    return got[0]


@dataclass
class Schedule:
    """A request as it may be noted."""

    events: list[Event] = field(default_factory=list)
    now: int = START
    marks: list[Mark] = field(default_factory=list)

    def arguments(self, later: int = 20_000, head: bytes = HEAD, mark: bytes = b"") -> Arguments:
        end = self.now + later
        return self.events, START, end, end, head, IDS, mark

    def to_make(
        self, attributes: Any, identity: Identity | None = None, rest: bytes = b"", mark: bytes = b""
    ) -> Arguments:
        """Return arguments of `request`."""
        return self.events, START, self.now + 20_000, identity or IDENTITY, IDS, mark, rest, attributes

    def add(self, wait: int, what: str, attributes: Any = None) -> Schedule:
        """Note one event `wait` nanoseconds later: `+` or `-`, and an activity or a mark's name, maybe after a `*`."""
        self.now += wait
        sign, name = what[0], what[1:]
        if name in PRIORITY:
            self.events.append((self.now, BEGIN if sign == "+" else END, name, attributes))
        elif sign == "+":
            self.marks.append(Mark(name.removeprefix("*"), attributes))
            self.events.append((self.now, BEGIN_MARK, self.marks[-1], attributes))
        else:
            self.events.append((self.now, END_MARK, self.marks.pop(), None))
        return self


def typical() -> Schedule:
    """Return what a synchronous handler that scores one row makes."""
    reason, model = {"queue.reason": "thread_pool"}, {"ml.model.name": "Pipeline", "ml.batch.size": 1}
    schedule = Schedule()
    for name, attributes in [
        (NETWORK_RECEIVE, None),
        (QUEUE, reason),
        (TRANSFORM, model),
        (INFERENCE, model),
        (QUEUE, reason),
        (NETWORK_SEND, None),
        (NETWORK_SEND, None),
    ]:
        schedule.add(60_000, f"+{name}", attributes).add(20_000, f"-{name}")
    return schedule


USUAL = st.dictionaries(
    st.text("abcü.", max_size=9) | st.text(max_size=140),
    st.text(max_size=200) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
    max_size=4,
)


class Word(str):
    __slots__ = ()


# What `stage` lets through and an attribute cannot hold, and mappings that hooks of other people's might give.
UNUSUAL = st.sampled_from(
    [
        {},
        {"a": 1, "big": 1 << 64, "b": 2},
        {"a": 1, "half": "\ud800", "b": 2},
        {"half \udfff": 1},
        {"none": None, "bytes": b"\x00\xff", "list": [1, "x"], "nested": {"k": {"l": 1.5}}},
        {"word": Word("w"), Word("key"): 1},
        {"zero": -0.0, "other": 0.0, "true": True, "one": 1},
        MappingProxyType({"a": 1}),
        OrderedDict(b=1, a=2),
        {"ml.stage": "another", "long": "x" * 20_000},
    ]
)
NAMES = st.sampled_from([*STAGES, "", "mark", "another mark", "ü" * 64, "x" * 64, "名前", "a\x00b", "other"])
WAITS = (
    st.integers(0, 200_000)
    | st.sampled_from([0, 1, WIRE_OVERHEAD_NS - 1, WIRE_OVERHEAD_NS, WIRE_OVERHEAD_NS + 1])
    | st.integers(-300_000, 0)  # the wall clock steps back
)


@st.composite
def schedules(draw: st.DrawFn, attributes: st.SearchStrategy[Any], most: int = MAX_SEGMENTS - 1) -> Schedule:
    """Return a schedule of up to `most` events; what is ended may not be open, and what is open may not be ended."""
    schedule = Schedule()
    step = st.tuples(WAITS, st.integers(0, 9), st.sampled_from(PRIORITY), NAMES, attributes)
    for wait, choice, activity, name, given_attributes in draw(st.lists(step, max_size=most)):
        if choice < 4:
            schedule.add(wait, f"+{activity}", given_attributes)
        elif choice < 7:
            schedule.add(wait, f"-{activity}", given_attributes if choice == 4 else None)
        elif choice < 9 or not schedule.marks:
            schedule.now += wait
            mark = Mark("".join(name), given_attributes)
            schedule.marks.append(mark)
            schedule.events.append((schedule.now, BEGIN_MARK, mark, given_attributes))
        else:
            schedule.now += wait
            mark = draw(st.sampled_from(schedule.marks))  # not always the last, and maybe for the second time
            schedule.events.append((schedule.now, END_MARK, mark, None))
    return schedule


@settings(max_examples=500, deadline=None)
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


def numbers(bits: int) -> st.SearchStrategy[int]:
    """Return ids, those at the limits often; 0 is not valid, and has bytes nevertheless."""
    limits = {0, 1, (1 << 64) - 1, 1 << 63, 1 << bits - 1, (1 << bits) - 2, (1 << bits) - 1, (1 << bits) - (1 << 32)}
    return st.integers(0, (1 << bits) - 1) | st.sampled_from(sorted(limits))


STATES = st.sampled_from(
    [
        None,
        TraceState(),
        TraceState([("vendor", "1")]),
        TraceState([("a", "x" * 256), ("b@c", "-_ 1")]),
        TraceState([(f"key{number}", "y" * 250) for number in range(32)]),
    ]
)
CONTEXTS, CALLERS = (
    st.builds(SpanContext, numbers(128), numbers(64), st.just(remote), st.just(TraceFlags(1)), STATES)
    for remote in (False, True)
)
IDENTITIES = st.builds(Identity, CONTEXTS, st.none() | CALLERS, st.booleans())


@settings(max_examples=500, deadline=None)
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
    "a marked transform": [(90, "+transform"), (90, "+*transform"), (9, "-*transform"), (9, "-transform")],
    "two transforms, gaps before, between and after": [
        *((90, "+transform"), (90, "-transform"), (90, "+transform"), (90, "-transform")),
    ],
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
    tiler = Tiler(start, MAX_SEGMENTS)
    tiler.take(events)
    segments = tiler.close(now, start, end)
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
    tiler = Tiler(START, MAX_SEGMENTS)
    tiler.take(schedule.events)
    segments = tiler.close(schedule.now, START, schedule.now)
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


class Unfriendly(dict[str, Any]):
    """What a hook of somebody's might hand over."""

    def __bool__(self) -> bool:
        raise RuntimeError("no")


class Meddling(dict[str, Any]):
    """Takes away what whoever reads it stands on."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(a=1)
        self.schedule = schedule

    def __bool__(self) -> bool:
        self.schedule.events.clear()
        for mark in self.schedule.marks:
            mark.stage = "another"
        return True

    def items(self) -> Any:
        bool(self)
        return super().items()


GOOD = typical().arguments()
ONE = (START, BEGIN, QUEUE, None)


def changed(position: int, value: Any) -> Arguments:
    return (*GOOD[:position], value, *GOOD[position + 1 :])


MALFORMED: dict[str, Arguments] = {
    "no arguments": (),
    "one too few": GOOD[:-1],
    "one too many": (*GOOD, b""),
    **{f"argument {position} is None": changed(position, None) for position in range(7)},
    **{f"argument {position} is a float": changed(position, 1.5) for position in range(7)},
    "start before 1970": changed(1, -5),
    "end past int64": changed(3, 1 << 63),
    "start past int64": changed(1, 1 << 64),
    "now below int64": changed(2, -(1 << 63) - 1),
    "too few ids": changed(5, b"12345678"),
    "a memoryview": changed(4, memoryview(b"x")),
    "a bytearray": changed(6, bytearray()),
    "a tuple of events": changed(0, tuple(GOOD[0])),
    "too many events": changed(0, [ONE] * MAX_SEGMENTS),
    "an event that is a list": changed(0, [list(ONE)]),
    "an event of three": changed(0, [ONE[:3]]),
    "an event of five": changed(0, [(*ONE, None)]),
    "an event that is None": changed(0, [None]),
    "a time that is a float": changed(0, [(1.5, *ONE[1:])]),
    "a time past int64": changed(0, [(1 << 63, *ONE[1:])]),
    "a time that is a text": changed(0, [("1", *ONE[1:])]),
    "an unknown kind": changed(0, [(START, 4, *ONE[2:])]),
    "a kind below": changed(0, [(START, -1, *ONE[2:])]),
    "a huge kind": changed(0, [(START, 1 << 70, *ONE[2:])]),
    "a kind that is None": changed(0, [(START, None, *ONE[2:])]),
    "an unknown activity": changed(0, [(START, BEGIN, "lunch", None)]),
    "a gap as activity": changed(0, [(START, BEGIN, "", None)]),
    "an unknown activity ends": changed(0, [(START, END, "lunch", None)]),
    "an activity that is a mark": changed(0, [(START, BEGIN, Mark("x"), None)]),
    "an activity that cannot be hashed": changed(0, [(START, BEGIN, [], None)]),
    "a mark that is a text": changed(0, [(START, BEGIN_MARK, QUEUE, None)]),
    "a mark without a name": changed(0, [(START, BEGIN_MARK, Mark.__new__(Mark), None)]),
    "a name that is None": changed(0, [(START, BEGIN_MARK, Mark(None), None)]),  # type: ignore[arg-type]
    "a name that is bytes": changed(0, [(START, BEGIN_MARK, Mark(b"x"), None)]),  # type: ignore[arg-type]
    "a name that is a kind of str": changed(0, [(START, BEGIN_MARK, Mark(Word("x")), None)]),
    "a name that no encoding has": changed(0, [(START, BEGIN_MARK, Mark("\ud800"), None)]),
    "attributes that are a number": changed(0, [(START, BEGIN, QUEUE, 1)]),
    "attributes that are a text": changed(0, [(START, BEGIN, QUEUE, "abc")]),
    "attributes that raise": changed(0, [(START, BEGIN, QUEUE, Unfriendly(a=1))]),
    "attributes that do not merge": changed(
        0, [(START, BEGIN, QUEUE, {"a": 1}), (START, BEGIN, QUEUE, 1), (START, BEGIN, QUEUE, {"b": 1})]
    ),
}


def raises_and_falls_back(native: Any, used: Callable[..., Any], reference: Any, arguments: Arguments) -> None:
    """Where the reference has a result, recording gets that and the fault is counted; else it gets its exception."""
    with pytest.raises(Exception) as failure:  # noqa: PT011 -- any will do
        native(*arguments)
    assert not isinstance(failure.value, SystemError)
    counted = guard.failures.get("stagetrace.otlp._stages", 0)
    try:
        expected = reference(*arguments)
    except Exception as error:  # noqa: BLE001
        with pytest.raises(type(error)):
            used(*arguments)
        assert guard.failures.get("stagetrace.otlp._stages", 0) == counted
    else:
        assert used(*arguments) == expected
        assert guard.failures["stagetrace.otlp._stages"] == counted + 1


@pytest.mark.parametrize("what", MALFORMED)
def test_what_the_twin_was_not_made_for_raises_and_the_reference_takes_over(native: Tile, what: str) -> None:
    raises_and_falls_back(native, stages.tiled, tiled_in_python, MALFORMED[what])


class MeddlingState(TraceState):
    """What somebody's propagator might make."""

    schedule: Schedule

    def __bool__(self) -> bool:
        self.schedule.events.clear()
        return True


class UnfriendlyState(TraceState):
    def __bool__(self) -> bool:
        raise RuntimeError("no")


GOOD_MADE = typical().to_make({"a": 1}, Identity(CONTEXT, CONTEXT, is_sampled=True), b"rest", UPGRADED)


def made(position: int, value: Any) -> Arguments:
    return (*GOOD_MADE[:position], value, *GOOD_MADE[position + 1 :])


def identified(position: int, value: Any) -> Arguments:
    """Return arguments in which a part of the entry span's context is another."""
    context = tuple.__new__(SpanContext, (*CONTEXT[:position], value, *CONTEXT[position + 1 :]))
    return made(3, Identity(context, None, is_sampled=True))


MALFORMED_MADE: dict[str, Arguments] = {
    "no arguments": (),
    "one too few": GOOD_MADE[:-1],
    "one too many": (*GOOD_MADE, b""),
    **{f"argument {position} is None": made(position, None) for position in range(8)},
    **{f"argument {position} is a float": made(position, 1.5) for position in range(8)},
    **{
        f"events: {what}": made(0, MALFORMED[what][0])
        for what in MALFORMED
        if MALFORMED[what][0:1] not in ((), GOOD[:1])
    },
    "start before 1970": made(1, -5),
    "end before 1970": made(2, -5),
    "start past int64": made(1, 1 << 63),
    "end past int64": made(2, 1 << 63),
    "too few ids": made(4, b"12345678"),
    "a memoryview": made(6, memoryview(b"x")),
    "an identity without a parent": made(3, (CONTEXT,)),
    "a context of five": made(3, Identity(tuple.__new__(SpanContext, CONTEXT[:5]), None, is_sampled=True)),
    "no context": made(3, Identity(None, None, is_sampled=True)),  # type: ignore[arg-type]
    "a parent that is an id": made(3, Identity(CONTEXT, 5, is_sampled=True)),  # type: ignore[arg-type]
    "a parent without ids": made(3, Identity(CONTEXT, (), is_sampled=True)),  # type: ignore[arg-type]
    "a parent's id past 64 bits": made(3, Identity(CONTEXT, SpanContext(1, 1 << 64, is_remote=True), is_sampled=True)),
    "a parent's id below zero": made(3, Identity(CONTEXT, SpanContext(1, -1, is_remote=True), is_sampled=True)),
    "a trace id past 128 bits": identified(0, 1 << 128),
    "a trace id below zero": identified(0, -1),
    "a trace id that is a bool": identified(0, value=True),
    "a trace id that is a float": identified(0, 1.0),
    "a trace id that is None": identified(0, None),
    "an id past 64 bits": identified(1, 1 << 64),
    "an id below zero": identified(1, -1),
    "an id that is a text": identified(1, "1"),
    "a trace state that is a text": identified(4, "vendor=1"),
    "a trace state that is a number": identified(4, 1),
    "a trace state that raises": identified(4, UnfriendlyState()),
    "attributes that are a text": made(7, "abc"),
    "attributes that are pairs": made(7, [("a", 1)]),
}


@pytest.mark.parametrize("what", MALFORMED_MADE)
def test_what_no_request_is_raises_and_the_reference_takes_over(make: Make, what: str) -> None:
    raises_and_falls_back(make, stages.request, request_in_python, MALFORMED_MADE[what])


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([*PRIORITY, Mark("m"), Mark(INFERENCE), Mark("\ud800"), START, {}, {"a": 1}, [], object()]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(JUNK, JUNK, JUNK, JUNK) | JUNK, max_size=8), st.integers(0, 7), JUNK)
def test_junk_raises_or_gives_what_the_reference_gives(native: Tile, events: Any, position: int, junk: Any) -> None:
    """Nothing crashes, and nothing is made up."""
    arguments = (events, *GOOD[1:])
    if position < len(arguments):
        arguments = (*arguments[:position], junk, *arguments[position + 1 :])
    try:
        got = native(*arguments)
    except Exception:  # noqa: BLE001
        return
    assert got == tiled_in_python(*arguments)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(JUNK, JUNK, JUNK, JUNK) | JUNK, max_size=8), st.integers(0, 8), JUNK, st.integers(0, 5))
def test_a_request_of_junk_raises_or_is_what_the_reference_gives(
    make: Make, events: Any, position: int, junk: Any, part: int
) -> None:
    """Junk for one argument or, at 8, for a part of the context."""
    arguments = (events, *GOOD_MADE[1:])
    if position == 8:
        arguments = (events, *identified(part, junk)[1:])
    elif position:
        arguments = (*arguments[:position], junk, *arguments[position + 1 :])
    try:
        got = make(*arguments)
    except Exception:  # noqa: BLE001
        return
    assert got == request_in_python(*arguments)


def test_nobody_pulls_the_rug_from_under_a_request(make: Make) -> None:
    """Attributes and a trace state whose code empties the list of events and renames marks, while both are in use."""
    for turn in range(1, 50):
        schedule = Schedule().add(100_000, f"+mark {turn}").add(100_000, f"+{QUEUE}", {"a": turn})
        schedule.add(100_000, f"+mark {turn * 7}", Meddling(schedule)).add(100_000, f"+{INFERENCE}", {"b": 1.5})
        encoded, count = make(*schedule.to_make(Meddling(schedule)))
        spans = ScopeSpans.FromString(encoded).spans
        assert count == 4
        assert schedule.events == []
        keys = [*(stage_total_ms(span.name) for span in spans[:3]), "b", "a"]
        assert [pair.key for pair in spans[-1].attributes] == keys
        state = MeddlingState([("vendor", "1")])
        state.schedule = typical()
        context = SpanContext(1, 2, is_remote=False, trace_state=state)
        encoded, count = make(*state.schedule.to_make({}, Identity(context, None, is_sampled=True)))
        assert count == 2  # noted before it was emptied, or after
        assert ScopeSpans.FromString(encoded).spans[-1].trace_state == "vendor=1"


def test_nobody_pulls_the_rug(native: Tile) -> None:
    """Attributes whose code empties the list of events and renames marks, while both are in use."""
    for turn in range(1, 50):
        schedule = Schedule().add(100_000, f"+mark {turn}").add(100_000, f"+{QUEUE}", {"a": turn})
        schedule.add(100_000, f"+mark {turn * 7}", Meddling(schedule)).add(100_000, f"+{INFERENCE}", {"b": 1.5})
        encoded, count, totals, model = native(*schedule.arguments())
        assert count == 3
        assert schedule.events == []
        assert [span.name for span in ScopeSpans.FromString(encoded).spans] == list(totals)
        assert model == {"b": 1.5}


def test_events_that_are_late_are_in_or_not(native: Tile) -> None:
    """Another thread appends while the twin works: the result is that of some of the list's lengths."""
    schedule = Schedule()
    for number in range(100):
        schedule.add(70_000, f"+mark {number}", {"n": number})
    _, *rest = schedule.arguments()
    possible = [tiled_in_python(schedule.events[:length], *rest) for length in range(101)]
    for _ in range(20):
        shared: list[Event] = []
        writer = threading.Thread(target=lambda shared=shared: [shared.append(event) for event in schedule.events])
        writer.start()
        while writer.is_alive():
            got = native(shared, *rest)
            assert got == possible[got[1] - 1]
        writer.join()


def found_first(folder: Path) -> dict[str, str]:
    """Return an environment in which the package is that in `folder`, and this module can be imported."""
    path = [folder, ROOT / "tests", Path(__file__).parent]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}


LEAKS = """
import resource, sys
import test_stages as t

native, make = t.stages._in_c
schedule = t.typical()
schedule.add(100_000, "+mark", {"a": 1}).add(10, "+mark", {"b": "x" * 9_000}).add(100_000, "+odd", {"c": [1]})
good = schedule.arguments()
identity = t.Identity(t.CONTEXT, t.CONTEXT, is_sampled=True)
made = schedule.to_make({"a": 1, "b": [2], "c": "z" * 9_000}, identity, b"rest")
bad = [(native, t.MALFORMED[name]) for name in t.MALFORMED]
bad += [(make, t.MALFORMED_MADE[name]) for name in t.MALFORMED_MADE]
watched = [*good, *good[0], *(part for event in good[0] for part in event), *(mark.stage for mark in schedule.marks)]
watched += [*made, *t.IDENTITY, *t.PLAIN, *t.CONTEXT, *t.PRIORITY, t.Mark, t.stages.encode_stages]

def calls(number):
    for turn in range(number):
        native(*good)
        native(*t.GOOD)
        make(*made)
        make(*t.GOOD_MADE)
        if not turn % 10:
            twin, arguments = bad[turn // 10 % len(bad)]
            try:
                twin(*arguments)
            except Exception:
                pass

def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

calls(10_000)
before, references = rss(), [sys.getrefcount(one) for one in watched]
calls(100_000)
after, now = rss(), [sys.getrefcount(one) for one in watched]
# A leak is of thousands; the whole process, its garbage collector included, has its hands on None and small numbers.
print(after - before, sum(abs(a - b) > 100 for a, b in zip(references, now)))
"""


@pytest.mark.usefixtures("native")
def test_nothing_leaks() -> None:
    """400,000 calls and 10,000 malformed ones: no memory, and no reference to what was given."""
    done = subprocess.run(
        [PYTHON, "-c", LEAKS],
        env=found_first(Path(stages.__file__).parents[2]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, differing = map(int, done.stdout.split())
    assert differing == 0
    assert grown < 1_000  # KiB (bytes on macOS); a leak of 32 bytes a call would be 3,000 for each of the four


SERVE = """
import os
import uvicorn, ml
from stagetrace.otlp import stages

ml.app.add_api_route("/native", lambda: [stages.NATIVE, stages.request is stages.request_in_python])
uvicorn.run(ml.app, port=int(os.environ["PORT"]), log_level="warning")
"""


@pytest.mark.parametrize("wanted", ["0", "1", None])
def test_a_real_service_is_recorded_by_either(tmp_path: Path, wanted: str | None) -> None:
    """STAGETRACE_NATIVE=0 forbids the twin in C; the request arrives tiled with it and without."""
    if wanted != "0" and not stages.NATIVE:
        unused("stagetrace.otlp._stages")
    with run_sink() as sink:
        env = {"STAGETRACE": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        if wanted is not None:
            env["STAGETRACE_NATIVE"] = wanted
        with run_service(tmp_path, env=env, argv=[PYTHON, "-c", SERVE]) as service:
            assert service.client.get("/native").json() == ([False, True] if wanted == "0" else [True, False])
            trace_id, answer = service.call("POST", "/predict", json={"inference_s": 0.01})
            assert answer.status_code == 200
            request = sink.request(trace_id)
    assert_tiled(request)
    assert INFERENCE in request.names
    assert "stagetrace.otlp" not in service.log


@pytest.fixture
def extensions() -> set[str]:
    """Return what a wheel has of this folder's C sources."""
    sys.path.insert(0, str(ROOT))
    try:
        from hatch_build import SUFFIX
    finally:
        sys.path.remove(str(ROOT))
    return {f"stagetrace/otlp/_{name}{SUFFIX}" for name in ("stages", "decoder")}


def build(into: Path, *what: str, **env: str) -> tuple[Path, str]:
    """Build this package; return the wheel and what was said."""
    done = subprocess.run(
        [PYTHON, "-m", "build", "--no-isolation", *what, "--outdir", str(into), str(ROOT)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel, done.stdout + done.stderr


REPORT = """
import test_stages as t
from stagetrace.otlp import decoder_twin

parts = (b"\\x0a\\x01x" * 3, 0, 9, 9)
print(t.stages.NATIVE, t.stages.request(*t.GOOD_MADE) == t.stages.request_in_python(*t.GOOD_MADE))
print(decoder_twin.NATIVE, decoder_twin.parts(*parts) == decoder_twin.parts_in_python(*parts))
print(t.stages.__file__)
"""


def report_of(wheel: Path, folder: Path) -> list[str]:
    """Install a wheel; return whether it has each twin in C, and whether that works."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    done = subprocess.run(
        [PYTHON, "-c", REPORT], env=found_first(folder), capture_output=True, text=True, timeout=60, check=True
    )
    *found, where = done.stdout.split()
    assert where.startswith(str(folder))
    return found


@pytest.mark.usefixtures("native")
def test_a_wheel_made_from_the_source_archive_has_the_twin_and_the_platforms_tag(
    tmp_path: Path, extensions: set[str]
) -> None:
    wheel, _ = build(tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read("stagetrace-0.1.0.dist-info/WHEEL").decode()
    assert extensions <= set(names)
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert "Root-Is-Purelib: false" in metadata
    assert "-none-any" not in metadata
    if all(name.endswith(".abi3.so") for name in extensions):
        assert "Tag: cp310-abi3-" in metadata
    assert report_of(wheel, tmp_path / "site") == ["True"] * 4


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"CC": "no-such-compiler"}, "No such file or directory: 'no-such-compiler'"),
        ({"CC": "false"}, "false failed with 1"),
        ({"CFLAGS": "-include no-such-header.h"}, "no-such-header.h"),
        ({"STAGETRACE_NATIVE": "0"}, "STAGETRACE_NATIVE=0"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_and_says_so_in_one_line(
    tmp_path: Path, env: dict[str, str], why: str
) -> None:
    """Even where the source tree holds an extension that an editable installation has compiled."""
    wheel, said = build(tmp_path / "dist", "--wheel", **env)
    assert wheel.name.endswith("-py3-none-any.whl")
    (line,) = [line for line in said.splitlines() if "without the C extension" in line]
    assert why in line
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".c", ".h"))]
    assert report_of(wheel, tmp_path / "site") == ["False", "True"] * 2
