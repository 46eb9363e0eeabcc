"""`stagetrace capacity` over stores: the limit of a simulated pool, none where none is, autoscalers' manifests."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest

from analysis.queues import Requests, constant, queue
from answers.made import EVER, NOON, Made, lines, store
from answers.test_bad_input import finite
from cli.running import answered, printed, refused
from stagetrace.bridge.metrics import HttpMetrics
from stagetrace.cli.capacity import objective
from stagetrace.output.autoscaler import METRIC, label

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

answer = partial(answered, "capacity", *EVER, "--store")
STEPS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 1.2)


def made(requests: Requests, first: int = 0, **more: Any) -> Iterator[Made]:
    """Yield simulated requests, what they waited as `queue`."""
    for number, (start, end, waited) in enumerate(zip(requests.start, requests.end, requests.queue_ms, strict=True), 1):
        took = (int(end) - int(start)) / 1e6
        stages = {"queue": float(waited), "inference": took - float(waited)}
        yield Made(first + number, int(start), stages, duration_ms=took, within_ms=60.0, **more)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store of four workers of 20 ms each, driven past their 200 requests a second."""
    return store(tmp_path_factory.mktemp("capacity") / "store", made(queue(4, STEPS, 6, constant)))


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store of two such services, of two instances each, whose load is low."""
    folder = tmp_path_factory.mktemp("capacity") / "store"
    parts = [
        made(
            queue(4, (0.05, 0.1, 0.2), 6, constant, seed),
            10_000 * seed,
            service=f"svc-{seed % 2}",
            resource={"service.instance.id": f"pod-{seed}"},
        )
        for seed in range(4)
    ]
    return store(folder, (one for part in parts for one in part))


def test_the_limit_of_a_pool(loaded: Path) -> None:
    found = answer(loaded, code=1)
    assert found["identifiable"]
    assert found["peak_per_s"] == pytest.approx(200, rel=0.06)
    low, high = found["interval"]
    assert low <= found["peak_per_s"] <= high
    assert found["saturation"] == pytest.approx(4, rel=0.2)
    assert found["headroom"] == pytest.approx(1 - found["busiest"]["per_s"] / found["peak_per_s"])
    match = re.match(
        r"shop (levels off|peaks) at (\d+) requests/s \[\d+, \d+\] .*; the busiest \d+ s took", found["sentence"]
    )
    assert match, found["sentence"]
    assert int(match[2]) == pytest.approx(found["peak_per_s"], abs=0.5)


def test_mean_numbers_by_little_s_law(loaded: Path) -> None:
    """In all, waiting and at work: sums of durations over the time from the first start to the last end."""
    whole = queue(4, STEPS, 6, constant)
    seconds = (whole.end.max() - whole.start.min()) / 1e9
    found = answer(loaded, code=None)
    assert found["in_flight"] == pytest.approx((whole.end - whole.start).sum() / 1e9 / seconds, rel=1e-6)
    assert found["utilisation"]["queue"]["mean"] == pytest.approx(whole.queue_ms.sum() / 1e3 / seconds, rel=1e-6)
    assert found["utilisation"]["workers"]["mean"] == pytest.approx(len(whole.start) * 0.02 / seconds, rel=1e-3)
    assert found["requests"] == len(whole.start)
    for resource in ("thread_pool", "event_loop", "batches", "cpu"):  # which made spans do not tell
        assert found["utilisation"][resource]["mean"] is None
        assert found["utilisation"][resource]["why_not"]


def test_replicas_for_a_rate(loaded: Path) -> None:
    found = answer(loaded, "--rate", "1000", code=1)
    assert found["replicas"]["replicas"] == 8  # of 140 each
    assert "1,000/s needs 8 replicas" in found["sentence"]
    strict = answer(loaded, "--rate", "1000", "--objective", "p99:30ms", code=1)
    assert strict["replicas"]["replicas"] > 8
    assert "the objective" in strict["replicas"]["reason"]
    never = answer(loaded, "--rate", "1000", "--objective", "p50:10ms", code=1)
    assert never["replicas"]["replicas"] is None
    assert "no load keeps the objective" in never["sentence"]


def test_a_load_that_never_came_near(idle: Path) -> None:
    found = answer(idle, "--service", "svc-1", "--rate", "100")
    assert (found["knee"], found["peak_per_s"], found["interval"], found["identifiable"]) == (None, None, None, False)
    assert (found["headroom"], found["saturation"]) == (None, None)
    assert found["sentence"].startswith("The capacity of service svc-1 is not identifiable from this data: ")
    test = "stagetrace bench http://HOST:PORT/predict --body @request.json --find p99:60ms"
    assert f"To find it, load a copy of the service: `{test}`." in found["sentence"]
    assert found["load_test"] == test
    assert found["replicas"]["at_most"]
    assert re.search(r"100/s needs \d+ replicas? at most", found["sentence"])


def test_a_limit_in_doubt_is_answered_and_drawn(tmp_path: Path) -> None:
    """A law of a limit that the load did not go far enough for once ended the command with a traceback."""
    folder = store(tmp_path / "store", made(queue(4, (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 1), 1, constant)))
    found = answer(folder, "--route", "/predict")
    assert (found["law"], found["identifiable"], found["saturation"]) == ("limit", False, None)
    assert "did not go far enough" in found["why_not"]
    assert "throughput by requests in flight" in printed("capacity", "--long", "--store", folder, *EVER)


def test_services_and_instances_apart(idle: Path) -> None:
    found = answer(idle)
    assert found["peak_per_s"] is None
    services = {one["service"]: one for one in found["services"]}
    assert sorted(services) == ["svc-0", "svc-1"]
    for number in (0, 1):
        one = services[f"svc-{number}"]
        assert {instance["name"] for instance in one["instances"]} == {f"pod-{number}", f"pod-{number + 2}"}
        assert one["at_work"] == 2
        assert sum(instance["requests"] for instance in one["instances"]) == one["requests"]
    text = printed("capacity", "--long", "--store", idle, *EVER)
    assert text.startswith("2 services. ")
    assert "pod-3" in text


def test_of_a_file_too(tmp_path: Path, loaded: Path) -> None:
    path = lines(tmp_path / "spans.jsonl", made(queue(4, STEPS, 6, constant)))
    assert answer(f"file://{path}", code=None) == answer(loaded, code=None)


def test_processes_without_an_instance_id_are_distinguished_by_host_and_pid(tmp_path: Path) -> None:
    parts = [
        made(queue(1, (0.2, 0.4), 3, constant, seed), 10_000 * seed, resource={"host.name": "h", "process.pid": seed})
        for seed in (1, 2)
    ]
    found = answer(store(tmp_path / "store", (one for part in parts for one in part)))
    assert sorted(instance["name"] for instance in found["instances"]) == ["h:1", "h:2"]


def test_what_spans_say_of_pool_cpu_and_batches(tmp_path: Path) -> None:
    """A pool's size is on the spans of the waits for it, CPU time and batch size on the requests."""
    requests = [
        Made(
            number,
            NOON + number * 10_000_000,
            {"queue": 5.0, "inference": 15.0},
            with_stage_spans=True,
            attributes={"stagetrace.process.cpu_ms": 100.0 if number % 25 == 0 else None, "ml.batch.size": 8},
            resource={"service.instance.id": "same"},
            stage_attributes={"queue": {"queue.reason": "thread_pool", "queue.pool_size": 5, "queue.waiters": 2}},
        )
        for number in range(1, 301)
    ]
    used = answer(store(tmp_path / "store", requests))["utilisation"]
    assert used["thread_pool"] | {"why_not": None} == used["thread_pool"]
    assert (used["thread_pool"]["of"], used["thread_pool"]["pool"]) == (5, "thread_pool")
    assert used["thread_pool"]["utilisation"] == pytest.approx(1.5 / 5, rel=0.02)
    assert used["cpu"]["mean"] == pytest.approx(0.4, rel=0.02)
    assert used["cpu"]["utilisation"] is None
    assert used["batches"]["mean"] == 8
    part = answer(tmp_path / "store", "--route", "/predict")["utilisation"]["cpu"]
    assert part["why_not"] == "it is of a whole process, and only some of its requests are selected"


