"""The processor in somebody's own SDK set-up: tiles, verdicts, sampling, and its own failures."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, TraceFlags, set_span_in_context, use_span

from stagetrace import KeepBreaches, Policy, PolicyError, SLASpanProcessor, guard, log, semconv, stage
from stagetrace.bridge import spans as spans_module
from stagetrace.bridge.processor import exports
from stagetrace.request.current import entries
from stagetrace.request.stalls import REQUEST, Stall
from stagetrace.sla import decision as decision_module
from stagetrace.sla import sampling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.trace import Tracer

pytestmark = pytest.mark.native

MS = 1_000_000
START = 10**18
POLICY = "POST /predict within 50ms; * within 1s"


@pytest.fixture(autouse=True)
def _no_failures() -> Iterator[None]:
    guard.failures.clear()
    yield
    assert entries == {}


def setup(
    policy: str | None = POLICY, sampler: Sampler = ALWAYS_ON, **kwargs: Any
) -> tuple[Tracer, SLASpanProcessor, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    processor = SLASpanProcessor(policy, SimpleSpanProcessor(exporter))
    provider = TracerProvider(sampler=KeepBreaches(sampler), shutdown_on_exit=False, **kwargs)
    provider.add_span_processor(processor)
    return provider.get_tracer("test"), processor, exporter


def tracer_with(processor: SpanProcessor, name: str = "test") -> Tracer:
    """Return a tracer of a provider with this processor alone."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider.get_tracer(name)


def request(tracer: Tracer, duration_ms: float, attributes: dict[str, str] | None = None) -> None:
    span = tracer.start_span(
        "POST /predict",
        kind=SpanKind.SERVER,
        attributes={"http.request.method": "POST", "http.route": "/predict", **(attributes or {})},
        start_time=START,
    )
    span.end(START + round(duration_ms * MS))


def entries_of(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]


def test_an_entry_span_gets_its_verdict_and_a_stage() -> None:
    tracer, _, exporter = setup()
    request(tracer, 60)
    stage_span, entry = exporter.get_finished_spans()
    assert stage_span.name == "handler"
    assert (stage_span.start_time, stage_span.end_time) == (entry.start_time, entry.end_time)
    assert stage_span.parent == entry.context
    attributes = dict(entry.attributes or {})
    attributes.pop("stagetrace.process.cpu_ms", None)  # now and then
    evidence = str(attributes.pop("sla.breach.evidence"))
    assert evidence.startswith("handler took 60.0 ms of 60.0 ms, 50 ms allowed: ")
    no_code = "; no line of code: it was never late by a bound that is known before it ends"  # by the sampler's clock
    assert evidence.endswith(no_code)
    parts: list[Any] = [attributes.pop(key) for key in list(attributes) if key.startswith("sla.breach.part.")]
    assert 0 < sum(parts) < 60.1  # mostly unknown: the clock is fake, but the CPU samples are real
    assert attributes.pop("sla.breach.cause")
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "ml.stage.handler.ms": 60.0,
        "sla.breached": True,
        "sla.verdict": "breach",
        "sla.objective": "POST /predict within 50ms",
        "sla.threshold_ms": 50.0,
        "sla.overrun_ms": 10.0,
        "sla.severity": "minor",
        "sla.breach.no_code": "not_late",
        "sla.breach.stage": "handler",
    }


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
def test_somebody_elses_breached_span_gets_its_line_of_code_and_its_stacks(sampler: Sampler) -> None:
    """Beside its own events; so if the head sampler had dropped it."""
    tracer, _, exporter = setup(sampler=sampler)
    span = tracer.start_span("POST /predict", kind=SpanKind.SERVER, start_time=START)
    span.add_event("mine", timestamp=START + 1)
    code = setup.__code__.replace(co_filename="app.py", co_name="predict")
    entries[span.get_span_context().span_id].stalls = [
        Stall(START + second * 1000 * MS, REQUEST, ((code, line),)) for second, line in ((1, 41), (2, 41), (3, 7))
    ]
    span.end(START + 4000 * MS)
    (entry,) = entries_of(exporter)
    attributes = dict(entry.attributes or {})
    assert attributes[semconv.SLA_BREACH_CODE] == "app.py:41 in predict"
    assert str(attributes[semconv.SLA_BREACH_EVIDENCE]).endswith("; at app.py:41 in predict (2 of 3 samples)")
    assert [(event.name, event.timestamp - START) for event in entry.events] == [
        ("mine", 1),
        ("stall", 1000 * MS),
        ("stall", 3000 * MS),
    ]


