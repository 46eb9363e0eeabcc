"""Both twins of a request's end do the same: bytes, counts, and what is left of the request."""

from __future__ import annotations

import os
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from missing import unused
from stagetrace import KeepBreaches, SLASpanProcessor, guard
from stagetrace.otlp.encode.span_encoder import Block
from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
from stagetrace.recording.chunk_times import Stream
from stagetrace.recording.entry import EntrySpan
from stagetrace.recording.marks import BEGIN, END, Mark
from stagetrace.recording.tiler import PRIORITY
from stagetrace.sla import entry_recorder as recorder_module
from stagetrace.sla import processor as processor_module
from stagetrace.sla.baseline import ENOUGH, LEARNED_AFTER_NS, LEARNED_FROM_EACH
from stagetrace.sla.entry_recorder import EntryRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.native

START = 10**18
RESOURCE = Resource({"service.name": "ended"})
REQUEST_BLOCK, CLIENT = Block({"http.request.method": "GET", "n": 1}), Block({"client.address": "::1"})
ROUTES = {name: Block({"http.route": name}) for name in ("/a", "/b", "/unknown")}
SETTLED = 2 * ENOUGH + 1  # requests of a route, from the next of which nothing is learned


class OtherIds(RandomIdGenerator):
    """Ids of somebody's own."""


class Entry(EntrySpan):
    """A request as recording leaves it at its end."""

    blocks = (REQUEST_BLOCK, ROUTES["/a"])
    client = CLIENT
    told: dict[str, Any] = {}  # noqa: RUF012 -- set on the object

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        return [*self.blocks], self.client, dict(self.told)


