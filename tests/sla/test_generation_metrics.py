"""`gen_ai.server.*` metrics of requests that called generative models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from stagetrace import guard, semconv
from stagetrace.bridge.processor import SLASpanProcessor
from stagetrace.request.request import Request
from stagetrace.sla import generation_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sla.decision import Decided

START, MS = 1_700_000_000 * 10**9, 1_000_000
MODEL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "vllm",
    "gen_ai.request.model": "m",
}


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    found = InMemoryMetricReader()
    provider = MeterProvider([found])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    monkeypatch.setattr(guard, "failures", {})
    generation_metrics.wanted.cache_clear()
    yield found
    generation_metrics.wanted.cache_clear()
    provider.shutdown()


def points(reader: InMemoryMetricReader) -> dict[str, Any]:
    data: Any = reader.get_metrics_data()
    if data is None:
        return {}
    found = [one for of in data.resource_metrics for scope in of.scope_metrics for one in scope.metrics]
    assert {one.unit for one in found} == {"s"}
    return {one.name: list(one.data.data_points) for one in found}


def generated(record: Request, first_ms: int, gaps_ms: tuple[int, ...], error: str | None = None) -> None:
    from stagetrace.request import generation

    call = generation.begin(record, {**MODEL, "ml.model.name": "m"}, START + 5 * MS)
    now = START + first_ms * MS
    call.add(now)
    for gap in gaps_ms:
        now += gap * MS
        call.add(now)
    call.end(now, error)


def judge(record: Request, policy: str | None, took_ms: int) -> Decided | None:
    """Judge as for every entry span, kept by the sampler or not."""
    record.end, record.method, record.route = START + took_ms * MS, "POST", "/a"
    return SLASpanProcessor(policy, None).judge(record)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [None, "* within 1s"])
def test_a_request_is_measured_from_its_arrival(reader: InMemoryMetricReader, policy: str | None) -> None:
    record = Request(start=START)
    generated(record, 50, (10, 30))
    judge(record, policy, 200)
    found = points(reader)
    assert {name: (one.sum, one.count, dict(one.attributes)) for name, (one,) in found.items()} == {
        semconv.METRIC_REQUEST_DURATION: (0.2, 1, MODEL),
        semconv.METRIC_TTFT: (0.05, 1, MODEL),
        semconv.METRIC_TPOT: (0.02, 1, MODEL),
    }
    bounds = {name: one.explicit_bounds for name, (one,) in found.items()}
    assert bounds[semconv.METRIC_REQUEST_DURATION][:3] == (0.01, 0.02, 0.04)
    assert bounds[semconv.METRIC_REQUEST_DURATION][-1] == pytest.approx(81.92)
    assert bounds[semconv.METRIC_TTFT] == (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    )
    assert bounds[semconv.METRIC_TPOT] == (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),)
    assert guard.failures == {}


def test_of_a_failed_call_only_the_duration_is_measured(reader: InMemoryMetricReader) -> None:
    record = Request(start=START)
    generated(record, 50, (10,), "ValueError")
    judge(record, None, 100)
    ((name, (point,)),) = points(reader).items()
    assert (name, point.sum) == (semconv.METRIC_REQUEST_DURATION, 0.1)
    assert dict(point.attributes) == {**MODEL, "error.type": "ValueError"}


def test_one_token_has_no_time_for_each_token_after_it(reader: InMemoryMetricReader) -> None:
    record = Request(start=START)
    generated(record, 50, ())
    judge(record, None, 100)
    assert set(points(reader)) == {semconv.METRIC_REQUEST_DURATION, semconv.METRIC_TTFT}


def test_requests_that_generate_nothing_are_not_measured(reader: InMemoryMetricReader) -> None:
    judge(Request(start=START), None, 100)
    assert points(reader) == {}


def test_without_a_meter_provider_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "get_meter_provider", type("NoOpMeterProvider", (), {}))
    generation_metrics.wanted.cache_clear()
    record = Request(start=START)
    generated(record, 50, (10,))
    judge(record, None, 100)
    assert generation_metrics.wanted() is None
    generation_metrics.wanted.cache_clear()
    assert record.besides["stagetrace.tokens.first_ms"] == 50.0


@pytest.mark.parametrize("fault", ["bridge.metrics.GenerationMetrics.record", "sla.generation_metrics.conclude"])
def test_a_fault_of_ours_costs_no_verdict(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(f"stagetrace.{fault}", broken)
    record = Request(start=START)
    generated(record, 50, (10,))
    judged = judge(record, "* within 1s first_token 1ms", 100)
    assert judged is not None
    assert judged.word == "breach"
    assert len(guard.failures) == 1
    assert points(reader) == {}
