"""The metrics of verdicts as real services send them: before sampling, with traces that are kept, from each process."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from backend.processes import until
from backends import free_port, run_collector, run_jaeger
from services import PYTHON, UVICORN, recorded, run_service
from sink import attributes_in, run_sink
from stagetrace.sla.verdict_counter import EXEMPLARS

if TYPE_CHECKING:
    from pathlib import Path

    from services import Service

pytestmark = pytest.mark.usefixtures("services")

PLAIN, SLOW, BLOCKING = 20, 4, 2
WORKERS, AT_ONCE = 2, 4
POLICY = "GET /plain within 60m; POST /predict within 50ms for 99.9% over 7d; POST /async-predict within 60m"
RULES = ["GET /plain within 60m", "POST /predict within 50ms", "POST /async-predict within 60m"]
SOON = {"OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_PYTHON_EXCLUDED_URLS": "/health,/metrics"}


def ask(service: Service) -> None:
    for _ in range(PLAIN):
        service.client.get("/plain").raise_for_status()
    for _ in range(SLOW):
        service.client.post("/predict", json={"inference_s": 0.08}).raise_for_status()
    for _ in range(BLOCKING):
        service.client.post("/async-predict", json={"inference_s": 0.5}).raise_for_status()


def summed(points: list[Any], *names: str) -> dict[tuple[str, ...], int]:
    """Return the values of points, or the counts of histograms, by some of their attributes."""
    found: Counter[tuple[str, ...]] = Counter()
    for point in points:
        attributes = attributes_in(point.attributes)
        key = tuple(attributes.get(name, "") for name in names)
        found[key] += point.count if hasattr(point, "bucket_counts") or hasattr(point, "positive") else point.as_int
    return dict(found)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_sampled_service_sends_all_it_has_counted_and_exemplars_of_kept_traces(loop: str, tmp_path: Path) -> None:
    with run_sink() as sink:
        sampled = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.2"}
        env = sink.environment(STAGETRACE_SLA=POLICY, **sampled, **SOON)
        argv = [PYTHON, "-m", *(part.replace("{app}", "ml") for part in UVICORN), "--loop", loop]
        with run_service(tmp_path, env=env, argv=argv) as service:
            ask(service)
            until(lambda: sum(summed(sink.points("sla.requests")).values()) == PLAIN + SLOW + BLOCKING)
            service.stop()
            assert "metric" not in service.log
        requests = summed(sink.points("sla.requests"), "sla.objective", "sla.verdict", "sla.breach.stage", "http.route")
        assert requests == {
            (RULES[0], "good", "", "/plain"): PLAIN,
            (RULES[1], "breach", "inference", "/predict"): SLOW,
            (RULES[2], "good", "", "/async-predict"): BLOCKING,
        }
        durations = sink.points("sla.duration")
        assert summed(durations, "sla.objective", "sla.verdict") == {key[:2]: value for key, value in requests.items()}
        (slow,) = [one for one in durations if attributes_in(one.attributes)["sla.verdict"] == "breach"]
        assert 0.05 < slow.min <= slow.max < 30
        assert sum(slow.positive.bucket_counts) == SLOW
        assert len(slow.exemplars) == min(SLOW, EXEMPLARS)
        # Of requests that the sampler dropped the stages are not worked out; the breaches are all there.
        stages = summed(sink.points("sla.stage.duration"), "sla.objective", "ml.stage")
        assert stages[RULES[1], "inference"] == SLOW
        traces = [exemplar.trace_id.hex() for request in sink.metrics for exemplar in exemplars(request)]
        assert traces
        assert set(traces) <= sink.traces()
        info = {tuple(attributes_in(one.attributes).values()): one.as_int for one in sink.points("sla.objective.info")}
        assert info[RULES[1], "0.999", "50", "7d"] == 1
        assert len(info) == len(RULES)
        (lag,) = sink.points("stagetrace.event_loop.lag")
        assert 0.2 < lag.max < 30


def exemplars(request: Any) -> list[Any]:
    """Return the exemplars of all histograms."""
    return [
        exemplar
        for resource in request.resource_metrics
        for metric in resource.scope_metrics[0].metrics
        for point in metric.exponential_histogram.data_points
        for exemplar in point.exemplars
    ]


def test_none_switches_them_off(tmp_path: Path) -> None:
    with run_sink() as sink:
        env = sink.environment(STAGETRACE_SLA=POLICY, OTEL_METRICS_EXPORTER="none", **SOON)
        with run_service(tmp_path, env=env) as service:
            ask(service)
            sink.wait_for(lambda spans: len([one for one in spans if one.kind == 2]) == PLAIN + SLOW + BLOCKING)
            service.stop()
        assert sink.metrics == []


def test_prometheus_reads_the_counters_from_the_service_and_its_histograms_go_with_the_spans(tmp_path: Path) -> None:
    port = free_port()
    with run_sink() as sink:
        prometheus = {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}
        env = sink.environment(STAGETRACE_SLA=POLICY, **prometheus, **SOON)
        with run_service(tmp_path, env=env) as service:
            ask(service)
            text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            until(lambda: sink.points("sla.duration"))
            service.stop()
        assert sink.points("sla.requests") == []
    breach = next(line for line in text.splitlines() if 'sla_verdict="breach"' in line)
    name, labels, value = re.fullmatch(r"(\w+){(.*)} (.*)", breach).groups()  # type: ignore[union-attr]
    assert (name, float(value)) == ("sla_requests_total", SLOW)
    assert 'sla_breach_stage="inference"' in labels
    assert 'sla_objective_info{objective="GET /plain within 60m"' in text


@pytest.mark.parametrize("launcher", ["gunicorn", "gunicorn --preload"])
def test_what_workers_count_adds_up_in_the_collector(launcher: str, backends: None, tmp_path: Path) -> None:
    del backends
    with run_jaeger(tmp_path / "jaeger") as jaeger, run_collector(tmp_path / "collector", jaeger) as collector:
        env = recorded(collector.otlp_grpc, POLICY, OTEL_SERVICE_NAME="two", **SOON)
        with run_service(tmp_path, launcher=launcher, env=env) as service:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(ask, [service] * AT_ONCE))

            def total() -> int:
                text = httpx.get(collector.metrics).text
                return sum(
                    int(float(line.rpartition(" ")[2]))
                    for line in re.sub(r" # \{.*", "", text).splitlines()
                    if line.startswith("sla_requests_total{")
                )

            until(lambda: total() == AT_ONCE * (PLAIN + SLOW + BLOCKING))
            text = httpx.get(collector.metrics).text
            assert len(set(re.findall('sla_requests_total{.*instance="([^"]*)"', text))) == WORKERS


def test_a_receiver_that_takes_no_metrics_is_asked_once(backends: None, tmp_path: Path) -> None:
    """A Jaeger refuses the first export; neither the service nor its log shows that."""
    del backends
    with run_jaeger(tmp_path / "jaeger") as jaeger:
        with run_service(tmp_path, env=recorded(jaeger.otlp_grpc, POLICY, STAGETRACE_LOG="debug", **SOON)) as service:
            ask(service)
            service.stop()
        assert "UNIMPLEMENTED" not in service.log
