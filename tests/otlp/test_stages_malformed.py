"""The twins in C raise on whatever they were not made for, and the reference takes over; nothing crashes or leaks."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.trace import SpanContext, TraceState

from otlp.schedules import CONTEXT, GOOD, GOOD_MADE, START, Arguments, Schedule, Word, found_first, typical
from services import PYTHON
from stagetrace import guard
from stagetrace.otlp.encode import request_encoder as stages
from stagetrace.otlp.encode.request_encoder import request_in_python, tiled_in_python
from stagetrace.recording.marks import BEGIN, BEGIN_MARK, END, Mark
from stagetrace.recording.own_span import Identity
from stagetrace.recording.segments import MAX_SEGMENTS
from stagetrace.recording.tiler import PRIORITY
from stagetrace.semconv import INFERENCE, QUEUE, stage_total_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.otlp.encode.request_encoder import Make, Tile
    from stagetrace.recording.marks import Event

pytestmark = pytest.mark.native

ONE = (START, BEGIN, QUEUE, None)


class Unfriendly(dict[str, Any]):
    """Values that a patch of another package might pass."""

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
    counted = guard.failures.get("stagetrace._native.encoder", 0)
    try:
        expected = reference(*arguments)
    except Exception as error:  # noqa: BLE001
        with pytest.raises(type(error)):
            used(*arguments)
        assert guard.failures.get("stagetrace._native.encoder", 0) == counted
    else:
        assert used(*arguments) == expected
        assert guard.failures["stagetrace._native.encoder"] == counted + 1


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


LEAKS = """
import resource, sys
from otlp import schedules as s, test_stages_malformed as t

native, make = t.stages._in_c
schedule = s.typical()
schedule.add(100_000, "+mark", {"a": 1}).add(10, "+mark", {"b": "x" * 9_000}).add(100_000, "+odd", {"c": [1]})
good = schedule.arguments()
identity = s.Identity(s.CONTEXT, s.CONTEXT, is_sampled=True)
made = schedule.to_make({"a": 1, "b": [2], "c": "z" * 9_000}, identity, b"rest")
bad = [(native, t.MALFORMED[name]) for name in t.MALFORMED]
bad += [(make, t.MALFORMED_MADE[name]) for name in t.MALFORMED_MADE]
watched = [*good, *good[0], *(part for event in good[0] for part in event), *(mark.stage for mark in schedule.marks)]
watched += [*made, *s.IDENTITY, *s.PLAIN, *s.CONTEXT, *s.PRIORITY, s.Mark, t.stages.encode_stages]

def calls(number):
    for turn in range(number):
        native(*good)
        native(*s.GOOD)
        make(*made)
        make(*s.GOOD_MADE)
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


@pytest.mark.usefixtures("native", "services")  # a service, for the time it takes
def test_nothing_leaks() -> None:
    """400,000 calls and 10,000 malformed ones: no memory, and no reference to what was given."""
    done = subprocess.run(
        [PYTHON, "-c", LEAKS],
        env=found_first(Path(stages.__file__).parents[3]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, differing = map(int, done.stdout.split())
    assert differing == 0
    assert grown < 1_000  # KiB (bytes on macOS); a leak of 32 bytes a call would be 3,000 for each of the four
