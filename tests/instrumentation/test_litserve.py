"""LitServe, unmodified, with its worker processes: stages that happened there, batches, and what goes wrong."""

from __future__ import annotations

import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from heavy import HEAVY
from parts import parts
from servers import run_litserve
from services import new_trace
from sink import Request, Sink, assert_tiled, run_sink
from trees import assert_true, at_its_best, batch_of, events_of, line_of, tree, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services import Service

pytestmark = pytest.mark.usefixtures("services")

RANDOMISED = 1_000 if HEAVY else 300
# LitServe's own dependency that lets all in runs in a thread; then comes the worker.
BEFORE = ["preprocess", "network.receive", "preprocess", "queue (thread_pool)", "preprocess"]
WORK = ["queue (worker)", ("preprocess", ["parse"]), ("inference", ["forward"]), "postprocess"]
TREES: dict[str, Any] = {
    "single": ("POST /single", [*BEFORE, *WORK, "network.send"]),
    "async": ("POST /async", [*BEFORE, "queue (worker)", *WORK, "network.send"]),
    "streaming": (
        "POST /streaming",
        [
            *BEFORE,
            *("queue (worker)", ("preprocess", ["parse"]), ("inference", ["token", "token", "token"])),
            *("postprocess", "network.send"),
        ],
    ),
    "batched": (
        "POST /batched",
        [
            *BEFORE,
            *("queue (worker)", "queue (batch)", ("preprocess", ["parse"]), "inference", "postprocess"),
            "network.send",
        ],
    ),
}
MODELS: dict[str, dict[str, Any]] = {
    "single": {"ml.model.name": "Guess", "ml.framework": "sklearn", "ml.batch.size": 1},
    "async": {"ml.model.name": "Guess", "ml.framework": "sklearn", "ml.batch.size": 1},
    "streaming": {"ml.model.name": "Streaming"},
}


def environment(sink: Sink, **more: str) -> dict[str, str]:
    return sink.environment(
        STAGETRACE_SLA="* within 300ms", OTEL_PYTHON_FASTAPI_EXCLUDED_URLS="/health,/break,/mend", **more
    )


