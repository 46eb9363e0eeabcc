"""A record survives whatever is noted on it and asked of it: an exception at most, no crash, no leak."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceState

from otlp.schedules import (
    BOTH,
    CONTEXT,
    IDENTITY,
    IN_C,
    PLAIN,
    ROOT,
    START,
    Implementation,
    Schedule,
    Word,
    child,
    encoded,
    found_first,
    messages,
    typical,
)
from services import PYTHON
from stagetrace.request.own_span import Identity
from stagetrace.request.tiler import PRIORITY
from stagetrace.semconv import INFERENCE, QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.native


class Unfriendly(dict[str, Any]):
    """Values that a patch of another package might pass."""

    def __bool__(self) -> bool:
        raise RuntimeError("no")


def record_of(how: Implementation, **more: Any) -> Any:
    record = how.marks()
    record.started, record.clock = START, lambda: START + 100
    for name, value in more.items():
        setattr(record, name, value)
    return record


NOTED: dict[str, Callable[[Any, Any], object]] = {
    "nothing begins": lambda record, _: record.enter(),
    "one argument too many": lambda record, _: record.enter(QUEUE, {}, 1, 2),
    "attributes twice": lambda record, _: record.enter(QUEUE, {}, attributes={}),
    "another keyword": lambda record, _: record.enter(QUEUE, when=1),
    "an end with attributes": lambda record, _: record.leave(QUEUE, attributes={}),
    "an end with two times": lambda record, _: record.leave(QUEUE, 1, 2),
    "an unknown activity": lambda record, _: record.enter("lunch"),
    "a gap as activity": lambda record, _: record.enter(""),
    "an unknown activity ends": lambda record, _: record.leave("lunch"),
    "an activity that is a number": lambda record, _: record.enter(1),
    "an activity that is None": lambda record, _: record.leave(None),
    "a mark that is a text": lambda record, _: record.begin_mark(QUEUE),
    "a mark that is None": lambda record, _: record.begin_mark(None),
    "two marks": lambda record, mark: record.begin_mark(mark("a"), 1, 2),
}


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("what", NOTED)
def test_what_no_mark_is_raises_where_it_is_noted(how: Implementation, what: str) -> None:
    record = record_of(how)
    with pytest.raises((TypeError, KeyError, AttributeError)):
        NOTED[what](record, how.mark)
    assert list(record.tile(START, START + 100).totals()) == ["handler"]


ASKED: dict[str, Callable[[Any], object]] = {
    "a start before 1970": lambda record: record.tile(-5, START),
    "an end past int64": lambda record: record.tile(START, 1 << 63),
    "a start past int64": lambda record: record.tile(1 << 64, START),
    "a start that is None": lambda record: record.tile(None, START),
    "an end that is a float": lambda record: record.tile(START, 1.5),
    "one time": lambda record: record.tile(START),
    "a context of nothing": lambda record: record.open_context(),
    "a time past int64": lambda record: record.enter(QUEUE, at=1 << 63),
    "a time that is a float": lambda record: record.enter(QUEUE, at=1.5),
    "a time that is a text": lambda record: record.leave(QUEUE, at="1"),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_is_asked_amiss_raises_in_c(native: Implementation, what: str) -> None:
    """Python takes some of it."""
    record = record_of(native)
    with pytest.raises((TypeError, OverflowError)):
        ASKED[what](record)
    record.clock = lambda: None
    with pytest.raises(TypeError):
        record.enter(QUEUE)
    record.clock, record.started = lambda: START + 100, -5
    with pytest.raises(OverflowError):
        record.so_far()
    record.started = START
    assert list(record.tile(START, START + 100).totals()) == ["handler"]


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("attributes", [Unfriendly(a=1), 1, "abc", [("a", 1)]], ids=str)
def test_attributes_that_are_none_cost_no_stage(how: Implementation, attributes: Any) -> None:
    """Whatever is asked first raises, or not; the stages are there in any case."""
    record = record_of(how)
    record.enter(QUEUE, {"a": 1}, START + 10)
    record.enter(QUEUE, attributes, START + 20)
    record.enter(QUEUE, {"b": 1}, START + 30)
    for _ in range(3):
        record.leave(QUEUE, START + 50)
    try:
        record.so_far()
    except Exception:  # noqa: BLE001 -- any will do
        if how is not IN_C:
            return
    assert record.tile(START, START + 100).totals() == {"handler": 60, "queue": 40}


@pytest.mark.parametrize("name", [None, b"x", 3], ids=str)
def test_a_mark_without_a_name_is_none(native: Implementation, name: Any) -> None:
    record = record_of(native)
    for mark in (native.mark(name), native.mark()):
        record.begin_mark(mark, START + 10)
        with pytest.raises((TypeError, AttributeError)):
            record.so_far()
    assert record.tile(START, START + 100).totals() == {"handler": 100}


class UnfriendlyState(TraceState):
    def items(self) -> Any:
        raise RuntimeError("no")


def identified(position: int, value: Any) -> Identity:
    """Return an identity in which a part of the entry span's context is another."""
    context = tuple.__new__(SpanContext, (*CONTEXT[:position], value, *CONTEXT[position + 1 :]))
    return Identity(context, None, is_sampled=True)  # type: ignore[arg-type]


