"""Many visits become few spans: what is summed, what is not, and what stays exact."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stagetrace.request.stages import MAX_SEGMENTS, Segment, coalesced
from stagetrace.tracing.span_context import SpanContext

CONTEXT = SpanContext(1, 2, is_remote=False)
STAGES = st.sampled_from(["network.send"] * 3 + ["postprocess"] * 3 + ["queue", "inference", "network.receive"])
VISITS = st.tuples(STAGES, st.integers(1, 50) | st.integers(1, 2_000), st.booleans(), st.integers(0, 40))
START = 1_000


def visits(*steps: tuple[Any, ...]) -> list[Segment]:
    """Return segments end to end; a step is a stage, its length, whether by hand, and 0 for a context."""
    segments, at = [], START
    for stage, length, *more in steps:
        segment = Segment(stage, at)
        at = segment.end = at + length
        segment.explicit = bool(more and more[0])
        if more and more[1] == 0:
            segment.context = CONTEXT
        segments.append(segment)
    return segments


def sums(segments: list[Segment], since: int, until: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in segments:
        length = min(one.end, until) - max(one.start, since)
        if length > 0:
            found[one.stage] = found.get(one.stage, 0) + length
    return found


@given(st.lists(VISITS, min_size=1, max_size=400), st.data())
def test_sums_and_tiling_stay_exact_on_either_side_of_each_cut(steps: list[Any], data: st.DataObject) -> None:
    before = visits(*steps)
    ends = [one.end for one in before]
    cuts = tuple(sorted(data.draw(st.sets(st.sampled_from(ends), max_size=3))))
    few = coalesced(visits(*steps), cuts)
    assert (few[0].start, few[-1].end) == (START, ends[-1])
    assert all(one.end == other.start for one, other in pairwise(few))
    assert sum(one.coalesced or 1 for one in few) == len(before)
    assert [one.start for one in few if one.context] == [one.start for one in before if one.context]
    if len(few) <= MAX_SEGMENTS:
        for since, until in pairwise([START, *cuts, ends[-1]]):
            assert sums(few, since, until) == sums(before, since, until)
    assert sums(few, START, ends[-1]) == sums(before, START, ends[-1])


@given(st.integers(9, 2_000), st.integers(1, 9))
def test_however_many_chunks_a_stream_has_it_is_a_few_spans(chunks: int, send: int) -> None:
    steps = [
        ("preprocess", 700),
        ("inference", 900),
        ("network.send", send),
        *[("postprocess", 10), ("network.send", send)] * chunks,
    ]
    stream = visits(*steps)
    few = coalesced(stream, (stream[2].end, stream[8].end, stream[10].end))
    assert len(few) <= 11
    assert [one.stage for one in few[:3]] == ["preprocess", "inference", "network.send"]


def test_a_long_visit_stays_where_it_is_and_the_longest_of_the_others_is_said() -> None:
    stream = visits(
        *[("postprocess", 10), ("network.send", 2)] * 50,
        ("postprocess", 300),
        *[("network.send", 4), ("postprocess", 20)] * 50,
    )
    few = coalesced(stream)
    assert [(one.stage, one.end - one.start, one.coalesced, one.longest) for one in few] == [
        ("postprocess", 10, 0, 0),  # before the first send
        ("network.send", 100, 50, 2),
        ("postprocess", 490, 49, 10),
        ("postprocess", 300, 0, 0),
        ("network.send", 200, 50, 4),
        ("postprocess", 1000, 50, 20),
    ]


def test_what_all_visits_say_alike_is_kept() -> None:
    stream = visits(*[("queue", 10), ("network.send", 2)] * 12)
    for number, one in enumerate(stream):
        one.attributes = {"queue.reason": "thread_pool", "queue.waiters": number}
    few = coalesced(stream)
    assert [dict(one.attributes) for one in few[1:]] == [{"queue.reason": "thread_pool"}] * 2


def test_few_sends_and_many_model_calls_stay_as_they_are() -> None:
    calls = visits(*[("inference", 1), ("preprocess", 1)] * 50, *[("network.send", 1), ("postprocess", 1)] * 8)
    assert coalesced(calls) is calls
