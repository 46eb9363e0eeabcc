"""A record's stages tile it, whatever comes: over generated schedules, against a model that knows each nanosecond."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.request.marks import Mark
from stagetrace.request.request import Request
from stagetrace.request.stages import Segment, coalesced
from stagetrace.request.tiler import PRIORITY
from stagetrace.semconv import PREPARE, TRANSFORM
from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.native

ENTRY = SpanContext(1, 2, is_remote=False)
QUEUE, INFERENCE, SEND, RECEIVE = "queue", "inference", "network.send", "network.receive"


@dataclass
class Clock:
    now: int = 1_000_000
    readings: list[int] = field(default_factory=list)

    def __call__(self) -> int:
        return self.now


def bound(clock: Clock, limit: int = 1_000) -> Request:
    record = Request(clock)
    record.limit = limit
    record.bind(ENTRY, clock.now)
    return record


def shape(segments: list[Segment]) -> list[tuple[str, int]]:
    return [(segment.stage, segment.end - segment.start) for segment in segments]


def run(*steps: tuple[int, str], total: int | None = None) -> list[tuple[str, int]]:
    """Play steps (at, "+activity" | "-activity"), in microseconds; return (stage, duration in us)."""
    clock = Clock(0)
    record = bound(clock)
    for at, step in steps:
        clock.now = at * 1000
        (record.enter if step[0] == "+" else record.leave)(step[1:])
    end = (total if total is not None else clock.now // 1000) * 1000
    clock.now = end
    return [(stage, duration // 1000) for stage, duration in shape(record.close(0, end).segments())]


def test_gaps_are_named_by_the_inference_that_follows() -> None:
    assert run((100, "+inference"), (300, "-inference"), (500, "+inference"), (600, "-inference"), total=700) == [
        ("preprocess", 100),
        ("inference", 200),
        ("preprocess", 200),
        ("inference", 100),
        ("postprocess", 100),
    ]


def test_without_inference_gaps_are_the_handler() -> None:
    assert run((100, "+queue"), (300, "-queue"), total=700) == [("handler", 100), ("queue", 200), ("handler", 400)]


def test_a_transform_before_an_inference_is_preprocess_and_one_after_it_is_postprocess() -> None:
    steps = [(100, "+transform"), (200, "-transform"), (300, "+inference"), (400, "-inference")]
    assert run(*steps, (500, "+transform"), (600, "-transform"), total=700) == [
        ("preprocess", 300),
        ("inference", 100),
        ("postprocess", 300),
    ]


def test_a_transform_alone_is_the_inference() -> None:
    assert run((100, "+transform"), (300, "-transform"), total=500) == [
        ("preprocess", 100),
        ("inference", 200),
        ("postprocess", 200),
    ]


def test_a_transform_that_more_unmarked_time_follows_is_not_the_inference() -> None:
    """A model that nobody recognises may have taken it. What is marked, sending say, does not count."""
    transform = [(100, "+transform"), (300, "-transform")]
    assert run(*transform, total=501) == [("handler", 501)]
    sending = [(400, "+network.send"), (900, "-network.send")]
    assert run(*transform, *sending, total=960) == [
        *(("preprocess", 100), ("inference", 200), ("postprocess", 100)),
        *(("network.send", 500), ("postprocess", 60)),
    ]
    assert run(*transform, (400, "+transform"), (450, "-transform"), total=550) == [
        *(("preprocess", 100), ("inference", 200), ("postprocess", 250)),
    ]


def test_what_only_prepares_is_never_the_inference() -> None:
    prepare = [(100, "+prepare"), (300, "-prepare")]
    assert run(*prepare, total=310) == [("handler", 310)]
    assert run(*prepare, (300, "+transform"), (400, "-transform"), total=410) == [
        *(("preprocess", 300), ("inference", 100), ("postprocess", 10)),
    ]
    assert run((0, "+transform"), (100, "-transform"), *prepare, total=310) == [
        ("inference", 100),
        ("postprocess", 210),
    ]


def test_what_lies_between_an_inference_and_its_postprocessing_is_none_of_the_next() -> None:
    """A gap after an inference belongs to the next one, unless postprocessing begins before that."""
    one = [(100, "+inference"), (300, "-inference"), (310, "+postprocess"), (400, "-postprocess")]
    more = [(405, "+postprocess"), (500, "-postprocess")]
    assert run(*one, *more, (600, "+inference"), (700, "-inference"), total=800) == [
        *(("preprocess", 100), ("inference", 200), ("postprocess", 200)),
        *(("preprocess", 100), ("inference", 100), ("postprocess", 100)),
    ]


def test_a_model_within_postprocessing_is_an_inference_and_a_transform_is_not() -> None:
    steps = [(0, "+inference"), (100, "-inference"), (100, "+postprocess"), (200, "+inference"), (300, "-inference")]
    assert run(*steps, (400, "+transform"), (500, "-transform"), (600, "-postprocess"), total=700) == [
        *(("inference", 100), ("postprocess", 100), ("inference", 100), ("postprocess", 400)),
    ]


def test_postprocessing_without_an_inference_names_nothing_else() -> None:
    assert run((100, "+postprocess"), (300, "-postprocess"), total=400) == [
        *(("handler", 100), ("postprocess", 200), ("handler", 100)),
    ]


@pytest.mark.parametrize("limit", [1, 2, 128])
@pytest.mark.parametrize(
    ("activity", "took", "inferred"), [(TRANSFORM, 180, True), (TRANSFORM, 100, False), (PREPARE, 180, False)]
)
def test_where_only_a_model_could_be_meant_none_is_said_to_be_recognised(
    limit: int, activity: str, took: int, inferred: bool
) -> None:
    """Past the limit, too."""
    clock = Clock(0)
    record = bound(clock, limit)
    clock.now = 10
    record.enter(activity, {"name": "Scaler"})
    clock.now += took
    record.leave(activity)
    clock.now = 290
    stages = shape(record.close(0, 290).segments())
    if inferred:
        assert ("inference", took) in stages
        assert record.stages.model in ({"name": "Scaler"}, {})  # what is summed up is not described
    else:
        assert {stage for stage, _ in stages} == {"handler"}
        assert record.stages.model == {"ml.model.recognised": False}


@pytest.mark.parametrize("limit", [1, 128])
def test_a_stage_of_a_name_that_we_use_within_keeps_its_time(limit: int) -> None:
    """Past the limit, too: its name is not settled as if it were ours."""
    for name in (TRANSFORM, PREPARE):
        clock = Clock(0)
        record = bound(clock, limit)
        mark = Mark(name)
        clock.now = 10
        record.begin_mark(mark)
        clock.now = 200
        record.end_mark(mark)
        assert (name, 190) in shape(record.close(0, 200).segments())
        assert record.stages.model == {}


def test_overlapping_inferences_count_once() -> None:
    steps = [(100, "+inference"), (200, "+inference"), (300, "-inference"), (500, "-inference")]
    assert run(*steps, total=600) == [("preprocess", 100), ("inference", 400), ("postprocess", 100)]


def test_short_gaps_between_sends_belong_to_sending_and_longer_ones_do_not() -> None:
    steps = [(100, "+network.send"), (200, "-network.send"), (230, "+network.send"), (300, "-network.send")]
    assert run(*steps, total=310) == [("handler", 100), ("network.send", 210)]
    steps = [(100, "+network.send"), (200, "-network.send"), (900, "+network.send"), (950, "-network.send")]
    assert run(*steps, total=2000) == [
        ("handler", 100),
        ("network.send", 100),
        ("handler", 700),
        ("network.send", 50),
        ("handler", 1050),
    ]


def test_an_explicit_mark_wins_and_the_innermost_of_two() -> None:
    clock = Clock(0)
    record = bound(clock)
    outer, inner = Mark("preprocess"), Mark("tokenize")
    steps: list[tuple[int, Callable[[], object]]] = [
        (10, lambda: record.begin_mark(outer)),
        (20, lambda: record.enter(INFERENCE)),
        (30, lambda: record.begin_mark(inner)),
        (40, lambda: record.end_mark(inner)),
        (50, lambda: record.leave(INFERENCE)),
        (60, lambda: record.end_mark(outer)),
    ]
    for at, step in steps:
        clock.now = at
        step()
    clock.now = 70
    assert shape(record.close(0, 70).segments()) == [
        ("handler", 10),
        ("preprocess", 20),
        ("tokenize", 10),
        ("preprocess", 20),
        ("handler", 10),
    ]


def test_a_parent_that_was_given_out_becomes_a_span_of_its_own() -> None:
    """A child span hangs under it, so that neither merging nor an instant of no length may lose it."""
    clock = Clock(0)
    record = bound(clock)
    first = record.stage_context()
    assert first
    record.enter(TRANSFORM)
    second = record.stage_context()
    assert second
    clock.now = 100
    record.leave(TRANSFORM)
    segments = record.close(0, 100).segments()
    assert {segment.context.span_id for segment in segments if segment.context} == {first.span_id, second.span_id}
    assert record.stage_context() == ENTRY


SAID = {"ml.model.name": "m", "ml.model.version": "3", "rows": 2}
SEEN = {"ml.model.name": "Pipeline", "ml.framework": "sklearn"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (SAID, {"ml.model.name": "m", "ml.model.version": "3", "ml.framework": "sklearn"}),
        ({"ml.model.version": "3"}, {**SEEN, "ml.model.version": "3"}),
        ({"rows": 2}, SEEN),
        ({}, SEEN),
    ],
)
def test_what_a_person_says_of_the_model_wins_over_what_is_seen(said: dict[str, Any], expected: dict[str, Any]) -> None:
    """The entry span gets the model, and nothing else that a mark says; a later inference adds nothing."""
    clock = Clock(0)
    record = bound(clock)
    for attributes in (said, {"ml.model.name": "second", "ml.model.version": "4"}):
        mark = Mark(INFERENCE, attributes)
        clock.now += 10
        record.begin_mark(mark)
        record.enter(INFERENCE, SEEN)
        clock.now += 10
        record.leave(INFERENCE)
        record.end_mark(mark)
        record.enter(INFERENCE, {"ml.batch.size": 7})
        clock.now += 10
        record.leave(INFERENCE)
    segments = record.close(0, clock.now).segments()
    assert record.stages.model == expected
    assert segments[1].attributes == {**SEEN, **said}


def test_a_marked_stage_that_is_no_inference_names_no_model_of_the_request() -> None:
    clock = Clock(0)
    record = bound(clock)
    record.begin_mark(Mark("rerank", SAID))
    clock.now = 10
    assert [segment.attributes for segment in record.close(0, 10).segments()] == [SAID]
    assert record.stages.model == {}


def test_marks_after_the_close_do_nothing() -> None:
    clock = Clock(0)
    record = bound(clock)
    clock.now = 100
    before = shape(record.close(0, 100).segments())
    record.enter(INFERENCE)
    clock.now = 200
    record.leave(INFERENCE)
    assert before == [("handler", 100)]
    assert record.closed


def test_a_clock_that_steps_back_still_tiles() -> None:
    clock = Clock(1000)
    record = bound(clock)
    clock.now = 500
    record.enter(INFERENCE)
    clock.now = 1500
    record.leave(INFERENCE)
    clock.now = 2000
    assert shape(record.close(1000, 2000).segments()) == [("inference", 500), ("postprocess", 500)]
    assert bound(clock).close(2000, 1900).segments() == []


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 200_000),  # nanoseconds since the last event
        st.sampled_from([f"{sign}{name}" for sign in "+-" for name in (*PRIORITY, "mark a", "mark b", "parent")]),
    ),
    max_size=60,
)


def play(events: list[tuple[int, str]], limit: int) -> tuple[list[Segment], int, dict[str, int]]:
    """Play a schedule; return the segments, the end, and what a model counts for the stages that need no naming."""
    clock = Clock(1_000_000)
    record = bound(clock, limit)
    counts = dict.fromkeys(PRIORITY, 0)
    marks: list[Mark] = []
    expected: dict[str, int] = {}
    for wait, event in events:
        name = marks[-1].stage if marks else next((a for a in PRIORITY if counts[a]), "")
        expected[name] = expected.get(name, 0) + wait
        clock.now += wait
        sign, what = event[0], event[1:]
        if what == "parent":
            record.stage_context()
        elif what.startswith("mark"):
            if sign == "+":
                marks.append(Mark(what))
                record.begin_mark(marks[-1])
            elif marks:
                record.end_mark(marks.pop())
        elif sign == "+":
            counts[what] += 1
            record.enter(what)
        elif counts[what]:
            counts[what] -= 1
            record.leave(what)
    return record.close(1_000_000, clock.now).segments(), clock.now, expected


@given(EVENTS, st.sampled_from([2, 5, 128]))
def test_any_schedule_tiles_and_keeps_its_sums(events: list[tuple[int, str]], limit: int) -> None:
    """End to end without hole or overlap; each stage's sum is exact, past the limit too."""
    segments, end, expected = play(events, limit)
    if end == 1_000_000:
        assert segments == []
        return
    assert segments[0].start == 1_000_000
    assert segments[-1].end == end
    for before, after in pairwise(segments):
        assert before.end == after.start
    assert all(segment.stage and segment.stage not in (TRANSFORM, PREPARE) for segment in segments)
    sums: dict[str, int] = {}
    for stage, duration in shape(segments):
        sums[stage] = sums.get(stage, 0) + duration
    for stage in ("mark a", "mark b", QUEUE):
        assert sums.get(stage, 0) == expected.get(stage, 0)
    inferred = expected.get(INFERENCE, 0)
    assert inferred <= sums.get(INFERENCE, 0) <= inferred + expected.get(TRANSFORM, 0)
    for stage in (SEND, RECEIVE):  # the moments between two chunks of a body count as moving it
        assert expected.get(stage, 0) <= sums.get(stage, 0) <= expected.get(stage, 0) + expected.get("", 0)