GOOD: tuple[Any, ...] = (IDENTITY, (START, START + 100), b"", b"", {}, {}, ())
MALFORMED: dict[str, tuple[Any, ...]] = {
    "no arguments": (),
    "one too few": GOOD[:-1],
    "one too many": (*GOOD, ()),
    **{f"argument {at} is a float": (*GOOD[:at], 1.5, *GOOD[at + 1 :]) for at in range(7)},
    **{f"argument {at} is a memoryview": (*GOOD[:at], memoryview(b"x"), *GOOD[at + 1 :]) for at in range(7)},
    "an end past int64": (IDENTITY, (START, 1 << 63), *GOOD[2:]),
    "one time": (IDENTITY, (START,), *GOOD[2:]),
    "four cuts": (*GOOD[:-1], (1, 2, 3, 4)),
    "a cut that is None": (*GOOD[:-1], (None,)),
    **{
        f"{what} as the identity": (identity, *GOOD[1:])
        for what, identity in {
            "one without a parent": (CONTEXT,),
            "a context of five": Identity(tuple.__new__(SpanContext, CONTEXT[:5]), None, is_sampled=True),  # type: ignore[arg-type]
            "no context": (None, None, True),
            "a parent that is an id": (CONTEXT, 5, True),
            "a parent without ids": (CONTEXT, (), True),
            "a parent's id past 64 bits": Identity(CONTEXT, SpanContext(1, 1 << 64, is_remote=True), is_sampled=True),  # type: ignore[arg-type]
            "a parent's id below zero": Identity(CONTEXT, SpanContext(1, -1, is_remote=True), is_sampled=True),  # type: ignore[arg-type]
            "a trace id past 128 bits": identified(0, 1 << 128),
            "a trace id below zero": identified(0, -1),
            "a trace id that is a float": identified(0, 1.0),
            "a trace id that is None": identified(0, None),
            "an id past 64 bits": identified(1, 1 << 64),
            "an id below zero": identified(1, -1),
            "an id that is a text": identified(1, "1"),
            "a trace state that is a text": identified(4, "vendor=1"),
            "a trace state that is a number": identified(4, 1),
            "a trace state that raises": identified(4, UnfriendlyState([("a", "1")])),
        }.items()
    },
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_no_request_is_raises(native: Implementation, what: str) -> None:
    stages = typical().stages(native)
    with pytest.raises(Exception) as failure:  # noqa: PT011 -- any will do
        native.encode(stages, *MALFORMED[what])
    assert not isinstance(failure.value, SystemError)


def test_only_a_record_makes_stages(native: Implementation) -> None:
    with pytest.raises(TypeError):
        native.encode(typical(), *GOOD)
    with pytest.raises(TypeError):
        type(typical().stages(native))()


@pytest.mark.parametrize("how", BOTH)
def test_a_name_that_no_encoding_has_raises(how: Implementation) -> None:
    schedule = Schedule().add(100_000, "+\ud800")
    assert list(schedule.stages(how).totals()) == ["handler", "\ud800"]
    with pytest.raises(UnicodeEncodeError):
        encoded(how, schedule.stages(how))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([*PRIORITY, START, START + 10, {}, {"a": 1}, [], object(), Word(QUEUE), child(1), IDENTITY]),
)
CALLS = st.sampled_from(["enter", "leave", "begin_mark", "end_mark", "open_context", "so_far", "tile", "drop"])


@pytest.mark.thorough
@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(CALLS, st.lists(JUNK, max_size=3), st.booleans()), max_size=12),
    st.sampled_from(["limit", "started", "clock", "closed", "is_unsorted"]),
    JUNK,
    st.lists(JUNK, min_size=7, max_size=7),
)
def test_junk_raises_at_most(native: Implementation, calls: list[Any], name: str, value: Any, junk: list[Any]) -> None:
    """And nothing that says of C that it is broken."""
    record = record_of(native)
    with suppress(TypeError, OverflowError, RuntimeWarning):
        setattr(record, name, value)
    for call, arguments, is_mark in calls:
        given = [native.mark(*arguments), *arguments[1:]] if is_mark and arguments else arguments
        assert raised(partial(getattr(record, call), *given)) is not SystemError
    stages = typical().stages(native)
    assert raised(lambda: native.encode(stages, *junk)) is not SystemError
    assert sum(stages.totals().values()) == 580_000


def raised(function: Callable[[], object]) -> type[BaseException] | None:
    """Return what kind of exception a call raises."""
    try:
        function()
    except Exception as error:  # noqa: BLE001
        return type(error)
    return None


