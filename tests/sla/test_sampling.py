"""The probability with which the head sampler keeps entry spans, as they carry it and as callees receive it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace._sampling_experimental import (
    composable_parent_threshold,
    composable_traceid_ratio_based,
    composite_sampler,
)
from opentelemetry.sdk.trace._sampling_experimental._trace_state import OtelTraceState
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState

from sla.recording import START, begun, recorder_of
from stagetrace import KeepBreaches, SLASpanProcessor
from stagetrace.bridge.sampling import known
from stagetrace.causes.baseline import ENOUGH
from stagetrace.semconv import SLA_SAMPLING_PROBABILITY
from stagetrace.sla import sampling
from stagetrace.sla.sampling import Chances

SETTLED = 2 * ENOUGH + 1  # requests of a route, from the next of which nothing is learned
MS = 1_000_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("th:0", 1.0),
        ("th:8", 0.5),
        ("th:c", 0.25),
        ("th:e66666666666", 0.1),
        ("rv:00000000000001;th:8", 0.5),
        ("th:8;p:8", 0.5),
        ("th:ffffffffffffff", 2.0**-56),
        ("", None),
        ("rv:00000000000001", None),
        ("th:", None),
        ("th:g", None),
        ("th:8A", None),
        ("th:-8", None),
        ("th: 8", None),
        ("th:+8", None),
        ("th:0x8", None),
        ("th:8_0", None),
        ("th:123456789abcdef", None),
        ("path:8", None),
        ("th:\u0668", None),
    ],
)
def test_the_threshold_says_the_probability(value: str, expected: float | None) -> None:
    assert sampling.probability_in(value) == (None if expected is None else pytest.approx(expected, rel=1e-9))


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.1, 1 / 3, 1e-6, 2.0**-30, 0.999999])
def test_a_kept_trace_is_consistent_with_what_is_said_of_it(rate: float) -> None:
    """The SDK's own reading of the threshold keeps the trace too, and its callees receive the same probability."""
    chance, sampler = random.Random(1), TraceIdRatioBased(rate)
    downstream = composite_sampler(composable_parent_threshold(composable_traceid_ratio_based(1.0)))
    kept = [(chance.getrandbits(64) << 64) | int(chance.random() * sampler.bound) for _ in range(200)]
    kept += [1 << 64, (1 << 64) + sampler.bound - 1]
    for trace_id in kept:
        assert sampler.should_sample(None, trace_id, "x").decision is Decision.RECORD_AND_SAMPLE
        value = sampling.value_of(trace_id, sampler.bound)
        assert value is not None
        state = TraceState([("ot", value)])
        read = OtelTraceState.parse(state)
        assert read.serialize() == value
        assert read.threshold <= read.random_value
        assert sampling.probability_in(value) == pytest.approx(rate, rel=1e-9)
        parent = SpanContext(trace_id, 1, True, TraceFlags(1), state)  # noqa: FBT003
        context = trace.set_span_in_context(NonRecordingSpan(parent), Context())
        result = downstream.should_sample(context, trace_id, "y", trace_state=state)
        assert result.decision is Decision.RECORD_AND_SAMPLE
        assert OtelTraceState.parse(result.trace_state).threshold == read.threshold


def test_a_bound_too_low_to_be_said_is_not_said() -> None:
    assert sampling.value_of(0, TraceIdRatioBased(2.0**-60).bound) is None


class Own(Sampler):
    """Somebody's own sampler, with the description of another."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return TraceIdRatioBased(0.1).get_description()


def parent(state: str | None = None) -> Any:
    states = None if state is None else TraceState([("ot", state)])
    return SpanContext(5, 6, True, TraceFlags(1), states)  # noqa: FBT003


@pytest.mark.parametrize(
    ("sampler", "parent", "expected"),
    [
        (ParentBased(TraceIdRatioBased(0.1)), None, 0.1),
        (TraceIdRatioBased(0.1), None, 0.1),
        (TraceIdRatioBased(0.1), parent(), 0.1),
        (TraceIdRatioBased(0.1), parent("th:8"), 0.1),
        (ParentBased(TraceIdRatioBased(0.1)), parent("th:8"), 0.5),
        (ParentBased(TraceIdRatioBased(0.1)), parent("th:0"), None),
        (ParentBased(TraceIdRatioBased(1.0)), None, None),
        (DEFAULT_ON, None, None),
        (DEFAULT_ON, parent(), None),
        (DEFAULT_ON, parent("th:8"), 0.5),
        (DEFAULT_ON, parent("th:nonsense"), None),
        (ALWAYS_ON, parent("th:8"), None),
        (Own(), None, None),
        (Own(), parent("th:8"), 0.5),
        (ParentBased(Own()), None, None),
        (ParentBased(ALWAYS_ON, remote_parent_sampled=TraceIdRatioBased(0.1)), None, None),
    ],
)
def test_what_is_known_of_a_kept_request(sampler: Sampler, parent: Any, expected: float | None) -> None:
    state = None if parent is None else parent.trace_state
    assert Chances(known(sampler)).of(parent, state, is_sampled=True) == expected


@pytest.mark.parametrize("sampler", [DEFAULT_ON, ParentBased(TraceIdRatioBased(0.1)), Own(), ALWAYS_OFF, DEFAULT_OFF])
def test_once_something_was_dropped_of_which_nothing_is_known_the_rest_says_so(sampler: Sampler) -> None:
    chances = Chances(known(sampler))
    assert chances.of(parent(), None, is_sampled=True) is None
    assert chances.of(parent(), None, is_sampled=False) == 0
    assert chances.of(parent(), None, is_sampled=True) == 0
    assert chances.of(parent("th:8"), parent("th:8").trace_state, is_sampled=True) == 0.5


def provider_of(sampler: Sampler, policy: str = "* within 50ms") -> tuple[TracerProvider, InMemorySpanExporter]:
    """Return a provider of somebody's own set-up, as the README has it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(KeepBreaches(sampler), shutdown_on_exit=False)
    provider.add_span_processor(SLASpanProcessor(policy, SimpleSpanProcessor(exporter)))
    return provider, exporter