class Sender:
    """Somebody's own sender: keeps what it is given."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def put(self, resource: Resource, scope: Any, encoded: bytes, spans: int, *, breach: bool) -> None:
        self.items.append((resource, scope, encoded, spans, breach))


class Setting:
    """One recorder, which has ended requests of each kind before."""

    def __init__(self, sampler: Any, policy: str | None, *, ids: Any = None, own_sender: bool = False) -> None:
        self.provider = TracerProvider(KeepBreaches(sampler), RESOURCE, shutdown_on_exit=False, id_generator=ids)
        self.processor = SLASpanProcessor(policy, self.provider._active_span_processor)
        self.processor.has_others = False
        sender: Any = Sender() if own_sender else EncodingSpanProcessor(None)  # type: ignore[arg-type]
        self.sender = sender
        if not own_sender:
            sender._started = True  # without a thread
        self.recorder = EntryRecorder(self.provider, self.processor, [sender])
        self.used: list[bool] = []  # for each request, whether the twin in C has ended it

    def items(self) -> list[Any]:
        return self.sender.items if isinstance(self.sender, Sender) else [*self.sender._waiting._incoming]

    def state(self) -> list[Any]:
        return [self.items(), self.processor.counter.by_route(), self.processor.counter.unmatched, self.learned()]

    def learned(self) -> Any:
        return dict(self.processor.learned._seen), dict(self.processor.learned._wanted_at)

    def end(self, request: dict[str, Any], *, in_c: bool) -> Entry:
        """End one request by one of the twins."""
        seed()
        entry = Entry(request["name"], START, self.recorder, parent_of(request["parent"]))
        entry.told = request["attributes"]
        entry.blocks = (REQUEST_BLOCK, ROUTES[request["route"]])
        entry.failed = request["failed"]
        apply(request, entry)
        served = ("GET", request["route"])
        if request["seen"] is not None:
            self.processor.learned._seen[served] = request["seen"]
        if request["wanted_at"] is not None:
            self.processor.learned._wanted_at[served] = request["wanted_at"]
        self.recorder._may_end_in_c = in_c and self.recorder._may_end_in_c
        self.recorder.end(entry, START + request["took"], *served)
        return entry


def seed() -> None:
    """Let the ids that are drawn next be the same each time."""
    random.seed(7)
    recorder_module._twin.seed(bytes(range(32)))


def parent_of(sampled: bool | None) -> Context:
    if sampled is None:
        return Context()
    context = SpanContext(5 << 64, 6, True, TraceFlags(int(sampled)), TraceState([("a", "1")]))  # noqa: FBT003
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def apply(request: dict[str, Any], entry: Entry) -> None:
    """Do to a request what its code and its server have done by its end."""
    at = START
    for wait, kind, what, attributes in request["events"]:
        at += wait
        entry._log.append((at, kind, what, attributes))
    odd = request["odd"]
    if odd == "notes":
        entry.set_attribute("k", "v")
    elif odd == "child":
        entry.get_span_context()
    elif odd == "asked":
        assert entry.identity
    elif odd == "stream":
        entry.stream = Stream()
    elif odd == "gone":
        entry.disconnect = "client"
    elif odd == "presumed":
        entry.presume("queue", None, START + 1)
    elif odd == "unsorted":
        entry.visit("elsewhere", (START + 1, START + 2))


def left(entry: Entry) -> list[Any]:
    """Return what is left of a request."""
    names = ("_identity", "end_time", "served", "closed", "_log", "_tiler", "held", "name", "failed")
    return [getattr(entry, name) for name in names]


ATTRIBUTES = st.dictionaries(
    st.sampled_from(["url.path", "http.response.body.size", "k", "ml.model.name"]),
    st.text(max_size=200) | st.integers(-(2**70), 2**70) | st.booleans() | st.floats(allow_nan=False),
    max_size=4,
)
MARKS = [Mark("m"), Mark("preprocess", {"rows": 3})]
EVENTS = st.tuples(
    st.integers(0, 200_000),
    st.sampled_from([BEGIN, END]),
    st.sampled_from(PRIORITY),
    st.none() | st.just({"ml.model.name": "Model"}),
) | st.builds(
    lambda wait, kind, mark: (wait, kind, mark, mark.attributes),
    st.integers(0, 200_000),
    st.integers(2, 3),
    st.sampled_from(MARKS),
)
LENGTHS = st.integers(126, 130)  # around the most that are tiled in C


def many(events: list[Any], length: int) -> list[Any]:
    return (events * length)[:length]


REQUESTS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["GET /a", "GET ü"]),
        "route": st.sampled_from(["/a", "/a", "/b", "/unknown"]),
        "failed": st.booleans(),
        "attributes": ATTRIBUTES,
        "events": st.lists(EVENTS, max_size=8) | st.builds(many, st.lists(EVENTS, min_size=1, max_size=3), LENGTHS),
        "took": st.sampled_from([0, 1, 10**6, 10**6 + 1, 10**12, -5]),
        "parent": st.sampled_from([None, None, True, False]),
        "seen": st.sampled_from(
            [None, 1, 2 * ENOUGH - 1, 2 * ENOUGH, SETTLED, SETTLED, SETTLED, LEARNED_FROM_EACH * 9]
        ),
        "wanted_at": st.sampled_from([None, START - LEARNED_AFTER_NS, START - 1, START + 10**9]),
        "odd": st.sampled_from(["", "", "", "", "notes", "child", "asked", "stream", "gone", "presumed", "unsorted"]),
    }
)
PLAIN: dict[str, Any] = {
    "name": "GET /a",
    "route": "/a",
    "failed": False,
    "attributes": {"url.path": "/a", "size": 3},
    "events": [(10, BEGIN, "network.receive", None), (5, END, "network.receive", None), (9, 2, MARKS[1], {"rows": 3})],
    "took": 1000,
    "parent": None,
    "seen": SETTLED,
    "wanted_at": None,
    "odd": "",
}
SAMPLERS = [
    DEFAULT_ON,
    ParentBased(TraceIdRatioBased(0.5)),
    ParentBased(TraceIdRatioBased(0.0)),
    TraceIdRatioBased(1),
    ALWAYS_ON,
]
POLICIES = [None, "GET /a within 1ms; GET /b excluded", "GET /a within 1ms first_chunk 1ms; GET /b within 1us"]


@pytest.fixture(autouse=True)
def _twin() -> Iterator[None]:
    if recorder_module._end_in_c is None:
        unused("stagetrace.sla._ending")
    guard.failures.clear()
    yield
    assert not guard.failures


@settings(max_examples=100, deadline=None)
@given(
    st.lists(REQUESTS, min_size=1, max_size=4),
    st.sampled_from(SAMPLERS),
    st.sampled_from(POLICIES),
    st.sampled_from([None, OtherIds()]),
    st.booleans(),
)
def test_both_do_the_same(requests: list[Any], sampler: Any, policy: Any, ids: Any, own_sender: bool) -> None:
    told = []
    for in_c in (False, True):
        setting = Setting(sampler, policy, ids=ids, own_sender=own_sender)
        ended = [left(setting.end(request, in_c=in_c)) for _ in range(3) for request in requests]
        told.append((ended, setting.state()))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"failed": True}, True),
        ({"parent": True}, True),
        ({"odd": "asked"}, True),
        ({"seen": LEARNED_FROM_EACH * 9, "wanted_at": START - 1}, True),
        ({"seen": LEARNED_FROM_EACH * 9, "wanted_at": START - LEARNED_AFTER_NS}, False),
        ({"seen": LEARNED_FROM_EACH * 9, "wanted_at": START + 10**9}, False),
        ({"took": 10**12}, False),
        ({"parent": False}, False),
        *(({"odd": odd}, False) for odd in ("notes", "child", "stream", "gone", "presumed", "unsorted")),
        ({"route": "/b"}, False),
        ({"route": "/unknown"}, False),
        ({"events": PLAIN["events"] * 43}, False),
    ],
)
def test_which_are_ended_in_c(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], taken: bool) -> None:
    setting = Setting(DEFAULT_ON, "GET /a within 1ms; GET /b excluded")
    request = {**PLAIN, **change}
    for _ in range(2):
        setting.end(request, in_c=False)
        setting.recorder._may_end_in_c = True
    reference: list[Any] = []
    monkeypatch.setattr(EntryRecorder, "end_in_python", lambda *arguments: reference.append(arguments))
    setting.end(request, in_c=True)
    assert (not reference) is taken


def test_what_the_head_drops_is_counted_and_let_go() -> None:
    setting = Setting(ParentBased(TraceIdRatioBased(0.0)), "* within 1ms")
    entries = [setting.end(PLAIN, in_c=number > 0) for number in range(3)]
    for entry in entries:
        assert (entry._identity, entry.end_time, entry.closed, entry._log) == (None, START + 1000, True, [])
    assert setting.items() == []
    assert setting.processor.counter.counts() == {("* within 1ms", "good"): 3}


class Busy:
    """A lock that another thread has for now."""

    def acquire(self, blocking: bool = True) -> bool:
        return blocking

    def locked(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_a_request_whose_lock_is_taken_is_left_to_the_reference() -> None:
    settled = []
    for in_c in (False, True):
        setting = Setting(DEFAULT_ON, "* within 1ms")
        for number in range(3):
            seed()
            entry = Entry("GET /a", START, setting.recorder, Context())
            if number == 2:
                entry._lock = Busy()  # type: ignore[assignment]
            setting.recorder._may_end_in_c = in_c
            setting.processor.learned._seen["GET", "/a"] = SETTLED
            setting.recorder.end(entry, START + 10, "GET", "/a")
        settled.append(setting.state())
    assert settled[0][1:] == settled[1][1:]
    assert len(settled[1][0]) == 3


def test_what_raises_in_c_is_reported_and_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(DEFAULT_ON, "* within 1ms")
    expected = [setting.end(PLAIN, in_c=False) and setting.items()[-1] for _ in range(2)]
    setting.recorder._may_end_in_c = True

    calls: list[int] = []
    describe = Entry.describe

    def once(self: Entry) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("once")
        return describe(self)

    monkeypatch.setattr(Entry, "describe", once)
    setting.end(PLAIN, in_c=True)
    assert guard.failures == {"stagetrace.sla._ending": 1}
    guard.failures.clear()
    assert setting.items()[-1] == expected[-1]
    assert setting.processor.counter.counts()["* within 1ms", "good"] == 3
    assert len(setting.items()) == 3


def test_what_fails_after_the_counting_is_reported_and_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(DEFAULT_ON, "* within 1ms", own_sender=True)
    for _ in range(2):
        setting.end(PLAIN, in_c=False)
    setting.recorder._may_end_in_c = True

    def broken(*_: Any, **_named: Any) -> None:
        raise ValueError("the twin is broken")

    monkeypatch.setattr(setting.sender, "put", broken)
    entry = setting.end(PLAIN, in_c=True)
    assert guard.failures == {"stagetrace.sla._ending": 1}
    guard.failures.clear()
    assert entry.closed
    assert setting.processor.counter.counts() == {("* within 1ms", "good"): 3}


def test_ids_are_those_of_xoshiro256_and_a_fork_draws_its_own() -> None:
    state = [int.from_bytes(bytes(range(8 * i, 8 * i + 8)), "little") for i in range(4)]
    state[0] |= 1
    expected, mask = b"", 2**64 - 1
    for _ in range(1000):
        product = state[1] * 5 & mask
        expected += ((product << 7 | product >> 57) * 9 & mask).to_bytes(8, "little")
        shifted = state[1] << 17 & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = (state[3] << 45 | state[3] >> 19) & mask
    seed()
    twin = recorder_module._twin
    assert twin.ids(1000) == expected
    with pytest.raises(ValueError, match="32 bytes"):
        twin.seed(b"too short")
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(send, twin.ids(4))
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(send)
    with os.fdopen(receive, "rb") as file:
        assert file.read() != twin.ids(4)


def test_it_wakes_the_sending_thread_and_keeps_nothing() -> None:
    setting = Setting(DEFAULT_ON, "* within 1ms")
    for _ in range(2):
        setting.end(PLAIN, in_c=False)
    setting.recorder._may_end_in_c = True
    watched = [
        setting.recorder,
        setting.sender,
        setting.processor,
        RESOURCE,
        REQUEST_BLOCK,
        CLIENT,
        SpanContext,
        None,
        True,
    ]
    for _ in range(300):
        setting.end(PLAIN, in_c=True)
    setting.sender._waiting.sort_in()
    before = [sys.getrefcount(one) for one in watched]
    for _ in range(3000):
        entry = setting.end(PLAIN, in_c=True)
    assert sys.getrefcount(entry) == 2
    assert setting.sender._sender.woken
    setting.sender._waiting.sort_in()
    after = [sys.getrefcount(one) for one in watched]
    assert all(abs(one - other) < 100 for one, other in zip(before, after, strict=True)), (before, after)
    assert setting.sender.counts()["received"] == 3302 * 5


def test_both_count_without_the_route_what_has_too_many() -> None:
    settled = []
    for in_c in (False, True):
        setting = Setting(DEFAULT_ON, "* within 1ms")
        counts = setting.processor.counter._counts
        counts.update({("* within 1ms", "good", f"/{number}"): 1 for number in range(processor_module.MAX_COUNTED - 1)})
        for route in ("/a", "/b", "/a", "/unknown", "/unknown"):
            setting.end({**PLAIN, "route": route}, in_c=in_c)
        settled.append(setting.processor.counter.by_route())
    assert settled[0] == settled[1]
    found = {key[2]: count for key, count in settled[0].items() if key[2] in ("/a", "/b", "/unknown", "")}
    assert found == {"/a": 2, "": 3}
    assert setting.processor.counter.counts() == {("* within 1ms", "good"): processor_module.MAX_COUNTED + 4}