@pytest.fixture(scope="module")
def service(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """All kinds of API in one server, the plain one with two workers."""
    with run_litserve(
        tmp_path_factory.mktemp("litserve"), "single:2+batched:1+streaming:1+async:1", environment(sink)
    ) as running:
        yield running


def truth_of(response: httpx.Response) -> dict[str, Any]:
    """Return what the app reports of a request; of a stream, what it reported last."""
    truth: dict[str, Any] = json.JSONDecoder().raw_decode(response.text[response.text.rindex('{"worker"') :])[0]
    return truth


def stage_of(request: Request, name: str, *, last: bool = True) -> Any:
    return [stage for stage in request.stages if stage.name == name][-1 if last else 0]


@pytest.mark.parametrize("kind", ["single", "async", "streaming"])
def test_stages_in_a_worker_belong_to_the_request(service: Service, sink: Sink, kind: str) -> None:
    children = ["parse", *(["token"] * 3 if kind == "streaming" else ["forward"])]
    seen: list[tuple[Request, dict[str, Any]]] = []

    def look() -> Any:
        trace_id, response = service.call("POST", f"/{kind}", json={})
        assert response.status_code == 200
        seen.append((whole(sink, trace_id, *children), truth_of(response)))
        assert_tiled(seen[-1][0])
        return tree(seen[-1][0])

    for _ in range(4):
        assert at_its_best(look, TREES[kind]) == TREES[kind]
    decoded, inferred, encoded = [], [], []
    for request, truth in seen:
        assert {key: request.entry.attributes.get(key) for key in MODELS[kind]} == MODELS[kind]
        assert {key: stage_of(request, "inference").attributes.get(key) for key in MODELS[kind]} == MODELS[kind]
        decoded.append((stage_of(request, "preprocess"), truth["decode"]))
        inferred.append((stage_of(request, "inference"), truth["predict"]))
        if "encode" in truth:
            after = [one for one in request.stages if one.name == "postprocess" and one.start >= truth["predict"][1]]
            encoded.append((after[0], truth["encode"]))
    assert_true(decoded)
    assert_true(inferred)
    if encoded:
        assert_true(encoded)


def test_a_request_waits_for_a_worker(service: Service, sink: Sink) -> None:
    """Of three at once on two workers one waits, until the worker is free that then serves it."""

    def look() -> Any:
        calls = service.call_at_once("/single", [{}] * 3)
        truths = [truth_of(response) for _, response in calls]
        assert len({truth["worker"] for truth in truths}) == 2
        (trace_id, _), truth = max(zip(calls, truths, strict=True), key=lambda one: one[1]["decode"][0])
        before = max(one["encode"][1] for one in truths if one["worker"] == truth["worker"] and one is not truth)
        request = sink.request(trace_id)
        (waited,) = [stage for stage in request.stages if stage.attributes.get("queue.reason") == "worker"]
        assert before <= waited.end <= truth["decode"][0]
        return request.entry.attributes["sla.breach.stage"]

    assert at_its_best(look, "queue") == "queue"  # a pause can make the inference longer than the wait


def test_a_batch_is_one_inference(service: Service, sink: Sink) -> None:
    calls = service.call_at_once("/batched", [{}] * 3)
    batches, inferred = {}, []
    for trace_id, response in calls:
        request, truth = whole(sink, trace_id, "parse"), truth_of(response)
        assert_tiled(request)
        assert tree(request) == TREES["batched"]
        batch, under = batch_of(request, sink)
        assert [span.name for span in under] == ["forward"]
        assert under[0].parent_id == batch.span_id
        assert batch.attributes == {"ml.model.name": "Batched", "ml.batch.size": truth["size"]}
        assert request.entry.attributes["ml.batch.size"] == truth["size"]
        batches[batch.span_id] = truth["size"]
        inferred.append((stage_of(request, "inference"), truth["predict"]))
        wait = next(stage for stage in request.stages if stage.attributes.get("queue.reason") == "batch")
        assert wait.end <= truth["decode"][0]
    assert sum(batches.values()) == 3
    assert_true(inferred)


@pytest.mark.parametrize("kind", ["single", "batched", "streaming", "async"])
@pytest.mark.parametrize(("raises", "status"), [("http", 418), ("error", 500)])
def test_an_error_in_a_worker_belongs_to_the_request(
    service: Service, sink: Sink, kind: str, raises: str, status: int
) -> None:
    request, response = sink.traced(service, "POST", f"/{kind}", json={"factor": 0.1, "raise": raises})
    assert response.status_code == (200 if kind == "streaming" else status)  # a stream has begun by then
    assert request.entry.attributes["http.response.status_code"] == response.status_code
    assert request.total_ns("inference") < 1e8
    assert request.total_ns("preprocess") > 1e7
    assert "ml.worker.lost" not in request.entry.attributes


@pytest.mark.parametrize("kind", ["single", "async", "batched", "streaming"])
def test_a_breach_is_at_the_line_of_its_worker(service: Service, sink: Sink, kind: str) -> None:
    """Its entry span is of the process that serves HTTP, which only waited."""
    line = line_of("litserve_app.py", "misbehave", 'asked["stall"])')
    bodies = [{"factor": 0.1, "stall": 0.6}, *([{"factor": 0.1}] * 2 if kind == "batched" else [])]
    calls = service.call_at_once(f"/{kind}", bodies)
    assert [response.status_code for _, response in calls] == [200] * len(bodies)
    requests = [sink.request(trace_id) for trace_id, _ in calls]
    stalled = [one.entry for one in requests if one.total_ns("inference") > 5e8]  # those in one batch
    assert stalled
    for entry in stalled:
        assert entry.attributes["sla.breach.stage"] == "inference"
        assert entry.attributes["sla.breach.code"] == line
        assert f"at {line}" in entry.attributes["sla.breach.evidence"]
        stalls = events_of(sink, entry)["stall"]
        assert any(one["code.stacktrace"].endswith("in misbehave") for one in stalls)


def give_up(service: Service, path: str, body: Any) -> str:
    """Make a request whose client does not wait for the response; return its trace id."""
    trace_id, headers = new_trace()
    with pytest.raises(httpx.ReadTimeout):
        service.client.request("POST", path, json=body, headers=headers, timeout=0.05)
    return trace_id


@pytest.mark.parametrize("kind", ["single", "batched", "streaming", "async"])
def test_what_a_worker_computes_and_waits_for_a_cpu_is_the_cause(service: Service, sink: Sink, kind: str) -> None:
    """Which of both takes longer is the machine's, and the first call may be a cold start; it does not wait for I/O."""
    trace_id, response = service.call("POST", f"/{kind}", json={"compute": 0.5, "factor": 0.1})
    assert response.status_code == 200
    entry = sink.request(trace_id).entry.attributes
    assert entry["sla.breach.stage"] == "inference", entry["sla.breach.evidence"]
    assert entry["sla.breach.cause"] not in ("io_wait", "unknown"), entry["sla.breach.evidence"]
    assert entry["sla.breach.part.compute_ms"] >= 490


@pytest.mark.heavier(f"{RANDOMISED:,} requests")
def test_each_request_has_one_tiled_entry_span_with_its_verdict(service: Service, sink: Sink) -> None:
    """In whatever order it comes: responses, streams, errors, clients that disconnect; and batches are linked."""
    rng = random.Random(6)
    asked = []
    for _ in range(RANDOMISED):
        kind = rng.choice(["single", "single", "batched", "batched", "streaming", "async"])
        body: dict[str, Any] = {"factor": rng.uniform(0.01, 0.08)}
        if rng.random() < 0.1:
            body["raise"] = rng.choice(["http", "error"])
        asked.append((f"/{kind}", body))

    def one(call: tuple[str, Any]) -> tuple[str, httpx.Response | None]:
        if rng.random() < 0.03:
            return give_up(service, call[0], {"factor": 1}), None
        return service.call("POST", call[0], json=call[1])

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(one, asked))
    for (path, body), answer in zip(asked, answers, strict=True):
        trace_id, response = answer
        request = sink.tiled(trace_id)
        took = request.entry.end - request.entry.start
        gone = "stagetrace.network.disconnect" in request.entry.attributes
        verdict = "breach" if took > 300_000_000 else "excluded" if gone else "good"
        assert request.entry.attributes["sla.verdict"] == verdict
        assert gone is (response is None)
        if response is None:
            continue
        assert request.entry.attributes["http.response.status_code"] == response.status_code
        if response.status_code != 200 or "raise" in body:
            continue
        truth, inference = truth_of(response), stage_of(request, "inference")
        assert inference.start <= truth["predict"][0]
        assert inference.end >= truth["predict"][1]
        if path == "/batched":
            assert batch_of(request, sink)[0].attributes["ml.batch.size"] == truth["size"]