def test_requests_that_end_before_they_begin_are_counted_apart(tmp_path: Path) -> None:
    requests = [
        Made(number, NOON + number * 10**8, duration_ms=-5.0 if number % 4 == 0 else 10.0) for number in range(1, 101)
    ]
    found = answer(store(tmp_path / "store", requests))
    assert (found["requests"], found["reversed"]) == (75, 25)
    assert found["in_flight"] > 0
    shown = printed("capacity", "--long", "--store", tmp_path / "store", *EVER)
    assert "25 requests of shop end before they begin" in shown


def test_a_part_of_the_requests_shares_the_capacity(loaded: Path) -> None:
    shown = printed("capacity", "--long", "--store", loaded, *EVER, "--route", "/predict", code=1)
    assert "Only requests of route /predict are counted; others of the service share its capacity with them." in shown


@pytest.mark.parametrize("form", ["keda", "hpa"])
def test_manifests_are_what_the_schemas_ask_for(form: str, loaded: Path) -> None:
    """Required fields and types of KEDA's CRD (keda.sh/v1alpha1) and of autoscaling/v2."""
    command = ("capacity", "--store", loaded, *EVER, "--format", form, "--objective", "p99:1s")
    found = yaml.safe_load(printed(*command))
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", found["metadata"]["name"])
    spec = found["spec"]
    if form == "keda":
        assert (found["apiVersion"], found["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
        assert isinstance(spec["scaleTargetRef"]["name"], str)
        assert 0 < spec["minReplicaCount"] <= spec["maxReplicaCount"]
        (trigger,) = spec["triggers"]
        assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert {"serverAddress", "query", "threshold"} <= trigger["metadata"].keys()
        target = float(trigger["metadata"]["threshold"])
        assert trigger["metadata"]["query"] == f'sum(rate({METRIC}{{job="shop"}}[1m]))'
    else:
        assert (found["apiVersion"], found["kind"]) == ("autoscaling/v2", "HorizontalPodAutoscaler")
        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"}
        assert 0 < spec["minReplicas"] <= spec["maxReplicas"]
        (metric,) = spec["metrics"]
        assert metric["type"] == "External"
        assert metric["external"]["metric"]["name"]
        assert metric["external"]["target"]["type"] == "AverageValue"
        assert re.fullmatch(r"\d+m", metric["external"]["target"]["averageValue"])
        target = int(metric["external"]["target"]["averageValue"][:-1]) / 1000
    assert target == pytest.approx(answer(loaded, "--objective", "p99:1s", code=None)["target"]["in_flight"], rel=1e-3)
    assert 2 < target < 4


def test_the_metric_is_what_the_service_s_exporter_calls_it() -> None:
    """By OpenTelemetry's own exporter for Prometheus; its rate is the requests in flight."""
    provider = MeterProvider(metric_readers=[PrometheusMetricReader()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opentelemetry.metrics.get_meter", provider.get_meter)
        counted = HttpMetrics()
    attributes = {"http.request.method": "POST", "url.scheme": "http"}
    for _ in range(4):
        counted.begin(attributes)
        counted.end(attributes, 0.25, None)
    exported = generate_latest().decode()
    provider.shutdown()
    (line,) = (line for line in exported.splitlines() if line.startswith(f"{METRIC}{{"))
    assert float(line.rpartition(" ")[2]) == pytest.approx(1.0)


def test_no_manifest_without_a_target(idle: Path) -> None:
    command = ("capacity", "--store", idle, *EVER, "--format")
    assert "no target for an autoscaler of svc-1" in refused(*command, "keda", "--service", "svc-1")
    assert "svc-0, svc-1\ngive --service NAME" in refused(*command, "hpa")


def test_a_service_of_rpcs_is_in_no_metric(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", made(queue(4, STEPS, 2, constant), attributes={"http.request.method": None}))
    assert "serves no HTTP" in refused("capacity", "--store", folder, *EVER, "--format", "keda")


def test_objectives_and_names() -> None:
    assert objective("p99.9:1.5s")[:2] == (0.999, 1500.0)
    assert objective("p95:250us")[:2] == (0.95, 0.25)
    labels = {"Shop_API": "shop-api", "a" * 99: "a" * 53, "-": "service", 'svc\n"x': "svc-x"}
    assert {name: label(name) for name in labels} == labels


def test_a_name_of_a_service_cannot_become_yaml(tmp_path: Path) -> None:
    name = 'a"\n  b: {c}\n# "'
    folder = store(tmp_path / "store", made(queue(4, STEPS, 2, constant), service=name))
    command = ("capacity", "--store", folder, *EVER, "--format", "keda", "--objective", "p90:9s")
    found = yaml.safe_load(printed(*command))
    assert list(found) == ["apiVersion", "kind", "metadata", "spec"]
    assert found["spec"]["triggers"][0]["metadata"]["query"] == f"sum(rate({METRIC}{{job={json.dumps(name)}}}[1m]))"


def test_each_number_is_finite_or_null(loaded: Path) -> None:
    assert finite(answer(loaded, code=None))