def test_stages_marked_by_hand_work_without_any_hook() -> None:
    tracer, _, exporter = setup()
    with tracer.start_as_current_span("POST /predict", kind=SpanKind.SERVER), stage("inference", rows=3, odd=object):
        pass
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {"preprocess", "inference"} <= set(spans)
    assert dict(spans["inference"].attributes or {}) == {
        "ml.stage": "inference",
        "rows": 3,
        "odd": "<class 'object'>",
    }


def test_a_model_that_the_code_sets_on_its_own_span_wins() -> None:
    tracer, _, exporter = setup()
    with (
        tracer.start_as_current_span("POST /predict", kind=SpanKind.SERVER) as span,
        stage("inference", model="recognised", version="1"),
    ):
        span.set_attribute("ml.model.version", "2")
    (entry,) = entries_of(exporter)
    assert (entry.attributes or {}).items() >= {"ml.model.name": "recognised", "ml.model.version": "2"}.items()


def test_other_spans_pass_as_they_are_and_a_local_child_is_no_entry() -> None:
    tracer, processor, exporter = setup()
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner", kind=SpanKind.SERVER):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["inner", "outer"]
    assert processor.counter.counts() == {}


def test_what_the_sdk_dropped_stays_counted() -> None:
    limits = SpanLimits(max_span_attributes=2, max_events=1)
    tracer, _, exporter = setup(span_limits=limits)
    span = tracer.start_span("x", kind=SpanKind.SERVER, attributes={"a": 1, "b": 2, "c": 3})
    span.add_event("one")
    span.add_event("two")
    span.end()
    entry = entries_of(exporter)[0]
    assert (entry.dropped_attributes, entry.dropped_events) == (1, 1)
    assert "sla.breached" in (entry.attributes or {})


@pytest.mark.parametrize(
    ("attributes", "matched"),
    [
        ({"http.method": "POST", "http.route": "/predict"}, "POST /predict"),
        ({"http.request.method": "POST", "http.route": "/predict"}, "POST /predict"),
        ({"rpc.service": "pkg.Model", "rpc.method": "Predict"}, "pkg.Model/Predict"),
        ({"rpc.method": "pkg.Model/Predict"}, "pkg.Model/Predict"),
    ],
)
def test_a_rule_matches_by_old_and_stable_names(attributes: dict[str, str], matched: str) -> None:
    """An RPC by its method's full name."""
    tracer, processor, _ = setup(f"{matched} within 50ms")
    tracer.start_span("x", kind=SpanKind.SERVER, attributes=attributes).end()
    assert processor.counter.counts() == {(f"{matched} within 50ms", "good"): 1}


@pytest.mark.parametrize(
    ("attributes", "peer"),
    [
        ({"server.address": "down", "server.port": 80}, "down:80"),
        ({"net.peer.name": "old", "net.peer.port": 81}, "old:81"),
        ({"http.url": "http://older:82/x"}, "older:82"),
        ({"server.address": "down", "peer.service": "users"}, "users"),
        ({"server.address": "/run/socket"}, "/run/socket"),
        ({"net.peer.name": "cache", "net.peer.port": 6379, "db.system": "redis"}, "cache:6379"),
        ({"db.system": "postgresql"}, "postgresql"),
        ({"db.system.name": "mysql"}, "mysql"),
        ({}, "SELECT"),
    ],
)
def test_whoever_makes_a_clients_span_its_peer_is_named_by_the_breach(attributes: dict[str, Any], peer: str) -> None:
    tracer, _, exporter = setup()
    entry = tracer.start_span("POST /predict", kind=SpanKind.SERVER, attributes={"http.route": "/x"}, start_time=START)
    with use_span(entry):
        for begin, end in ((100, 400), (500, 900)):
            call = tracer.start_span(
                "SELECT", kind=SpanKind.CLIENT, attributes=attributes, start_time=START + begin * MS
            )
            call.end(START + end * MS)
    entry.end(START + 1100 * MS)
    (found,) = entries_of(exporter)
    assert found.attributes is not None
    assert found.attributes["sla.breach.peer"] == peer
    assert found.attributes["sla.breach.cause"] == "downstream"
    assert f": 700.0 ms waiting for {peer}; no line of code: " in str(found.attributes["sla.breach.evidence"])