HERE = parts("""
    request.remote_stages: hand_on_reference hand_on
    request.remote_stages: _add_stages _note _context _RemoteWork.note RemoteStages.add RemoteStages.add_report
    request.remote_stages: RemoteStages.conclude RemoteStages.read_reports
    request.remote_socket: Listener.read Listener._read
    request.request: Request.visit Mark
""")
THERE = parts("""
    request.worker: Work.__init__ Work.report_begin Work.finish Batch.__init__ Batch.finish Batch._send _come_in
    request.worker: stage_report report_stages at_work Part.watch Part.unwatch
    request.remote_stages: read_reference
    request.remote_socket: send Line.send
    request.in_flight: InFlight.begin_part
    request.remote_stages: hand_on _add_stages
    stagetrace_contrib.litserve: Worker._start_batch split
""")


def shape(response: httpx.Response) -> tuple[int, Any]:
    """Return a response without what differs each time."""
    if response.status_code == 200:
        return 200, sorted(truth_of(response))
    return response.status_code, response.json()


def test_injected_faults_change_no_response(service: Service, sink: Sink) -> None:
    bodies = [{"factor": 0.01}, {"factor": 0.01, "raise": "http"}, {"factor": 0.01, "raise": "error"}]
    every = ("/batched", "/streaming", "/async")  # of one worker each

    def answers(paths: tuple[str, ...]) -> dict[str, list[tuple[int, Any]]]:
        return {
            path: [shape(service.client.post(path, json=body)) for body in bodies[: 1 if path == "/streaming" else 3]]
            for path in paths
        }

    def there(paths: tuple[str, ...], order: dict[str, Any]) -> None:
        for path in paths:
            service.client.post(path, json={"factor": 0, **order})

    expected = answers(every)
    for number, part in enumerate((*HERE, *THERE)):
        paths = (every[0], every[1 + number % 2])  # each fails in a batch, and in one of the others in turn
        said = service.log.count("injected fault")
        if part in HERE:
            service.client.get(f"/break/{part}")
        else:
            there(paths, {"break": part})
        assert answers(paths) == {path: expected[path] for path in paths}, part
        assert service.log.count("injected fault") > said, part
        service.client.get("/mend")
        if part in THERE:
            there(paths, {"mend": True})
    assert answers(every) == expected
    trace_id, _ = service.call("POST", "/async", json={"factor": 0.1})
    assert stage_of(sink.request(trace_id), "inference")


