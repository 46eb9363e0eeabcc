"""Requests as they may be noted, drawn by chance or not, and what both implementations make of each."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from stagetrace.otlp import encode as request_encoder
from stagetrace.otlp.encode import Block
from stagetrace.request import marks, tiler
from stagetrace.request.own_span import Identity
from stagetrace.request.tiler import MAX_VISITS, PRIORITY, WIRE_OVERHEAD_NS
from stagetrace.semconv import INFERENCE, NETWORK_RECEIVE, NETWORK_SEND, QUEUE, SLA_UPGRADED, STAGES, TRANSFORM
from stagetrace.system.native import native

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stagetrace.request.stages import Segment

ROOT = Path(__file__).parents[2]
START = 1_700_000_000_000_000_000
CONTEXT = SpanContext(
    0x0102030405060708090A0B0C0D0E0F10,
    0x1112131415161718,
    is_remote=False,
    trace_flags=TraceFlags(TraceFlags.SAMPLED),
    trace_state=TraceState([("vendor", "1")]),
)
PLAIN: Any = SpanContext((1 << 128) - 2, (1 << 64) - 3, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
IDENTITY = Identity(PLAIN, None, is_sampled=True)
MARKS = {SLA_UPGRADED: True}
UPGRADED = Block(MARKS).encoded


class Implementation(NamedTuple):
    """Of what a record does with marks."""

    marks: Callable[[], Any]
    mark: Callable[..., Any]
    encode: Callable[..., tuple[bytes, int]]


IN_PYTHON = Implementation(marks._Marks, tiler.Mark, request_encoder._encode_request)
_extension = native("marks") and native("encoder")
IN_C = None if _extension is None else Implementation(_extension.Marks, _extension.Mark, _extension.encode_request)
BOTH = [IN_PYTHON] if IN_C is None else [IN_PYTHON, IN_C]


class Described(NamedTuple):
    """A mark of a schedule: each implementation has objects of its own for it."""

    stage: str
    attributes: Any = None
    context: SpanContext | None = None
    link: SpanContext | None = None


@dataclass
class Schedule:
    """A request as it may be noted: events are a time, a sign, an activity or the number of a mark, and attributes.

    The signs: `+` begins, `-` ends, `?` asks for the context of the stage.
    """

    events: list[tuple[int, str, Any, Any]] = field(default_factory=list)
    now: int = START
    marks: list[Described] = field(default_factory=list)
    open: list[int] = field(default_factory=list)
    is_unsorted: bool = False

    def add(self, wait: int, what: str, attributes: Any = None) -> Schedule:
        """Note one event `wait` nanoseconds later: a sign, and an activity or a mark's name, maybe after a `*`."""
        self.now += wait
        sign, name = what[0], what[1:]
        if name in PRIORITY or sign == "?":
            self.events.append((self.now, sign, name, attributes))
        elif sign == "+":
            self.open.append(self.mark(Described(name.removeprefix("*"), attributes)))
            self.events.append((self.now, "+", self.open[-1], None))
        else:
            self.events.append((self.now, "-", self.open.pop(), None))
        return self

    def mark(self, described: Described) -> int:
        """Return the number of a new mark."""
        self.marks.append(described)
        return len(self.marks) - 1

    def visit(self, since: int, until: int | None, described: Described) -> None:
        """Tell afterwards of a stage that happened elsewhere."""
        number = self.mark(described)
        self.is_unsorted = True
        self.events.append((since, "+", number, None))
        if until is not None:
            self.events.append((until, "-", number, None))

    def record(self, how: Implementation, limit: int = MAX_VISITS, cuts: Sequence[int] = ()) -> Any:
        """Return a record with all this noted."""

        class Record(how.marks):  # type: ignore[misc, name-defined]
            @property
            def cuts(self) -> tuple[int, ...]:
                return tuple(cuts)

        record = Record()
        record.started, record.limit, record.is_unsorted = START, limit, self.is_unsorted
        record.clock = lambda: self.now
        made = [how.mark(*described) for described in self.marks]
        numbers = count(1)
        for at, sign, what, attributes in self.events:
            if sign == "?":
                record.open_context(PLAIN, lambda _: child(next(numbers)))
            elif isinstance(what, int):
                (record.begin_mark if sign == "+" else record.end_mark)(made[what], at)
            elif sign == "+":
                record.enter(what, attributes, at)
            else:
                record.leave(what, at)
        return record

    def stages(self, how: Implementation, later: int = 20_000, **more: Any) -> Any:
        """Return the Stages of this, which ends so much later than its last event."""
        record = self.record(how, **more)
        self.now += later
        try:
            return record.tile(START, self.now)
        finally:
            self.now -= later