@pytest.mark.parametrize("attributes", [{"db.system": "sqlite"}, {"db.system.name": "duckdb", "db.name": "x"}])
def test_a_database_within_the_process_is_nobody_to_wait_for(attributes: dict[str, Any]) -> None:
    tracer, _, exporter = setup()
    entry = tracer.start_span("POST /predict", kind=SpanKind.SERVER, attributes={"http.route": "/x"}, start_time=START)
    with use_span(entry):
        tracer.start_span("SELECT", kind=SpanKind.CLIENT, attributes=attributes, start_time=START).end(START + 900 * MS)
    entry.end(START + 1100 * MS)
    (found,) = entries_of(exporter)
    assert found.attributes is not None
    assert found.attributes["sla.breached"] is True
    assert "sla.breach.peer" not in found.attributes
    assert found.attributes["sla.breach.cause"] != "downstream"


def test_a_websocket_is_not_judged() -> None:
    tracer, processor, exporter = setup("* within 1ms")
    request(tracer, 9000, {"url.scheme": "ws"})
    assert processor.counter.counts() == {}
    assert "sla.breached" not in (entries_of(exporter)[0].attributes or {})


def test_two_processors_of_ours_judge_once() -> None:
    exporter = InMemorySpanExporter()
    inner = SLASpanProcessor("* within 1s", SimpleSpanProcessor(exporter))
    outer = SLASpanProcessor("* within 1ms", inner)
    request(tracer_with(outer), 20)
    stage_span, entry = exporter.get_finished_spans()
    assert stage_span.name == "handler"
    assert (entry.attributes or {})["sla.objective"] == "* within 1ms"
    assert inner.counter.counts() == {}


def test_a_broken_policy_is_refused_where_it_is_given() -> None:
    with pytest.raises(PolicyError, match="has no unit"):
        SLASpanProcessor("* within 50", SimpleSpanProcessor(InMemorySpanExporter()))


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_under_sampling_every_breach_arrives_whole_and_the_count_is_exact(ratio: float) -> None:
    """1,000 requests, each with a child; those over 50 ms all arrive, with stage and child, marked as upgraded."""
    tracer, processor, exporter = setup("POST /predict within 50ms", ParentBased(TraceIdRatioBased(ratio)))
    chance = random.Random(5)
    breached = set()
    for number in range(1000):
        span = tracer.start_span(
            "POST /predict",
            kind=SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": "/predict"},
            start_time=START,
        )
        tracer.start_span("child", context=set_span_in_context(span)).end()
        duration = chance.choice([10, 20, 49.9, 50, 50.1, 80])
        span.end(START + round(duration * MS))
        if duration > 50:
            breached.add(span.get_span_context().trace_id)
        assert number < 1000
    assert processor.counter.counts() == {
        ("POST /predict within 50ms", "breach"): len(breached),
        ("POST /predict within 50ms", "good"): 1000 - len(breached),
    }
    assert sum(processor.counter.causes().values()) == len(breached)  # mostly unknown: the CPU samples are real
    finished = exporter.get_finished_spans()
    arrived = {
        s.context.trace_id for s in finished if s.kind is SpanKind.SERVER and (s.attributes or {})["sla.breached"]
    }
    assert arrived == breached
    for trace_id in breached:
        spans = [span for span in finished if span.context.trace_id == trace_id]
        assert sorted(span.name for span in spans) == ["POST /predict", "child", "handler"]
        assert all(span.context.trace_flags.sampled for span in spans)
        assert len({(span.attributes or {}).get("sla.upgraded") for span in spans}) == 1
    good = {s.context.trace_id for s in finished} - breached
    assert len(good) < 300 if ratio else not good


