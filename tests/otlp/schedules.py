"""Requests as they may be noted, drawn by chance or not, and what both twins make of each."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from stagetrace.otlp.encode.request_encoder import request_in_python, tiled_in_python
from stagetrace.otlp.encode.span_encoder import Block
from stagetrace.recording.marks import BEGIN, BEGIN_MARK, END, END_MARK, Mark
from stagetrace.recording.own_span import Identity
from stagetrace.recording.segments import MAX_SEGMENTS
from stagetrace.recording.tiler import PRIORITY, WIRE_OVERHEAD_NS
from stagetrace.semconv import INFERENCE, NETWORK_RECEIVE, NETWORK_SEND, QUEUE, SLA_UPGRADED, STAGES, TRANSFORM

if TYPE_CHECKING:
    from stagetrace.otlp.encode.request_encoder import Make, Stages, Tile
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
    st.sampled_from(["ml.model.name", "ml.model.version"]) | st.text("abcü.", max_size=9) | st.text(max_size=140),
    st.text(max_size=200) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False),
    max_size=4,
)


class Word(str):
    __slots__ = ()


# What `stage` lets through and an attribute cannot hold, and mappings that other people's code might give.
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
        MappingProxyType({"ml.model.version": "3"}),
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


@st.composite
def streams(draw: st.DrawFn, attributes: st.SearchStrategy[Any]) -> Schedule:
    """Return a schedule in which a body passes chunk by chunk, with whatever happens between two of them."""
    schedule = Schedule()
    names = st.sampled_from(
        [NETWORK_SEND] * 6 + [NETWORK_RECEIVE, NETWORK_RECEIVE, QUEUE, INFERENCE, "mark", TRANSFORM]
    )
    some = [draw(attributes) for _ in range(3)]
    step = st.tuples(WAITS, names, WAITS, st.sampled_from(some))
    for wait, name, took, described in draw(st.lists(step, min_size=9, max_size=MAX_SEGMENTS // 2 - 1)):
        schedule.add(wait, f"+{name}", described).add(took, f"-{name}")
    return schedule


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

GOOD = typical().arguments()
GOOD_MADE = typical().to_make({"a": 1}, Identity(CONTEXT, CONTEXT, is_sampled=True), b"rest", UPGRADED)


def found_first(folder: Path) -> dict[str, str]:
    """Return an environment in which the package is that in `folder`, and the tests' modules can be imported."""
    path = [folder, ROOT / "tests"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