def child(number: int) -> Any:
    """Return the context of a stage."""
    return SpanContext(PLAIN.trace_id, number, is_remote=False, trace_flags=PLAIN.trace_flags)


def shape(segments: Sequence[Segment]) -> list[Any]:
    """Return all that is known of segments."""
    return [
        (
            *(one.stage, one.start, one.end, one.explicit, one.coalesced, one.longest if one.coalesced else 0),
            *(list(one.attributes.items()), one.context, one.link),
        )
        for one in segments
    ]


def shown(stages: Any) -> Any:
    """Return all that is to be known of stages, their order included."""
    return shape(stages.segments()), list(stages.totals().items()), list(stages.model.items())


def messages(encoded: tuple[bytes, int]) -> list[Span]:
    """Return spans decoded, without the ids of stages, most of which were drawn."""
    spans = list(ScopeSpans.FromString(encoded[0]).spans)
    assert len(spans) == encoded[1]
    assert all(len(span.span_id) == 8 for span in spans)
    for span in spans[:-1]:
        span.span_id = b""
    return spans


def encoded(
    how: Implementation,
    stages: Any,
    times: tuple[int, int] | None = None,
    identity: Identity = IDENTITY,
    mark: bytes = b"",
    rest: bytes = b"",
    attributes: Mapping[str, Any] | None = None,
    cuts: tuple[int, ...] = (),
) -> tuple[bytes, int]:
    """Return a request's spans and their number."""
    times = times or (START, START + sum(stages.totals().values()))
    return how.encode(stages, identity, times, mark, rest, {} if attributes is None else attributes, stages.model, cuts)


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
NAMES = st.sampled_from([*STAGES, "", "mark", "another mark", "ü" * 64, "x" * 64, "名前", "a\x00b", "other", Word("w")])
WAITS = (
    st.integers(0, 200_000)
    | st.sampled_from([0, 1, WIRE_OVERHEAD_NS - 1, WIRE_OVERHEAD_NS, WIRE_OVERHEAD_NS + 1])
    | st.integers(-300_000, 0)  # the wall clock steps back
)
CONTEXTS_GIVEN = st.none() | st.integers(1000, 1 << 60).map(child)


@st.composite
def schedules(draw: st.DrawFn, attributes: st.SearchStrategy[Any], most: int = 300) -> Schedule:
    """Return a schedule of up to `most` events; what is ended may not be open, and what is open may not be ended."""
    schedule = Schedule()
    some = [draw(attributes) for _ in range(4)]
    step = st.tuples(WAITS, st.integers(0, 10), st.sampled_from(PRIORITY), NAMES, st.sampled_from(some))
    for wait, choice, activity, name, given in draw(st.lists(step, max_size=most)):
        schedule.now += wait
        if choice < 4:
            schedule.events.append((schedule.now, "+", activity, given))
        elif choice < 7:
            schedule.events.append((schedule.now, "-", activity, None))
        elif choice == 7:
            schedule.events.append((schedule.now, "?", "", None))
        elif choice < 10 or not schedule.marks:
            schedule.events.append((schedule.now, "+", schedule.mark(Described(name, given)), None))
        else:  # not always the last, and maybe for the second time
            number = draw(st.integers(0, len(schedule.marks) - 1))
            schedule.events.append((schedule.now, "-", number, None))
    for name in draw(st.lists(NAMES, max_size=3)):
        since, took = draw(st.integers(-(10**5), 10**6)), draw(st.none() | st.integers(0, 10**6))
        told = Described(name, draw(st.sampled_from(some)), draw(CONTEXTS_GIVEN), draw(CONTEXTS_GIVEN))
        schedule.visit(START + since, None if took is None else START + since + took, told)
    return schedule


@st.composite
def streams(draw: st.DrawFn, attributes: st.SearchStrategy[Any]) -> Schedule:
    """Return a schedule in which a body passes chunk by chunk, with whatever happens between two of them."""
    schedule = Schedule()
    names = st.sampled_from(
        [NETWORK_SEND] * 6 + [NETWORK_RECEIVE, NETWORK_RECEIVE, QUEUE, INFERENCE, "mark", TRANSFORM, "?"]
    )
    some = [draw(attributes) for _ in range(3)]
    step = st.tuples(WAITS, names, WAITS, st.sampled_from(some))
    for wait, name, took, described in draw(st.lists(step, min_size=9, max_size=200)):
        if name == "?":
            schedule.add(wait, "?")
        else:
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


def found_first(folder: Path) -> dict[str, str]:
    """Return an environment in which the package is that in `folder`, and the tests' modules can be imported."""
    path = [folder, ROOT / "tests"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