def test_spans_that_end_after_a_kept_breach_follow_it() -> None:
    tracer, _, exporter = setup("* within 50ms", ParentBased(ALWAYS_OFF))
    span = tracer.start_span("x", kind=SpanKind.SERVER, start_time=START)
    late = tracer.start_span("background", context=set_span_in_context(span))
    span.end(START + 60 * MS)
    late.end()
    assert [s.name for s in exporter.get_finished_spans()] == ["handler", "x", "background"]
    assert exporter.get_finished_spans()[2].context.trace_flags & TraceFlags.SAMPLED


def test_held_spans_are_bounded_and_the_loss_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_HELD_PER_TRACE", 5)
    tracer, processor, exporter = setup("* within 50ms", ALWAYS_OFF)
    span = tracer.start_span("x", kind=SpanKind.SERVER, start_time=START)
    for _ in range(8):
        tracer.start_span("child", context=set_span_in_context(span)).end()
    span.end(START + 60 * MS)
    assert sum(s.name == "child" for s in exporter.get_finished_spans()) == 5
    assert (entries_of(exporter)[0].attributes or {})["stagetrace.dropped_spans"] == 3
    assert processor._held._lost == {}
    assert processor._held._held == 0


def test_good_requests_leave_nothing_behind() -> None:
    tracer, processor, exporter = setup("* within 50ms", ALWAYS_OFF)
    for _ in range(10):
        span = tracer.start_span("x", kind=SpanKind.SERVER, start_time=START)
        tracer.start_span("child", context=set_span_in_context(span)).end()
        span.end(START + MS)
    assert exporter.get_finished_spans() == ()
    held = processor._held
    assert (held._held, held._open, held._spans, len(held._kept)) == (0, {}, {}, 0)


def test_a_policy_that_matches_nothing_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    tracer, processor, _ = setup("GET /nothing within 50ms")
    for _ in range(150):
        request(tracer, 1)
    processor.counter.say_unmatched(Policy.parse("GET /nothing within 50ms"))
    err = capfd.readouterr().err
    assert err.count("matched none of 100 requests") == 1
    assert "They were POST /predict" in err
    assert len(err.strip().splitlines()) <= 3


class _Raises(SpanProcessor):
    """Raises wherever it is asked to, and keeps which methods were called on which spans."""

    def __init__(self, error: type[BaseException], where: str, scope: str = "") -> None:
        self._error, self._where, self._scope = error, where, scope
        self.calls: list[tuple[str, str]] = []

    def _call(self, where: str, span: Any) -> None:
        self.calls.append((where, span.name))
        if where == self._where and span.instrumentation_scope.name.startswith(self._scope):
            raise self._error("not this one")

    def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
        self._call("start", span)

    def _on_ending(self, span: Any) -> None:
        self._call("ending", span)

    def on_end(self, span: Any) -> None:
        self._call("end", span)


