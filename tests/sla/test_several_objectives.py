"""A request that several objectives judge: what its entry span shows, and what is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind

from sla.recording import START, begun, recorder_of
from stagetrace import Policy, SLASpanProcessor, guard
from stagetrace.policy import entry_span
from stagetrace.policy.entry_span import Listed
from stagetrace.policy.objective import Condition, Objective
from stagetrace.request.request import Request
from stagetrace.sla import entry_recorder, finish
from stagetrace.sla.decision import Decided, decided

if TYPE_CHECKING:
    from stagetrace.sla.entry_recorder import EntryRecorder

MS = 1_000_000


def objective(name: str, within_ms: float, **more: Any) -> Objective:
    return Objective(name, None, "*", int(within_ms * MS), **{"continues": True, **more})


def several() -> Policy:
    return Policy((objective("p99", 100), objective("p50", 10, target=0.5, window_s=7 * 86_400), objective("p9", 5)))


def ended(recorder: EntryRecorder, took_ms: float) -> None:
    request = begun(recorder, "/a")
    request.enter("queue", at=START + 10)
    request.leave("queue", at=START + 20)
    request.end_entry(START + int(took_ms * MS))


def request_of(took_ms: float) -> Request:
    """Return a request that has ended."""
    request = Request(start=START)
    request.end, request.method, request.route = START + int(took_ms * MS), "GET", "/a"
    return request


def entry_of(sent: list[bytes]) -> dict[str, Any]:
    span = ScopeSpans.FromString(sent[-1]).spans[-1]
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}


@pytest.mark.parametrize(
    ("took_ms", "shown", "threshold_ms", "verdicts"),
    [
        (1, ("good", "p99"), 100, "good: p99 (99% over 28d); good: p50 (50% over 7d); good: p9 (99% over 28d)"),
        (7, ("breach", "p9"), 5, "good: p99 (99% over 28d); good: p50 (50% over 7d); breach: p9 (99% over 28d)"),
        (50, ("breach", "p50"), 10, "good: p99 (99% over 28d); breach: p50 (50% over 7d); breach: p9 (99% over 28d)"),
    ],
)
def test_the_entry_span_is_about_the_first_objective_that_was_missed_and_lists_all(
    took_ms: float, shown: tuple[str, str], threshold_ms: float, verdicts: str
) -> None:
    recorder, processor, sender = recorder_of(DEFAULT_ON, several())
    ended(recorder, took_ms)
    found = entry_of(sender.sent)
    assert (found["sla.verdict"], found["sla.objective"]) == shown
    assert found["sla.breached"] is (shown[0] == "breach")
    assert (found["sla.threshold_ms"], found["sla.verdicts"]) == (threshold_ms, verdicts)
    assert processor.counter.counts() == {
        (one.objective, one.word): 1 for one in entry_span.read(found["sla.verdicts"])[0]
    }


def test_an_excluded_verdict_is_shown_only_where_no_objective_judges() -> None:
    policy = Policy((objective("no", 1, excludes=True), objective("yes", 10), objective("late", 1)))
    for took_ms, shown in ((0.5, ("yes", "good", None)), (5, ("late", "breach", None))):
        judged = decided(policy, request_of(took_ms))
        assert judged is not None
        assert (judged.objective.name, judged.word, judged.reason) == shown
        assert [one.word for one in judged.all][:2] == ["excluded", "good"]
    alone = decided(Policy((policy.objectives[0],)), request_of(1))
    assert alone is not None
    assert (alone.word, alone.reason, alone.each) == ("excluded", "rule", ())
    assert alone.attributes()["sla.excluded.reason"] == "rule"


def test_one_objective_has_no_list() -> None:
    recorder, _, sender = recorder_of(DEFAULT_ON, "* within 1ms")
    for took_ms in (0.5, 2):
        ended(recorder, took_ms)
        assert "sla.verdicts" not in entry_of(sender.sent)


def test_each_missed_objective_is_counted_with_its_own_culprit(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, processor, _ = recorder_of(DEFAULT_ON, several())
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(processor.counter, "add", lambda *call: calls.append(call))
    ended(recorder, 50)
    assert [(name, word, stage) for name, word, _, stage, *_ in calls] == [
        ("p99", "good", None),
        ("p50", "breach", "handler"),
        ("p9", "breach", "handler"),
    ]
    assert {call[5] for call in calls} == {50 * MS}
    assert sorted(objective for objective, _ in processor.counter.causes()) == ["p50", "p9"]


def test_what_the_head_sampler_drops_is_counted_for_each_objective_and_a_breach_of_any_is_kept() -> None:
    recorder, processor, sender = recorder_of(ParentBased(TraceIdRatioBased(0.0)), several())
    ended(recorder, 1)
    assert sender.sent == []
    ended(recorder, 7)
    assert entry_of(sender.sent)["sla.objective"] == "p9"
    assert processor.counter.counts() == {
        ("p99", "good"): 2,
        ("p50", "good"): 2,
        ("p9", "good"): 1,
        ("p9", "breach"): 1,
    }


@pytest.mark.parametrize("part", ["_given", "finish", "encode_request", "entry_rest"])
def test_a_breach_that_cannot_be_sent_is_counted_once(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, processor, _ = recorder_of(DEFAULT_ON, several())
    monkeypatch.setattr(entry_recorder, part, failing)
    guard.guarded(ended)(recorder, 50)
    assert processor.counter.counts() == {("p99", "good"): 1, ("p50", "breach"): 1, ("p9", "breach"): 1}
    assert sum(processor.counter.causes().values()) == 2


def test_a_span_of_the_sdk_is_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    processor = SLASpanProcessor(several(), SimpleSpanProcessor(exporter))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("service")
    for took_ms in (1, 50):
        span = tracer.start_span("GET", kind=SpanKind.SERVER, start_time=START)
        span.set_attributes({"http.request.method": "GET", "http.route": "/a"})
        span.end(START + took_ms * MS)
    good, breach = (span.attributes or {} for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER)
    assert (good["sla.objective"], breach["sla.objective"], breach["sla.breached"]) == ("p99", "p50", True)
    assert str(breach["sla.verdicts"]).startswith("good: p99 (99% over 28d); breach: p50 ")
    monkeypatch.setattr(finish, "_explained", failing)
    span = tracer.start_span("GET", kind=SpanKind.SERVER, start_time=START)
    span.set_attributes({"http.request.method": "GET", "http.route": "/a"})
    span.end(START + 50 * MS)
    assert processor.counter.counts()["p50", "breach"] == 2


def test_of_a_thousand_rules_a_request_looks_at_the_few_that_its_values_name() -> None:
    """Each rule is found by the one of its conditions that the fewest share; those with globs alone are looked at."""
    service = Condition("service.name", "churn")  # which all have
    rules = [
        objective(f"o{number}", 1, continues=False, conditions=(service, Condition("tenant", f"t{number}")))
        for number in range(1_000)
    ]
    glob = objective("glob", 1, conditions=(Condition("tenant", "t7*"),))
    policy = Policy((glob, *rules, objective("rest", 1)))

    def applying(**values: str) -> list[str]:
        return [one.name for one in policy.applying("GET", "/a", {"service.name": "churn", **values}.get)]

    assert applying(tenant="t77") == ["glob", "o77"]
    assert applying(tenant="t9") == ["o9"]
    assert applying(tenant="t7-new") == ["glob", "rest"]
    assert applying() == ["rest"]
    of_route = policy._found["GET", "/a"]
    assert (of_route.by_value["tenant", "t77"], of_route.others) == ([78], [0, 1_001])


def test_a_thousand_verdicts_are_listed_in_part_and_the_rest_is_a_number() -> None:
    policy = Policy(tuple(objective(f"o{number}", number) for number in range(1_000)))
    judged = decided(policy, request_of(10))
    assert judged is not None
    text = judged.besides()["sla.verdicts"]
    listed, more = entry_span.read(text)
    assert (len(listed), more, len(judged.each)) == (64, 936, 1_000)
    assert listed[:2] == [Listed("breach", "o0", "99% over 28d"), Listed("breach", "o1", "99% over 28d")]
    assert entry_span.read("good: a (1% over 1d); nonsense; and 3 more") == ([Listed("good", "a", "1% over 1d")], 4)
    assert Decided(policy.objectives[0], "good", None).besides() == {}


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")
