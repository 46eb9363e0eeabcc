"""A plain good request ends by its plan as it would by the full way: the same bytes but for ids, the same counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from sla.recording import START, Described, recorder_of
from stagetrace import Policy
from stagetrace.bridge.entry import SeenSpan
from stagetrace.otlp.encode import Block
from stagetrace.policy.objective import Objective
from stagetrace.request.chunk_times import Stream
from stagetrace.request.context import open_entry
from stagetrace.request.own_span import Entry
from stagetrace.request.request import Request
from stagetrace.semconv import STAGETRACE_PROCESS_CPU_MS
from stagetrace.sla import plan as plan_module
from stagetrace.sla.plan import Plans
from stagetrace.sources.process_cpu import process_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.sampling import Sampler

    from stagetrace.sla.entry_recorder import EntryRecorder

MS = 1_000_000
SEEN = 41  # requests of a route, of which the next one is not learned from
BLOCKS = [Block({"http.request.method": "GET", "url.scheme": "http"}), Block({"http.response.status_code": 200})]
CLIENTS = [Block({}), Block({"client.address": "::1", "client.port": 5})]
SAMPLERS = [DEFAULT_ON, ParentBased(TraceIdRatioBased(0.5)), ParentBased(TraceIdRatioBased(0.0))]


def objective(name: str, within_ms: float, **more: Any) -> Objective:
    return Objective(name, None, "*", int(within_ms * MS), **more)


POLICIES: list[Any] = [
    "* within 10ms",
    "GET /a within 10ms first_chunk 1ms per_chunk 1ms; * within 1s",
    "GET /b within 10ms",  # nothing judges /a
    "* within 10ms first_token 1ms",
    Policy((objective("p99", 100, continues=True), objective("p50", 10, continues=True))),
    Policy((objective("a", 10, segment_by=("client.address",)),)),
    Policy((objective("a", 10, stages=(("inference", MS),)),)),
    Policy((objective("a", 10, errors="bad"),)),
    Policy((objective("a", 10, excludes=True),)),
]


@dataclass(frozen=True)
class Asked:
    """What happens to one request."""

    took_ms: float
    marks: tuple[tuple[str, float, float], ...]
    attributes: dict[str, Any]
    client: int = 1
    is_slow: bool = False
    sees_cpu: bool = False
    parent: int | None = None  # flags of the caller's context
    is_seen: bool = False  # somebody asks for its ids
    failed: bool = False
    status: str | None = None  # that its code sets
    is_stream: bool = False
    disconnect: str | None = None


ASKED = st.builds(
    Asked,
    took_ms=st.sampled_from([0, 0.001, 1, 9.999, 10, 10.000001, 50, 200]),
    marks=st.lists(
        st.tuples(
            st.sampled_from(["queue", "inference", "network.send", "network.receive"]),
            st.floats(0, 11, allow_nan=False),
            st.floats(0, 11, allow_nan=False),
        ),
        max_size=6,
    ).map(tuple),
    client=st.sampled_from([0, 1]),
    attributes=st.dictionaries(
        st.sampled_from(["url.path", "http.response.body.size"]), st.sampled_from(["/a", 7, "ü"])
    ),
    is_slow=st.booleans(),
    sees_cpu=st.booleans(),
    parent=st.sampled_from([None, None, 0, 1]),
    is_seen=st.booleans(),
    failed=st.sampled_from([False, False, False, True]),
    status=st.sampled_from([None, None, None, "set"]),
    is_stream=st.sampled_from([False, False, False, True]),
    disconnect=st.sampled_from([None, None, None, "client"]),
)


class Connected(Described):
    """A request with attributes of its own, whose connection can be read."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(start=START)
        self.path = asked

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        asked: Asked = self.path
        return list(BLOCKS), CLIENTS[asked.client], {**asked.attributes, **self.response(START)}

    def connection_attributes(self) -> dict[str, Any]:
        return {"stagetrace.network.rtt_ms": 1.5}