@given(EVENTS, st.integers(0, 5_000_000), st.integers(0, 5_000_000))
def test_any_entry_interval_is_tiled(events: list[tuple[int, str]], start: int, length: int) -> None:
    """Whatever the SDK says of start and end, which are not our clock's readings."""
    clock = Clock(1_000_000)
    record = bound(clock)
    for wait, event in events:
        clock.now += wait
        if event[1:] in PRIORITY:
            (record.enter if event[0] == "+" else record.leave)(event[1:])
    segments = record.close(start, start + length).segments()
    if not length:
        assert segments == []
        return
    assert segments[0].start == start
    assert segments[-1].end == start + length
    for before, after in pairwise(segments):
        assert before.end == after.start
        assert after.start <= after.end


def test_threads_of_one_request_never_break_the_tiling() -> None:
    """Eight threads mark at once, on the real clock."""
    record = Request()
    start = record.started
    record.bind(ENTRY, start)
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(500):
            activity = PRIORITY[(number + turn) % len(PRIORITY)]
            record.enter(activity)
            record.stage_context()
            record.leave(activity)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert record.so_far()[-1].stage == ""  # all that has begun has ended
    end = time.time_ns()
    segments = record.close(start, end).segments()
    assert segments[0].start == start
    assert segments[-1].end == end
    assert all(a.end == b.start for a, b in pairwise(segments))


def test_memory_is_bounded_whatever_comes() -> None:
    """A runaway loop of stages with names of its own: kept small, summed, and marked so."""
    clock = Clock(0)
    record = bound(clock)
    for number in range(10_000):
        mark = Mark(f"name {number}")
        record.begin_mark(mark)
        clock.now += 10
        record.end_mark(mark)
        clock.now += 10
    segments = record.close(0, clock.now).segments()
    assert len(segments) < 2_000
    segments = coalesced(segments)
    assert len(segments) < 200
    assert sum(segment.end - segment.start for segment in segments) == clock.now
    assert sum(segment.coalesced for segment in segments) > 9_000
