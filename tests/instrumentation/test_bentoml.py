"""BentoML, unmodified: two services, their worker processes and adaptive batching, beside its own private provider."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from environments import interpreter_with
from services import Service, run_service
from sink import CLIENT, SERVER, Received, Sink, assert_tiled, request_of
from trees import batch_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import httpx

pytestmark = [
    *(pytest.mark.usefixtures("services"), pytest.mark.heavy),
    pytest.mark.xdist_group("bentoml"),
]

NEEDS = ("bentoml", "numpy", "scikit-learn")
READY_WITHIN_S = 180
ROW = {"row": {"a": 1.5}}
# The responses of the service, in the order in which it is asked: path, body and status.
CASES: list[tuple[str, Any, int]] = [
    ("/plain", ROW, 200),
    ("/in_loop", ROW, 200),
    ("/table", {"rows": [[1, 2], [3, 4]]}, 200),
    ("/plain", {"row": {"a": "none"}}, 400),
    ("/plain", {}, 400),
    ("/fails", ROW, 500),
    ("/refuses", ROW, 400),
    ("/tokens", {"count": 3}, 200),
    ("/tokens_in_loop", {"count": 3}, 200),
    ("/ask", {"a": 2}, 200),
    ("/ask_in_loop", {"a": 2}, 200),
    ("/together", {"rows": [1]}, 200),
    ("/together_in_loop", {"rows": [1]}, 200),
    ("/parts", {"rows": [1, 2, 3]}, 200),
    ("/fails_together", {"rows": [1]}, 500),
    ("/nowhere", {}, 404),
]
PAGES = ("/healthz", "/livez", "/readyz", "/schema.json", "/docs.json", "/nowhere")
# Those of one line fail together.
PARTS = [
    "stagetrace_contrib.bentoml:Wait.__init__,stagetrace.patches.opentelemetry:StandIn",
    "stagetrace_contrib.bentoml:Method.__new__,stagetrace.request.worker:Batch.__init__",
    "stagetrace.request.worker:at_work,stagetrace.patches.opentelemetry:is_silent",
    "stagetrace.request.worker:Batch.finish,stagetrace.request.remote_stages:RemoteStages.conclude",
]


class Both(NamedTuple):
    """The services, twice."""

    traced: Service
    untraced: Service


@contextmanager
def serving(folder: Path, env: Mapping[str, str]) -> Iterator[Service]:
    """Run both services; each `bentoml serve` has its own home."""
    argv = [interpreter_with(NEEDS), "-m", "bentoml", "serve", "bentoml_services:Front", "--port", "{port}"]
    env = {"BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "True", **env}
    with run_service(folder, argv=argv, env=env, ready="/readyz", within_s=READY_WITHIN_S) as service:
        yield service


def environment(sink: Sink, **more: str) -> dict[str, str]:
    return sink.environment(STAGETRACE_SLA="POST /* within 60s", **more)


@pytest.fixture(scope="module")
def both(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with (
        serving(tmp_path_factory.mktemp("traced"), environment(sink)) as traced,
        serving(tmp_path_factory.mktemp("untraced"), {}) as untraced,
    ):
        yield Both(traced, untraced)
        assert "fault of stagetrace" not in traced.log


def answer(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """Return what must be the same; of an id that it is there, and as long."""
    headers = dict(response.headers)
    headers.pop("date", None)
    for name in ("x-bentoml-request-id", "x-bentoml-trace-id"):
        if name in headers:
            headers[name] = re.sub(r"\w", "x", headers[name])
    return response.status_code, response.content, headers


def entry_of(sink: Sink, trace_id: str, path: str) -> Received:
    """Return the entry span of the service that was asked from outside."""

    def found(spans: list[Received]) -> list[Received]:
        mine = [span for span in spans if span.trace_id == trace_id and span.kind == SERVER]
        return [span for span in mine if span.attributes.get("url.path") == path]

    (entry,) = found(sink.wait_for(lambda spans: bool(found(spans))))
    return entry


def under(sink: Sink, entry: Received) -> Any:
    """Return an entry span with its stages, without what other services have in this trace."""
    sink.wait_for(lambda spans: any(span.parent_id == entry.span_id for span in spans))
    return request_of([one for one in sink.spans if one is entry or one.parent_id == entry.span_id])


def test_responses_are_the_untraced_ones_and_each_request_is_recorded(both: Both, sink: Sink) -> None:
    for path, body, status in CASES:
        trace_id, response = both.traced.call("POST", path, json=body)
        assert answer(response) == answer(both.untraced.call("POST", path, json=body)[1])
        assert response.status_code == status
        entry = entry_of(sink, trace_id, path)
        request = under(sink, entry)
        assert_tiled(request)
        assert entry.attributes["http.response.status_code"] == status
        assert entry.attributes.get("http.route") == (path if status != 404 else None)
        assert entry.attributes.get("sla.verdict") == (
            "good" if status != 404 else None
        )  # which the rule does not match
    for path in PAGES:
        pages = [service.client.get(path) for service in both]
        assert answer(pages[0]) == answer(pages[1])


def test_its_metrics_are_the_untraced_ones(both: Both) -> None:
    """By name, labels and count, of all workers together; times differ."""
    times = ("_sum", "_bucket", "_created", "_timestamp_seconds")

    def counts(service: Service) -> dict[str, float]:
        found: dict[str, float] = {}
        for line in service.client.get("/metrics").text.splitlines():
            if line.startswith("bentoml_"):
                name, value = line.rsplit(" ", 1)
                name = re.sub(r"\d{4,}|(?<=worker_index=\")\d", "n", name)
                found[name] = found.get(name, 0) + (0 if name.split("{")[0].endswith(times) else float(value))
        return found

    for service in both:
        for path, body, _ in CASES:
            service.call("POST", path, json=body)
    assert counts(both.traced) == counts(both.untraced)


@pytest.mark.parametrize("path", ["/together", "/together_in_loop"])
def test_a_batch_is_one_inference_of_all_that_are_in_it(path: str, both: Both, sink: Sink) -> None:
    batches: dict[str, int] = {}
    for trace_id, response in both.traced.call_at_once(path, [{"rows": [1]}] * 6):
        request = under(sink, entry_of(sink, trace_id, path))
        assert_tiled(request)
        batch, inside = batch_of(request, sink)
        assert [span.parent_id for span in inside if span.name == "forward"] == [batch.span_id]
        assert response.json() == [batch.attributes["ml.batch.size"]]
        assert batch.attributes["ml.model.name"] == request.entry.attributes["ml.model.name"] == "Front"
        batches[batch.span_id] = batch.attributes["ml.batch.size"]
        (wait,) = [stage for stage in request.stages if stage.attributes.get("queue.reason") == "batch"]
        (inference,) = [stage for stage in request.stages if stage.name == "inference"]
        assert wait.end <= inference.start
    assert sum(batches.values()) == 6
    assert max(batches.values()) > 1


def test_a_request_that_is_divided_has_both_batches(both: Both, sink: Sink) -> None:
    calls = both.traced.call_at_once("/parts", [{"rows": [1, 2, 3]}] * 6)
    inferences = []
    for trace_id, response in calls:
        assert response.json() == [2, 4, 6]
        request = under(sink, entry_of(sink, trace_id, "/parts"))
        assert_tiled(request)
        inferences.append(request.names.count("inference"))
    assert set(inferences) == {1, 2}


def test_a_request_that_waits_in_vain_has_waited_for_a_batch(both: Both, sink: Sink) -> None:
    calls = both.traced.call_at_once("/overloaded", [{"rows": [1]}] * 8)
    statuses = {response.status_code for _, response in calls}
    assert statuses == {200, 503}
    for trace_id, response in calls:
        request = under(sink, entry_of(sink, trace_id, "/overloaded"))
        assert_tiled(request)
        assert ("inference" in request.names) is (response.status_code == 200)
        if response.status_code == 503:
            (wait,) = [stage for stage in request.stages if stage.attributes.get("queue.reason") == "batch"]
            assert wait.end - wait.start > 50_000_000


@pytest.mark.parametrize(
    ("path", "asked", "model"), [("/ask", "/predict", "LinearRegression"), ("/ask_in_loop", "/together", None)]
)
def test_a_called_service_is_below_the_stage_of_the_caller(
    path: str, asked: str, model: str | None, both: Both, sink: Sink
) -> None:
    trace_id, _ = both.traced.call("POST", path, json={"a": 2})
    first, second = (entry_of(sink, trace_id, one) for one in (path, asked))
    for entry in (first, second):
        assert_tiled(under(sink, entry))
    (call,) = [span for span in sink.spans if span.span_id == second.parent_id]
    assert call.kind == CLIENT
    assert call.parent_id in {stage.span_id for stage in under(sink, first).stages}
    (inference,) = [stage for stage in under(sink, second).stages if stage.name == "inference"]
    assert inference.attributes["ml.model.name"] == model or inference.attributes["ml.batch.size"] == 1


def test_all_is_delivered_as_the_services_end(sink: Sink, tmp_path: Path) -> None:
    with serving(tmp_path, environment(sink, OTEL_BSP_SCHEDULE_DELAY="60000")) as service:
        calls = [service.call("POST", "/ask", json={"a": 2})[0] for _ in range(8)]
        assert service.stop() == 0
        for trace_id in calls:
            for path in ("/ask", "/predict"):
                assert_tiled(under(sink, entry_of(sink, trace_id, path)))
        assert service.log.count("stagetrace: 0.1.0 recording in process") == 3  # the one, and two workers of the other
        assert "judged 8 requests, 0 missed their objective" in service.log


@pytest.mark.parametrize("parts", PARTS)
def test_injected_faults_change_no_response(parts: str, both: Both, sink: Sink, tmp_path: Path) -> None:
    with serving(tmp_path, environment(sink, BREAK=parts)) as service:
        for path, body, _ in CASES:
            untraced = answer(both.untraced.call("POST", path, json=body)[1])
            assert answer(service.call("POST", path, json=body)[1]) == untraced
        assert "injected fault" in service.log