def said(span: ReadableSpan) -> Any:
    return (span.attributes or {}).get(SLA_SAMPLING_PROBABILITY)


def test_entry_spans_of_the_sdk_say_it_and_no_others_do() -> None:
    provider, exporter = provider_of(ParentBased(TraceIdRatioBased(0.5)))
    tracer = provider.get_tracer("x")
    for number in range(200):
        span = tracer.start_span("x", kind=SpanKind.SERVER, start_time=START)
        tracer.start_span("child", context=trace.set_span_in_context(span)).end()
        tracer.start_span("asgi", context=trace.set_span_in_context(span), kind=SpanKind.SERVER).end()
        span.end(START + (80 if number % 4 == 0 else 10) * MS)
    spans = exporter.get_finished_spans()
    entries = [span for span in spans if span.kind is SpanKind.SERVER and span.parent is None]
    assert {said(span) for span in entries} == {0.5}
    assert {said(span) for span in spans if span not in entries} == {None}
    breaches = [span for span in entries if (span.attributes or {})["sla.breached"]]
    assert len(breaches) == 50
    assert 0 < sum("sla.upgraded" in (span.attributes or {}) for span in breaches) < 50
    for entry in entries:
        upgraded = "sla.upgraded" in (entry.attributes or {})
        value = entry.context.trace_state.get("ot", "")
        assert sampling.probability_in(value) == (None if upgraded else 0.5)


@pytest.mark.thorough
def test_counted_by_what_they_say_requests_come_to_as_many_as_there_were() -> None:
    """Over many runs the sum has the true mean, and the spread of what is counted by sampling; breaches are exact."""
    requests, rate, runs = 200, 0.2, 60
    sums = []
    for seed in range(runs):
        chance = random.Random(seed)
        provider, exporter = provider_of(ParentBased(TraceIdRatioBased(rate)))
        provider.id_generator.generate_trace_id = lambda: chance.getrandbits(128)  # type: ignore[method-assign] # noqa: B023
        tracer = provider.get_tracer("x")
        for number in range(requests):
            span = tracer.start_span("x", kind=SpanKind.SERVER, start_time=START)
            span.end(START + (80 if number % 20 == 0 else 10) * MS)
        entries = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
        breaches = sum(bool((span.attributes or {})["sla.breached"]) for span in entries)
        assert breaches == requests // 20
        sums.append(sum(1 / said(span) for span in entries if not (span.attributes or {})["sla.breached"]))
    good = requests - requests // 20
    sigma = (good * (1 - rate) / rate) ** 0.5
    assert abs(sum(sums) / runs - good) < 3 * sigma / runs**0.5
    spread = (sum((one - good) ** 2 for one in sums) / runs) ** 0.5
    assert 0.7 * sigma < spread < 1.3 * sigma


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("sampler", "expected"), [(TraceIdRatioBased(0.5), 0.5), (ALWAYS_ON, None)])
def test_our_own_entry_spans_say_it_too(asked: bool, sampler: Sampler, expected: float | None) -> None:
    """However they are ended, and whether or not their ids were asked for before, as they are for a call to others."""
    recorder, processor, sender = recorder_of(ParentBased(sampler), "* within 50ms")
    processor.learned._seen["GET", "/a"] = SETTLED
    for number in range(100):
        entry = begun(recorder, "/a")
        if asked:
            assert entry.entry_span.get_span_context().is_valid
        entry.end_entry(START + (80 if number % 4 == 0 else 10) * MS)
    entries = [
        span for one in sender.sent for span in ScopeSpans.FromString(one).spans if span.kind == span.SPAN_KIND_SERVER
    ]
    assert (len(entries) == 100) == (expected is None)
    attributes = [{pair.key: pair.value for pair in span.attributes} for span in entries]
    told = [one[SLA_SAMPLING_PROBABILITY].double_value for one in attributes if SLA_SAMPLING_PROBABILITY in one]
    assert told == ([] if expected is None else [expected] * len(entries))
    assert sum(one["sla.breached"].bool_value for one in attributes) == 25
    states = {sampling.probability_in(span.trace_state.removeprefix("ot=")) for span in entries}
    assert states == ({None, expected} if asked else {None})
