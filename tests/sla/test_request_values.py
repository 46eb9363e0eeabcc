"""What policies ask of a request: attributes, headers, baggage, segments, deadlines, the age of its process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode

from sla.recording import START, Described, recorder_of
from stagetrace import Policy, SLASpanProcessor, guard, log
from stagetrace.causes import bounds
from stagetrace.causes.bounds import LONGEST_NS, deadline_ns
from stagetrace.otlp.encode import Block
from stagetrace.policy.objective import DEADLINES, GRPC_TIMEOUT, REPLACE, Condition, Deadline, Objective
from stagetrace.request.context import open_entry
from stagetrace.request.serving_process import Serving
from stagetrace.semconv import INFERENCE
from stagetrace.sla import decision
from stagetrace.sla.decision import Segments

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.sla.entry_recorder import EntryRecorder

MS = 1_000_000
METHOD, CLIENT = Block({"http.request.method": "GET"}), Block({"client.address": "::1"})  # shared, as by adapters


class Asked(Described):
    """A request that has headers and perhaps a deadline."""

    def __init__(self, headers: dict[str, str], remaining_ns: int | None = None) -> None:
        super().__init__(start=START)
        self.headers = headers
        self.remaining_ns = remaining_ns

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        return [METHOD], CLIENT, {"url.path": "/a"}

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def deadline_ns(self) -> int | None:
        return self.remaining_ns


def objective(name: str, within_ms: float = 10, **more: Any) -> Objective:
    return Objective(name, None, "*", int(within_ms * MS), **more)


def ended(
    recorder: EntryRecorder,
    took_ms: float = 1,
    request: Asked | None = None,
    context: Context | None = None,
    act: Callable[[Asked], object] = lambda _: None,
) -> None:
    request = request or Asked({})
    open_entry(request, "GET /a", context or Context(), recorder)
    request.method, request.route = "GET", "/a"
    act(request)
    request.end_entry(START + int(took_ms * MS))


def entry_of(sent: list[bytes]) -> dict[str, Any]:
    """Return the attributes of the entry span that was sent last, none of which is there twice."""
    span = ScopeSpans.FromString(sent[-1]).spans[-1]
    found = {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}
    assert len(found) == len(span.attributes)
    return found


def infer(entry: Asked) -> None:
    entry.enter(INFERENCE, {"ml.model.name": "churn-7"}, at=START + 10)
    entry.leave(INFERENCE, at=START + 200)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tenant.tier", "gold"),  # set by the request's code
        ("beta", "true"),
        ("share", "0.5"),
        ("http.request.method", "GET"),  # of the adapter
        ("client.address", "::1"),
        ("url.path", "/a"),
        ("ml.model.name", "churn-7"),  # of the model that ran
        ("service.name", "churn-api"),  # of the resource
        ("header:x-plan", "gold"),
        ("header:X-Plan", "gold"),
        ("baggage:region", "eu"),
        ("long", "x" * 256),
    ],
)
def test_a_condition_holds_for_what_the_request_has(key: str, value: str) -> None:
    policy = Policy((objective("its", conditions=(Condition(key, value),)), objective("rest")))
    recorder, processor, sender = recorder_of(DEFAULT_ON, policy, Resource({"service.name": "churn-api"}))

    def act(entry: Asked) -> None:
        entry.entry_span.set_attributes({"tenant.tier": "gold", "beta": True, "share": 0.5, "long": "x" * 300})
        infer(entry)

    ended(recorder, 1, Asked({"x-plan": "gold"}), baggage.set_baggage("region", "eu", Context()), act)
    assert entry_of(sender.sent)["sla.objective"] == "its"
    ended(recorder)
    is_of_all = key in {"http.request.method", "client.address", "url.path", "service.name"}
    assert entry_of(sender.sent)["sla.objective"] == ("its" if is_of_all else "rest")
    assert processor.counter.counts() == {
        (name, "good"): count for name, count in (("its", 1 + is_of_all), ("rest", 1 - is_of_all)) if count
    }
    assert not guard.failures


def test_what_the_head_sampler_drops_is_judged_by_its_model_and_its_attributes() -> None:
    policy = Policy(
        (
            objective("its", conditions=(Condition("ml.model.name", "churn-*"), Condition("url.path", "/a"))),
            objective("rest"),
        )
    )
    recorder, processor, sender = recorder_of(ParentBased(TraceIdRatioBased(0.0)), policy)
    ended(recorder, act=infer)
    ended(recorder)
    assert sender.sent == []
    assert processor.counter.counts() == {("its", "good"): 1, ("rest", "good"): 1}
    ended(recorder, 20, act=infer)
    found = entry_of(sender.sent)
    assert (found["sla.objective"], found["sla.verdict"], found["ml.model.name"]) == ("its", "breach", "churn-7")


def test_what_its_code_has_set_wins_over_what_the_adapter_describes() -> None:
    policy = Policy((objective("its", conditions=(Condition("url.path", "/other"),)), objective("rest")))
    recorder, _, sender = recorder_of(DEFAULT_ON, policy)
    ended(recorder, act=lambda entry: entry.entry_span.set_attribute("url.path", "/other"))
    assert (entry_of(sender.sent)["sla.objective"], entry_of(sender.sent)["url.path"]) == ("its", "/other")


@pytest.mark.parametrize("key", ["header:authorization", "header:x-session-id", "baggage:api_key"])
def test_a_value_that_is_secret_by_its_name_is_not_read_and_that_is_said_once(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    decision._is_readable.cache_clear()
    log._logged.clear()
    policy = Policy((objective("its", conditions=(Condition(key, "*"),)), objective("rest", segment_by=(key,))))
    recorder, _, sender = recorder_of(DEFAULT_ON, policy)
    name = key.partition(":")[2]
    for _ in range(2):
        ended(recorder, 1, Asked({name: "hush"}), baggage.set_baggage(name, "hush", Context()))
        found = entry_of(sender.sent)
        assert (found["sla.objective"], found["sla.segment"]) == ("rest", "(none)")
    err = capsys.readouterr().err
    assert err.count(f"the policy asks for {key}, which is not read") == 1
    assert "hush" not in err


@pytest.mark.parametrize("part", ["_header", "_baggage", "_attributes", "is_secret", "as_text"])
def test_a_lookup_that_fails_costs_the_condition_and_not_the_verdict(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision._is_readable.cache_clear()
    keys = ("header:x-plan", "baggage:region", "tenant.tier")
    its = objective("its", conditions=tuple(Condition(key, "*") for key in keys))
    recorder, _, sender = recorder_of(DEFAULT_ON, Policy((its, objective("rest"))))
    monkeypatch.setattr(decision, part, failing)
    where = (Asked({"x-plan": "gold"}), baggage.set_baggage("region", "eu", Context()))
    ended(recorder, 1, *where, lambda entry: entry.entry_span.set_attribute("tenant.tier", "gold"))
    assert entry_of(sender.sent)["sla.objective"] == "rest"
    assert list(guard.failures) == ["stagetrace.sla.decision.Values"]


@pytest.mark.parametrize("part", ["deadlines", "_segment"])
def test_without_deadlines_or_segments_a_request_is_judged_all_the_same(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = objective("its", segment_by=("url.path",), deadline=Deadline((GRPC_TIMEOUT,)))
    recorder, processor, sender = recorder_of(DEFAULT_ON, Policy((own,)))
    monkeypatch.setattr(Segments if part == "_segment" else bounds, "of" if part == "_segment" else part, failing)
    ended(recorder, 1, Asked({"grpc-timeout": "1n"}))
    assert entry_of(sender.sent)["sla.verdict"] == ("breach" if part == "_segment" else "good")
    assert sum(guard.failures.values()) == sum(processor.counter.counts().values()) == 1


def test_spans_of_the_sdk_have_attributes_recorded_headers_baggage_and_their_service() -> None:
    exporter = InMemorySpanExporter()
    conditions = [
        Condition(key, value)
        for key, value in (
            *(("tenant.tier", "gold"), ("header:x-plan", "gold, silver"), ("header:x-old", "1")),
            *(("baggage:region", "eu"), ("service.name", "churn-api")),
        )
    ]
    policy = Policy((objective("its", conditions=tuple(conditions)), objective("rest", errors="bad")))
    provider = TracerProvider(resource=Resource({"service.name": "churn-api"}), shutdown_on_exit=False)
    provider.add_span_processor(SLASpanProcessor(policy, SimpleSpanProcessor(exporter)))
    tracer = provider.get_tracer("service")
    for region in ("eu", "us"):
        context = baggage.set_baggage("region", region, Context())
        span = tracer.start_span("GET", context, kind=SpanKind.SERVER, start_time=START)
        span.set_attributes({"http.request.method": "GET", "http.route": "/a", "tenant.tier": "gold"})
        span.set_attribute("http.request.header.x-plan", ["gold", "silver"])
        span.set_attribute("rpc.grpc.request.metadata.x-old", "1")
        span.set_status(Status(StatusCode.ERROR))
        span.end(START + MS)
    found = [span.attributes or {} for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [(one["sla.objective"], one["sla.verdict"]) for one in found] == [("its", "good"), ("rest", "breach")]
    assert (found[1]["sla.breach.cause"], found[1]["sla.breach.promise"]) == ("error", "error")


def test_segments_are_the_first_ones_that_come_and_the_rest_is_other_and_counted() -> None:
    own = objective("its", segment_by=("tenant.tier", "header:x-region"), max_segments=2)
    recorder, processor, sender = recorder_of(DEFAULT_ON, Policy((own,)))
    seen = []
    for tier, region in (("gold", "eu"), (None, "eu"), ("iron", "us"), ("gold", "eu"), ("gold", None)):
        headers = {} if region is None else {"x-region": region}
        tiers = {} if tier is None else {"tenant.tier": tier}
        ended(recorder, 1, Asked(headers), act=lambda entry, tiers=tiers: entry.entry_span.set_attributes(tiers))  # type: ignore[misc]
        seen.append(entry_of(sender.sent)["sla.segment"])
    assert seen == ["gold, eu", "(none), eu", "other", "gold, eu", "other"]
    assert processor.counter.segment_overflow() == {"its": 2}
    by_segment = {point.segment: count for point, count in processor.counter.points().items()}
    assert by_segment == {"gold, eu": 2, "(none), eu": 1, "other": 2}
    ended(recorder, 20)  # a breach, of a request that has neither
    assert entry_of(sender.sent)["sla.segment"] == "other"


def test_a_credential_that_is_known_by_its_form_is_redacted_in_a_segment() -> None:
    recorder, _, sender = recorder_of(DEFAULT_ON, Policy((objective("its", segment_by=("header:x-plan",)),)))
    for _ in range(2):
        ended(recorder, 1, Asked({"x-plan": "Bearer abcdef0123456789"}))
        assert entry_of(sender.sent)["sla.segment"] == "Bearer REDACTED"


@pytest.mark.parametrize(
    ("mode", "headers", "remaining_ns", "threshold_ms", "source"),
    [
        ("tighten", {}, None, 10, None),
        ("tighten", {"x-request-timeout-ms": "4"}, None, 4, "x-request-timeout-ms"),
        ("tighten", {"x-request-timeout-ms": "40"}, None, 10, None),
        ("replace", {"x-request-timeout-ms": "40"}, None, 40, "x-request-timeout-ms"),
        ("tighten", {"grpc-timeout": "5m", "x-request-timeout-ms": "4"}, None, 5, "grpc-timeout"),
        ("tighten", {"grpc-timeout": "5m"}, 3 * MS, 3, "grpc-timeout"),  # by gRPC itself
        ("replace", {"grpc-timeout": "soon", "x-request-timeout-ms": "-4"}, None, 10, None),
    ],
)
def test_the_threshold_is_the_deadline_that_the_request_has_brought_along(
    mode: str, headers: dict[str, str], remaining_ns: int | None, threshold_ms: float, source: str | None
) -> None:
    own = objective("its", deadline=Deadline((GRPC_TIMEOUT, "x-request-timeout-ms"), mode))
    recorder, processor, sender = recorder_of(DEFAULT_ON, Policy((own,)))
    for took_ms, word in ((threshold_ms, "good"), (threshold_ms + 0.01, "breach")):
        ended(recorder, took_ms, Asked(headers, remaining_ns))
        found = entry_of(sender.sent)
        assert (found["sla.verdict"], found["sla.threshold_ms"]) == (word, threshold_ms)
        assert found.get("sla.deadline.source") == source
    wrong = [name for name, text in headers.items() if text in {"soon", "-4"}]
    assert processor.counter.unusable_deadlines() == dict.fromkeys(wrong, 2)


def test_a_deadline_of_the_first_token_bounds_that_alone() -> None:
    own = objective("its", 50, deadline=Deadline(("x-slo-ttft-ms",), REPLACE))
    recorder, _, sender = recorder_of(DEFAULT_ON, Policy((own,)))
    for first_ms, shown in ((3, ("good", 50, None)), (7, ("breach", 5, "x-slo-ttft-ms"))):
        adapter = Asked({"x-slo-ttft-ms": "5"})

        def act(entry: Asked, first_ms: int = first_ms) -> None:
            from stagetrace.request.chunk_times import Stream

            entry.stream = Stream()
            entry.stream.add(START + first_ms * MS, 10)
            entry.stream.add(START + first_ms * MS + 10, 10)

        ended(recorder, 20, adapter, act=act)
        found = entry_of(sender.sent)
        assert (found["sla.verdict"], found["sla.threshold_ms"], found.get("sla.deadline.source")) == shown


def test_deadlines_and_segments_leave_nothing_behind_that_grows() -> None:
    own = objective("its", 1_000, segment_by=("header:x-user",), deadline=Deadline(("x-request-timeout-ms",)))
    recorder, _, sender = recorder_of(DEFAULT_ON, Policy((own,)))
    decision._blocks.clear()
    recorder._rests.clear()
    for number in range(200):
        ended(recorder, 1, Asked({"x-request-timeout-ms": str(number + 2), "x-user": f"u{number}"}))
    assert entry_of(sender.sent)["sla.threshold_ms"] == 201
    assert (len(decision._blocks), len(recorder._rests)) == (0, 1)


@pytest.mark.parametrize(
    ("source", "text", "ns"),
    [
        (GRPC_TIMEOUT, "250m", 250 * MS),
        (GRPC_TIMEOUT, "99999999n", 99_999_999),
        (GRPC_TIMEOUT, "1H", 3_600 * 10**9),
        (GRPC_TIMEOUT, "2M", 120 * 10**9),
        (GRPC_TIMEOUT, "3S", 3 * 10**9),
        (GRPC_TIMEOUT, "7u", 7_000),
        *((GRPC_TIMEOUT, text, None) for text in ("", "m", "250", "250ms", "-1m", "1.5S", "0m", "999999999m", "٣m")),
        (GRPC_TIMEOUT, "99999999H", None),
        ("x-request-timeout-ms", " 1500 ", 1_500 * MS),
        ("x-request-timeout-ms", "0.5", 500_000),
        ("x-request-timeout-ms", "0.0000001", None),
        *(
            ("x-request-timeout-ms", text, None)
            for text in ("0", "-1", "nan", "inf", "1e3", "1,5", "5, 6", "5ms", "9" * 99)
        ),
    ],
)
def test_a_deadline_is_a_positive_time_of_less_than_three_years_or_none(source: str, text: str, ns: int | None) -> None:
    assert deadline_ns(source, text) == ns


@given(st.sampled_from(DEADLINES), st.text() | st.from_regex(r"[0-9]{1,17}(\.[0-9]{0,17})?[HMSmun]?", fullmatch=True))
def test_any_text_is_a_deadline_or_none(source: str, text: str) -> None:
    ns = deadline_ns(source, text)
    assert ns is None or 0 < ns <= LONGEST_NS


@pytest.mark.parametrize(
    ("errors", "shown"),
    [("ignored", ("good", None)), ("excluded", ("excluded", "error")), ("bad", ("breach", None))],
)
def test_what_an_error_of_the_server_counts_as(errors: str, shown: tuple[str, str | None]) -> None:
    recorder, _, sender = recorder_of(DEFAULT_ON, Policy((objective("its", errors=errors),)))
    ended(recorder, 1, act=lambda entry: setattr(entry, "failed", True))
    found = entry_of(sender.sent)
    assert (found["sla.verdict"], found.get("sla.excluded.reason")) == shown
    if errors == "bad":
        assert (found["sla.breach.promise"], found["sla.breach.cause"], found["sla.overrun_ms"]) == (
            "error",
            "error",
            0,
        )
    ended(recorder, 1)
    assert entry_of(sender.sent)["sla.verdict"] == "good"


def test_a_warm_up_counts_from_when_this_process_began_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr("stagetrace.request.serving_process.monotonic_ns", lambda: now[0])
    serving = Serving()
    monkeypatch.setattr(decision, "serving", serving)
    recorder, processor, sender = recorder_of(DEFAULT_ON, Policy((objective("its", warmup_s=30),)))
    serving.begin()
    for at_s, took_ms, word in ((1, 1, "excluded"), (30.0005, 1, "excluded"), (30.001, 1, "good"), (40, 20, "breach")):
        now[0] = int(at_s * 1e9)
        ended(recorder, took_ms)
        found = entry_of(sender.sent)
        assert (found["sla.verdict"], found.get("sla.excluded.reason")) == (
            word,
            "warmup" if word == "excluded" else None,
        )
    serving.begin_anew()  # in a forked child
    ended(recorder, 20)
    assert entry_of(sender.sent)["sla.excluded.reason"] == "warmup"
    assert processor.counter.counts() == {("its", "excluded"): 3, ("its", "good"): 1, ("its", "breach"): 1}


def test_a_forked_process_is_as_old_as_its_own_first_request() -> None:
    from stagetrace.request.serving_process import serving

    serving.begin()
    assert serving.age_s(0) >= 0
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(serving.age_s(5)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"0.0"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(("took_ms", "word"), [(5, "good"), (50, "breach")])
def test_stages_over_their_budget_are_named_whatever_the_verdict(took_ms: int, word: str) -> None:
    own = objective("its", stages=(("queue", 2 * MS), ("inference", MS), ("preprocess", 100 * MS), ("none", MS)))
    recorder, _, sender = recorder_of(DEFAULT_ON, Policy((own,)))

    def act(entry: Asked) -> None:
        entry.enter("queue", at=START)
        entry.leave("queue", at=START + int(2.1 * MS))
        entry.enter(INFERENCE, at=START + int(2.1 * MS))
        entry.leave(INFERENCE, at=START + 4 * MS)

    ended(recorder, took_ms, act=act)
    found = entry_of(sender.sent)
    assert (found["sla.verdict"], found["sla.over_budget"]) == (word, "inference, queue")
    ended(recorder)
    assert "sla.over_budget" not in entry_of(sender.sent)


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken")