def end(recorder: EntryRecorder, asked: Asked) -> Request:
    request = Connected(asked)
    context = Context()
    if asked.parent is not None:
        caller = SpanContext(7 << 64 | 7, 9, is_remote=True, trace_flags=TraceFlags(asked.parent))
        context = set_span_in_context(NonRecordingSpan(caller), context)
    open_entry(request, "GET /a", context, recorder)
    seen = SeenSpan(request)
    request.method, request.route, request.failed = "GET", "/a", asked.failed
    for stage, since, until in asked.marks:
        request.enter(stage, at=START + int(since * MS))
        request.leave(stage, at=START + int((since + until) * MS))
    if asked.is_seen:
        seen.get_span_context()
    if asked.status is not None:
        seen.set_attribute("status", asked.status)
    if asked.is_stream:
        request.stream = Stream()
        request.stream.add(START + MS, 5)
        request.stream.add(START + 2 * MS, 5)
    if asked.disconnect is not None:
        request.disconnect = asked.disconnect
    process_cpu.at_ns = 0 if asked.sees_cpu else START
    request.end_entry(START + int(asked.took_ms * MS))
    return request


def without_ids(sent: list[bytes]) -> list[Any]:
    """Return the spans of each request, with ids by their order."""
    found = []
    for one in sent:
        spans = ScopeSpans.FromString(one)
        ids: dict[bytes, bytes] = {b"": b""}
        for span in reversed(spans.spans):
            for field in ("trace_id", "span_id", "parent_span_id"):
                known = ids.setdefault(getattr(span, field), len(ids).to_bytes(8, "big"))
                setattr(span, field, known)
            span.trace_state = ""
            for pair in span.attributes:
                if pair.key == STAGETRACE_PROCESS_CPU_MS:
                    pair.value.double_value = 0
        found.append((len(one), spans))
    return found


def outcome(
    asked: list[Asked], policy: Any, sampler: Sampler, patch: pytest.MonkeyPatch, *, plans: bool
) -> tuple[Any, ...]:
    with patch.context() as broken:
        if not plans:
            broken.setattr(Plans, "end", lambda *_: False)
        # Trace ids decide what a sampler keeps: the same ones for either way.
        numbers = iter(range(1, 10**6))
        broken.setattr(
            "stagetrace.sla.head_sampler.getrandbits", lambda bits: (next(numbers) * 0x9E3779B97F4A7C15) % 2**bits
        )
        recorder, processor, sender = recorder_of(sampler, policy)
        broken.setattr(
            recorder._head._ids, "generate_trace_id", lambda: 1 + (next(numbers) * 0x9E3779B97F4A7C15) % 2**127
        )
        learned = processor.learned
        learned._usual_ns["GET", "/a"] = MS
        process_cpu.add_to({}, 1)  # the first reading of a process has nothing to count from
        for one in asked:
            learned._seen["GET", "/a"] = SEEN
            if not one.is_slow:
                learned._usual_ns["GET", "/a"] = 10**12
            end(recorder, one)
            learned._usual_ns["GET", "/a"] = MS
        counter = processor.counter
        counts = counter.points(), counter.causes(), counter.unmatched, counter.segment_overflow(), learned._seen
        durations = [
            {key: one[:-1] for key, one in found.items()} for found in (counter.durations(), counter.stage_durations())
        ]
        exemplars = [len(one.exemplars) for one in counter.durations().values()]
        return without_ids(sender.sent), counts, durations, exemplars


@given(
    asked=st.lists(ASKED, min_size=1, max_size=4),
    policy=st.sampled_from(POLICIES),
    sampler=st.sampled_from(SAMPLERS),
)
def test_a_request_leaves_the_same_by_either_way(asked: list[Asked], policy: Any, sampler: Sampler) -> None:
    with pytest.MonkeyPatch.context() as patch:
        asked = [*asked, *asked]  # the second time there is a plan
        assert outcome(asked, policy, sampler, patch, plans=True) == outcome(asked, policy, sampler, patch, plans=False)