def test_a_request_that_times_out_and_one_whose_worker_dies(tmp_path: Path) -> None:
    """A 504 was all `queue`; a request whose worker died says so; the next one serves on, and delivers as it ends.

    Here over ZeroMQ, and with HTTP in threads: only there does LitServe respond for a worker that died.
    """
    with (
        run_sink() as sink,
        run_litserve(
            tmp_path, "single:1 zmq restart threads", environment(sink, TIMEOUT="0.5", OTEL_BSP_SCHEDULE_DELAY="3000")
        ) as service,
    ):
        calls = service.call_at_once("/single", [{"factor": 3}] * 2)
        assert sorted(response.status_code for _, response in calls) == [200, 504]
        (late,) = [sink.request(trace_id) for trace_id, response in calls if response.status_code == 504]
        assert_tiled(late)
        assert late.entry.attributes["error.type"] == "504"
        assert late.entry.attributes["sla.breach.stage"] == "queue"
        assert late.total_ns("queue") > 0.9 * (late.entry.end - late.entry.start)

        trace_id, response = service.call("POST", "/single", json={"factor": 0.1, "exit": 0.6})
        lost = sink.request(trace_id)
        assert response.status_code == 500
        assert_tiled(lost)
        assert lost.entry.attributes["sla.breach.code"] == line_of("litserve_app.py", "misbehave", 'asked["exit"])')
        assert lost.entry.attributes["ml.worker.lost"] is True
        assert "inference" in lost.names  # until LitServe saw it, up to seconds later

        deadline = time.monotonic() + 60  # the next worker has to start, and what waits for it half a second gets 504
        while response.status_code != 200:
            assert time.monotonic() < deadline
            trace_id, response = service.call("POST", "/single", json={"factor": 0.1})
        service.process.send_signal(signal.SIGINT)  # LitServe ends its workers by SIGTERM, and with threads never ends
        request = whole(sink, trace_id, "forward", "parse")
        assert stage_of(request, "inference")
        assert sorted(span.name for span in request.others) == ["forward", "parse"]


def test_workers_without_stagetrace_respond_as_untraced(tmp_path: Path) -> None:
    """Nothing is known of what they do, and nothing is made up."""
    with run_sink() as sink, run_litserve(tmp_path, "single:1 untraced", environment(sink)) as service:
        for path in ("/single", "/single"):
            trace_id, response = service.call("POST", path, json={"factor": 0.1})
            assert response.status_code == 200
            assert truth_of(response)["encode"]
            request = sink.tiled(trace_id)
            assert request.names[-2:] == ["handler", "network.send"]
            assert "inference" not in request.names


@pytest.mark.thorough
def test_all_is_delivered_soon_since_the_main_process_may_end_a_container(sink: Sink, tmp_path: Path) -> None:
    env = environment(sink, OTEL_BSP_SCHEDULE_DELAY="600000")
    with run_litserve(tmp_path, "batched:1", env) as service:
        trace_id, response = service.call("POST", "/batched", json={"factor": 3})
        assert response.status_code == 200
        batch_of(sink.tiled(trace_id), sink)  # while all of its processes run