@pytest.mark.parametrize("how", BOTH)
def test_code_in_the_middle_of_working_out_finds_nothing_half_done(how: Implementation) -> None:
    """Attributes whose own code notes, asks, closes and lets go of the record whose stages are being worked out."""
    calls: list[Callable[[Any], object]] = [
        lambda record: [record.enter(QUEUE, {"x": 1}) or record.leave(QUEUE) for _ in range(2_000)],
        lambda record: record.open_context(PLAIN, lambda _: child(5)),
        lambda record: record.so_far(),
        lambda record: record.drop(),
        lambda record: record.tile(START, START + 10),
        lambda record: setattr(record, "closed", True),
        lambda record: setattr(record, "clock", None),
    ]

    class Meddling(dict[str, Any]):
        def __init__(self, meddle: Callable[[], object]) -> None:
            super().__init__(a=1)
            self.meddle = meddle

        def __bool__(self) -> bool:
            with suppress(RuntimeError):
                self.meddle()
            return True

        def keys(self) -> Any:
            bool(self)
            return super().keys()

    for call in calls:
        for asks in (False, True):
            record = record_of(how)
            record.clock = lambda: START + 90
            meddling = Meddling(partial(call, record))
            record.enter(QUEUE, {"b": 1}, START + 10)
            record.enter(QUEUE, meddling, START + 20)
            record.enter(INFERENCE, meddling, START + 30)
            record.leave(INFERENCE, START + 40)
            if asks:
                assert record.open_context(PLAIN, lambda _: child(6)) in (child(6), None)
            stages = record.tile(START, START + 100)
            assert sum(stages.totals().values()) == 100
            assert sum(one.end - one.start for one in stages.segments()) == 100
            messages(encoded(how, stages, attributes=meddling))


@pytest.mark.parametrize("how", BOTH)
def test_threads_that_note_while_others_ask(how: Implementation) -> None:
    """Whatever is noted in time counts; what is asked meanwhile is whole."""
    for _ in range(10):
        record = how.marks()
        record.started = START
        barrier = threading.Barrier(4)

        def work(record: Any = record, barrier: Any = barrier) -> None:
            barrier.wait()
            for turn in range(300):
                record.enter(PRIORITY[turn % len(PRIORITY)], {"turn": turn})
                if not turn % 5:
                    record.open_context(PLAIN, lambda _: child(7))
                record.leave(PRIORITY[turn % len(PRIORITY)])

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        barrier.wait()
        for _ in range(20):
            found = record.so_far()
            assert all(one.end == other.start for one, other in pairwise(found))
        for thread in threads:
            thread.join()
        assert record.so_far()[-1].stage == ""  # what has begun has ended


LEAKS = """
import gc, resource, sys
from otlp import schedules as s, test_stages_malformed as t

how = s.IN_C
schedule = s.typical()
schedule.add(100_000, "+mark", {"a": 1}).add(10, "+mark", {"b": "x" * 9_000}).add(100_000, "+odd", {"c": [1]})
schedule.add(10, "?")
schedule.visit(s.START, s.START + 70_000, s.Described("elsewhere", {"d": 1}, s.child(8), s.child(9)))
stream = s.Schedule()
for _ in range(15):
    stream.add(10, "+network.send", {"e": 1}).add(10, "-network.send")
identity = s.Identity(s.CONTEXT, s.CONTEXT, is_sampled=True)
attributes = {"a": 1, "b": [2], "c": "z" * 9_000}
watched = [identity, attributes, s.CONTEXT, s.PLAIN, *s.PRIORITY, how.mark, how.marks]
watched += [one for event in schedule.events for one in event] + [one for mark in schedule.marks for one in mark]

def calls(number):
    for turn in range(number):
        one = schedule if turn % 4 else stream
        stages = one.stages(how, limit=5 if turn % 8 == 7 else 1000)
        stages.segments()
        s.encoded(how, stages, None, identity, b"", b"", attributes)
        one.record(how)
        if not turn % 10:
            for name in t.NOTED:
                try:
                    t.NOTED[name](t.record_of(how), how.mark)
                except Exception:
                    pass
            for name in t.ASKED:
                try:
                    t.ASKED[name](t.record_of(how))
                except Exception:
                    pass
            for name in t.MALFORMED:
                try:
                    how.encode(stages, *t.MALFORMED[name])
                except Exception:
                    pass

def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

calls(500)
gc.collect()
before, references = rss(), [sys.getrefcount(one) for one in watched]
calls(5_000)
gc.collect()
after, now = rss(), [sys.getrefcount(one) for one in watched]
# A leak is of thousands; the whole process, its garbage collector included, has its hands on None and small numbers.
print(after - before, sum(abs(a - b) > 100 for a, b in zip(references, now)))
"""


@pytest.mark.usefixtures("native", "services")  # a service, for the time it takes
def test_nothing_leaks() -> None:
    """10,000 records, encoded, asked and malformed: no memory, and no reference to what was given."""
    done = subprocess.run(
        [PYTHON, "-c", LEAKS],
        env=found_first(ROOT / "src"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, changed = map(int, done.stdout.split())
    assert changed == 0
    assert grown < 2_000