PLAIN = Asked(took_ms=1, marks=(("inference", 0.1, 0.5),), attributes={"url.path": "/a"})


def went_short(
    *asked: Asked, policy: Any = "* within 10ms", before: Callable[[Any], object] = lambda _: None
) -> list[bool]:
    """Return of each request, in turn, whether it ended by its plan."""
    recorder, processor, _ = recorder_of(DEFAULT_ON, policy)
    found: list[bool] = []

    def end_short(plans: Plans, request: Request, really: Any = Plans.end) -> bool:
        found.append(really(plans, request))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plans, "end", end_short)
        for one in asked:
            processor.learned._seen["GET", "/a"] = SEEN
            processor.learned._usual_ns["GET", "/a"] = 10**12
            before(processor)
            end(recorder, one)
    return found


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"took_ms": 10}, True),
        ({"parent": 1}, True),
        ({"parent": 0}, True),
        ({"is_seen": True}, True),
        ({"client": 0}, True),
        ({"took_ms": 10.1}, False),
        ({"failed": True}, False),
        ({"status": "set"}, False),
        ({"is_stream": True}, True),
        ({"disconnect": "client"}, False),
    ],
)
def test_only_a_plain_good_request_ends_by_its_plan(changed: dict[str, Any], expected: bool) -> None:
    assert went_short(PLAIN, PLAIN, replace(PLAIN, **changed)) == [False, True, expected]


def test_a_request_to_learn_from_and_one_that_others_are_to_see_go_the_full_way() -> None:
    def learn(processor: Any) -> None:
        processor.learned._seen.clear()

    def show(processor: Any) -> None:
        processor.has_others = True

    assert went_short(PLAIN, PLAIN, before=learn) == [False, False]
    assert went_short(PLAIN, PLAIN, before=show) == [False, False]


def test_plans_are_by_the_policy_of_the_time() -> None:
    numbers = iter((10, 10, 20, 20))

    def change(processor: Any) -> None:
        within_ms = next(numbers)
        if processor.policy.objectives[0].within_ns != within_ms * MS:
            processor.replace_policy(Policy.parse(f"* within {within_ms}ms"))

    slower = replace(PLAIN, took_ms=15)
    assert went_short(PLAIN, PLAIN, PLAIN, slower, before=change) == [False, True, False, True]


def test_what_fails_in_a_plan_goes_the_full_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from stagetrace import guard

    recorder, processor, sender = recorder_of(DEFAULT_ON, "* within 10ms")
    processor.learned._seen["GET", "/a"] = SEEN
    end(recorder, PLAIN)
    guard.failures.clear()
    monkeypatch.setattr(plan_module, "encode_request", lambda *_: 1 / 0)
    end(recorder, PLAIN)
    assert guard.failures.pop("stagetrace.sla.plan.Plans.end") == 1
    (_, first), (_, second) = without_ids(sender.sent)
    assert first == second
    assert processor.counter.counts() == {("* within 10ms", "good"): 2}


def test_each_field_of_a_request_is_known_to_matter_to_its_end_or_not() -> None:
    """A new one belongs to `UNUSUAL`, or here: neither the entry span of a good request nor its verdict shows it."""
    fields = {name for cls in (Request, Entry) for name, value in vars(cls).items() if not callable(value)}
    fields = {name for name in fields if not isinstance(vars(Request).get(name, vars(Entry).get(name)), property)}
    harmless = """
        _entry behind bounds calls computed cpu_samples description drawn end failed greenlet held ids is_batch is_over
        is_part kind label may_give_way method name own parent_context peer_waits pools probability protocol recorder
        remote_sections reports route skipped_stalls socket_waits stalls step stream suspended_at wakeups work baggage
    """
    assert {name for name in fields if not name.startswith("__")} == {*plan_module.UNUSUAL, *harmless.split()}