@pytest.mark.parametrize("where", ["start", "ending", "end"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", [SpanKind.SERVER, SpanKind.INTERNAL])
def test_what_another_processor_raises_reaches_whose_span_it_is(
    where: str, error: type[BaseException], kind: SpanKind
) -> None:
    tracer = tracer_with(SLASpanProcessor(POLICY, _Raises(error, where, "test")))
    with pytest.raises(error, match="not this one"):
        tracer.start_span("theirs", kind=kind).end()
    entries.clear()  # of a span that is `ending` for ever, as untraced
    assert guard.failures == {}


def test_another_processor_sees_all_that_the_sdk_shows() -> None:
    wrapped = _Raises(RuntimeError, "")
    tracer_with(SLASpanProcessor(POLICY, wrapped)).start_span("theirs", kind=SpanKind.SERVER).end()
    assert wrapped.calls == [("start", "theirs"), ("ending", "theirs"), ("end", "handler"), ("end", "theirs")]


@pytest.mark.parametrize("where", ["start", "ending", "end"])
def test_what_another_processor_raises_on_spans_of_ours_is_said_to_be_its_own(
    where: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_logged", set())
    chain = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
    chain.add_span_processor(_Raises(RuntimeError, where, "stagetrace"))
    tracer = tracer_with(SLASpanProcessor(POLICY, chain), "stagetrace")
    for _ in range(2):
        request(tracer, 20)
    assert guard.failures == {}
    err = capfd.readouterr().err
    assert err.count(f"the span processor {__name__}._Raises, which this service has added, failed") == 1
    assert "fault of stagetrace" not in err


def test_a_stage_that_another_processor_refuses_keeps_nobody_from_theirs() -> None:
    wrapped = _Raises(RuntimeError, "end", "stagetrace")
    request(tracer_with(SLASpanProcessor(POLICY, wrapped)), 20)
    assert wrapped.calls[-1] == ("end", "POST /predict")


@pytest.mark.parametrize("twin", ["judge", "stage_span", "readable"])
def test_our_own_failure_lets_the_span_pass(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{twin} is broken")

    monkeypatch.setattr(decision_module if twin == "judge" else spans_module, twin, failing)
    decision_module._blocks.clear()
    tracer, _, exporter = setup()
    request(tracer, 20)
    assert [span.name for span in entries_of(exporter)] == ["POST /predict"]
    assert sum(guard.failures.values()) == 1


class _Baggage(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Put something on the span."""


@pytest.mark.parametrize("composite", [SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
def test_what_looks_at_no_ended_span_exports_nothing(composite: Any) -> None:
    chain = composite()
    assert not exports(chain)
    chain.add_span_processor(_Baggage())
    chain.add_span_processor(composite())
    assert not exports(chain)
    chain.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    assert exports(chain)
    assert exports(_Raises(RuntimeError, "end"))  # who knows what it does


def test_where_nothing_is_sent_nothing_is_judged() -> None:
    chain = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
    processor = SLASpanProcessor(POLICY, chain)
    tracer = tracer_with(processor)
    request(tracer, 60)
    assert processor.counter.counts() == {}
    exporter = InMemorySpanExporter()
    processor.standby = [SimpleSpanProcessor(exporter)]
    request(tracer, 60)
    own = InMemorySpanExporter()
    processor.add_span_processor(SimpleSpanProcessor(own))
    request(tracer, 60)
    for each in (exporter, own):
        assert [span.name for span in each.get_finished_spans()] == ["handler", "POST /predict"]
    assert processor.counter.counts() == {("POST /predict within 50ms", "breach"): 2}


def test_a_request_is_judged_by_the_policy_that_is_in_force_as_it_ends() -> None:
    """Verdicts that were counted before stay."""
    tracer, processor, exporter = setup("* within 1s")
    request(tracer, 100)
    span = tracer.start_span("POST /predict", kind=SpanKind.SERVER, start_time=START)
    processor.replace_policy(Policy.parse("* within 50ms"))
    span.end(START + 100 * MS)
    assert [one.attributes["sla.verdict"] for one in entries_of(exporter) if one.attributes] == ["good", "breach"]
    assert processor.counter.counts() == {("* within 1s", "good"): 1, ("* within 50ms", "breach"): 1}


def test_the_policy_of_a_processor_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sla.yaml"
    path.write_text("objectives: [{name: mine, within: 1s}]")
    tracer, _, exporter = setup(str(path))
    request(tracer, 100)
    assert [one.attributes["sla.objective"] for one in entries_of(exporter) if one.attributes] == ["mine"]
    with pytest.raises(PolicyError, match=r"cannot read the policy nowhere\.yaml"):
        SLASpanProcessor("nowhere.yaml", SpanProcessor())
