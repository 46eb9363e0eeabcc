"""Seldon's MLServer, unmodified: REST and gRPC, its parallel workers, its adaptive batching."""

from __future__ import annotations

import json
import random
import secrets
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest

from heavy import HEAVY
from parts import parts
from servers import run_mlserver
from services import new_trace
from sink import Request, Sink, assert_tiled
from trees import assert_true, batch_of, line_of, tree, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services import Service

pytestmark = pytest.mark.usefixtures("services")

MODELS: dict[str, dict[str, object]] = {
    "flowers": {"implementation": "mlserver_runtimes.Flowers"},
    "batched": {
        "implementation": "mlserver_runtimes.Flowers",
        "max_batch_size": 4,
        "max_batch_time": 0.1,
    },
    "annotated": {"implementation": "mlserver_runtimes.Annotated"},
    "tokens": {"implementation": "mlserver_runtimes.Tokens"},
}
ROUTE = "POST /v2/models/{model_name}/infer"
INFER = "inference.GRPCInferenceService/ModelInfer"
REST = ["preprocess", "network.receive", "preprocess"]
END = [("inference", ["forward"]), "postprocess", "network.send"]
TREES = {
    "here": (ROUTE, [*REST, *END]),
    "there": (ROUTE, [*REST, "queue (worker)", "preprocess", *END]),
    "here, grpc": (INFER, ["network.receive", "preprocess", *END]),
    "there, grpc": (INFER, ["network.receive", "preprocess", "queue (worker)", "preprocess", *END]),
    "here, batched": (ROUTE, [*REST, "queue (batch)", "preprocess", "inference", *END[1:]]),
    "there, batched": (
        ROUTE,
        [*REST, "queue (batch)", "preprocess", "queue (worker)", "preprocess", "inference", *END[1:]],
    ),
}
RANDOMISED = 1_000 if HEAVY else 150
COMPUTE = 6  # an order to compute for 400 ms
OUTLASTING: list[list[float]] = [[0.5, 4]]  # a client that goes after 50 ms may be kept by its machine from going then
WORKERS = {"here": 0, "there": 2}
TIMELINE = """
    request.request: Request.begin_tentative Request.cancel_tentative Request.end_tentative
    request.request: Request._confirm_tentative
"""
PARTS = {
    "here": parts(
        TIMELINE
        + """
    request.remote_stages: hand_on find
    request.worker: Batch.__init__ Batch.finish at_work
    """
    ),
    "there": parts(
        TIMELINE
        + """
    request.worker: Work.__init__ Work.finish Work.report_begin stage_report report_stages at_work
    request.remote_stages: read_reference
    """
    ),
}


@pytest.fixture(scope="module", params=["here", "there"])
def server(
    sink: Sink, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Service, int]]:
    """MLServer with the models in its own process, and in two workers."""
    where = request.param
    env = {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": "* within 300ms",
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
        "PARTS": " ".join(PARTS[where]),
        "MLSERVER_GZIP_ENABLED": "false",  # with it there are no streams
        "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS": "/v2/health,/metrics",
    }
    with run_mlserver(tmp_path_factory.mktemp(where), MODELS, WORKERS[where], env) as (service, port):
        yield where, service, port


def rest(
    service: Service,
    model: str,
    rows: list[list[float]],
    how: str = "infer",
    headers: dict[str, str] | None = None,
    **kwargs: Any,
) -> tuple[str, httpx.Response]:
    # httpcore may take a connection that another thread has done with, though none is to be kept; after an exception
    # uvicorn closes it.
    headers = {"connection": "close", **(headers or {})}
    data = [value for row in rows for value in row]
    body = {"inputs": [{"name": "rows", "shape": [len(rows), 2], "datatype": "FP64", "data": data}]}
    return service.call("POST", f"/v2/models/{model}/{how}", json=body, headers=headers, **kwargs)


def truth_of(response: httpx.Response) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads(response.json()["outputs"][0]["data"][0])
    return truth


def stage_of(request: Request, name: str) -> Any:
    return [stage for stage in request.stages if stage.name == name][-1]


def assert_as_told(calls: list[tuple[Request, dict[str, Any]]]) -> None:
    """Check decoding, inference and encoding of requests against what the model says."""
    decoded, inferred, encoded = [], [], []
    for request, truth in calls:
        assert_tiled(request)
        names = [one.name for one in request.stages]
        at = names.index("inference")
        assert names[at - 1] == "preprocess"
        assert names[at + 1] == "postprocess"
        decoded.append((request.stages[at - 1], truth["decode"]))
        inferred.append((request.stages[at], truth["predict"]))
        encoded.append((request.stages[at + 1], truth["encode"]))
    for truths in (decoded, inferred, encoded):
        assert_true(truths)


def test_stages_of_a_model(server: tuple[str, Service, int], sink: Sink) -> None:
    where, service, _ = server
    calls = []
    for _ in range(4):
        trace_id, response = rest(service, "flowers", [[1, 0], [1, 0]])
        assert response.status_code == 200
        request = whole(sink, trace_id, "forward")
        assert tree(request) == TREES[where]
        known = {
            "ml.model.name": "flowers",
            "ml.model.version": "v7",
            "ml.framework": "sklearn",
            "ml.batch.size": 2,
        }
        assert {key: request.entry.attributes.get(key) for key in known} == known
        assert {key: stage_of(request, "inference").attributes.get(key) for key in known} == known
        calls.append((request, truth_of(response)))
    assert_as_told(calls)


@pytest.mark.parametrize("model", ["flowers", "batched"])
def test_a_breach_is_at_the_line_of_its_worker(server: tuple[str, Service, int], sink: Sink, model: str) -> None:
    """Or of the batch: the request itself only waits for either."""
    _, service, _ = server
    trace_id, response = rest(service, model, [[0.1, 5]])
    assert response.status_code == 200
    attributes = sink.request(trace_id).entry.attributes
    assert attributes["sla.breach.stage"] == "inference"
    assert attributes.get("sla.breach.code") == line_of("mlserver_runtimes.py", "misbehave", "(STALL_S)"), attributes


@pytest.mark.parametrize("model", ["flowers", "batched"])
def test_what_a_worker_computes_and_waits_for_a_cpu_is_the_cause(
    server: tuple[str, Service, int], sink: Sink, model: str
) -> None:
    """Which of both takes longer is the machine's, and the first call may be a cold start; it does not wait for I/O."""
    _, service, _ = server
    trace_id, response = rest(service, model, [[0.1, COMPUTE]])
    assert response.status_code == 200
    attributes = sink.request(trace_id).entry.attributes
    assert attributes["sla.breach.stage"] == "inference", attributes["sla.breach.evidence"]
    assert attributes["sla.breach.cause"] not in ("io_wait", "unknown"), attributes["sla.breach.evidence"]
    assert attributes["sla.breach.part.compute_ms"] >= 390


def test_a_model_that_mlserver_decodes_for(server: tuple[str, Service, int], sink: Sink) -> None:
    _, service, _ = server
    inferred = []
    for _ in range(3):
        trace_id, response = rest(service, "annotated", [[1, 0]])
        request = sink.tiled(trace_id)
        inferred.append((stage_of(request, "inference"), response.json()["outputs"][0]["data"]))
        assert request.names.count("inference") == 1
    assert_true(inferred)


def test_a_stream_of_responses_is_one_inference(server: tuple[str, Service, int], sink: Sink) -> None:
    where, service, _ = server
    if where == "there":
        pytest.skip("MLServer streams from its own process alone")
    trace_id, response = rest(service, "tokens", [[1, 0]], how="infer_stream")
    assert response.status_code == 200
    last = json.loads(response.text.strip().rpartition("data: ")[2])
    request = whole(sink, trace_id, "token", "token", "token")
    assert_tiled(request)
    (inference,) = [stage for stage in request.stages if stage.name == "inference"]
    assert [span.name for span in request.others if span.parent_id == inference.span_id] == ["token"] * 3
    assert_true([(inference, last["outputs"][0]["data"])])


def call_rpc(port: int, rows: list[list[float]], trace_id: str = "", timeout: float = 60) -> tuple[bytes, str]:
    """Ask the model over gRPC, in a trace of its own; return the response and the trace id.

    The message is written by hand: MLServer's own module for it wants a protobuf that our environment has not.
    """
    trace_id = trace_id or secrets.token_hex(16)
    values = b"".join(struct.pack("<d", value) for row in rows for value in row)
    contents = field(7, values)  # InferTensorContents.fp64_contents
    tensor = field(1, b"rows") + field(2, b"FP64") + field(3, bytes((len(rows), 2))) + field(5, contents)
    message = field(1, b"flowers") + field(5, tensor)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary(f"/{INFER}", request_serializer=bytes, response_deserializer=bytes)
        return infer(message, metadata=(("traceparent", f"00-{trace_id}-{1:016x}-01"),), timeout=timeout), trace_id


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128 or number == 7
    size = len(content)
    length = bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7))
    return bytes((number << 3 | 2,)) + length + content


def test_stages_over_grpc(server: tuple[str, Service, int], sink: Sink) -> None:
    where, _, port = server
    calls = []
    for _ in range(3):
        answer, trace_id = call_rpc(port, [[1, 0]])
        truth = json.JSONDecoder().raw_decode(answer.decode(errors="replace"), answer.index(b'{"worker"'))[0]
        request = whole(sink, trace_id, "forward")
        assert tree(request) == TREES[f"{where}, grpc"]
        assert request.entry.attributes["rpc.response.status_code"] == "OK"
        calls.append((request, truth))
    assert_as_told(calls)


def test_a_batch_is_one_inference(server: tuple[str, Service, int], sink: Sink) -> None:
    where, service, _ = server
    answers: list[tuple[str, httpx.Response]] = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):  # batches, none of which starts before the one before it has ended
            answers += pool.map(lambda _: rest(service, "batched", [[1, 0]]), range(3))
    calls, batches, cold = [], {}, set()
    for trace_id, response in answers:
        request, truth = sink.request(trace_id), truth_of(response)
        assert tree(request) == TREES[f"{where}, batched"]
        batch, under = batch_of(request, sink)
        assert [span.name for span in under] == ["forward"]
        assert under[0].parent_id == batch.span_id
        first = batch.attributes.pop("ml.cold_start", None)
        if first is not None:
            assert first is True
            cold.add(batch.span_id)
        # A stage of 1 ms and more, as with other work on the machine, says how long it had a CPU.
        assert {key: value for key, value in batch.attributes.items() if not key.startswith("stagetrace.cpu.")} == {
            "ml.model.name": "batched",
            "ml.model.version": "v7",
            "ml.framework": "sklearn",
            "ml.batch.size": truth["size"],
            "ml.input.size": truth["size"] * 4,
        }
        assert request.entry.attributes["ml.batch.size"] == truth["size"]
        batches[batch.span_id] = truth["size"]
        calls.append((request, truth))
    assert sum(batches.values()) == 9
    assert len(cold) <= len({truth["worker"] for _, truth in calls}), "the first call in a process at most"
    assert_as_told(calls)


def ask(service: Service, port: int, kind: str, factor: float) -> tuple[str, httpx.Response | None]:
    """Make one request of a kind; return its trace id, and the response where it came by HTTP and was waited for."""
    if kind == "rpc":
        return call_rpc(port, [[factor, 0]])[1], None
    if kind == "rpc, gone":
        with pytest.raises(grpc.RpcError):
            call_rpc(port, OUTLASTING, trace_id := secrets.token_hex(16), timeout=0.05)
        return trace_id, None
    if kind == "gone":
        trace_id, headers = new_trace()
        with pytest.raises(httpx.ReadTimeout):
            rest(service, "flowers", OUTLASTING, headers=headers, timeout=0.05)
        return trace_id, None
    if kind == "tokens":
        return rest(service, "tokens", [[factor, 0]], how="infer_stream")
    return rest(service, kind.removesuffix(", raises"), [[factor, 1 if kind.endswith("raises") else 0]])


@pytest.mark.heavier(f"{RANDOMISED:,} requests")
def test_each_request_has_one_tiled_entry_span_with_its_verdict(server: tuple[str, Service, int], sink: Sink) -> None:
    """In whatever order it comes: REST and gRPC, batches, streams, errors, clients that go away."""
    where, service, port = server
    rng = random.Random(7)
    kinds = [*["flowers", "batched", "batched", "rpc"] * 4, "flowers, raises", "batched, raises", "gone", "rpc, gone"]
    kinds += ["tokens"] if where == "here" else []  # MLServer streams from its own process alone
    asked = [(rng.choice(kinds), rng.uniform(0.01, 0.05)) for _ in range(RANDOMISED)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda one: ask(service, port, *one), asked))
    for (kind, _), (trace_id, response) in zip(asked, answers, strict=True):
        request = sink.tiled(trace_id)
        attributes = request.entry.attributes
        gone = kind.endswith("gone")
        assert ("stagetrace.network.disconnect" in attributes) is gone, (kind, attributes)
        took = request.entry.end - request.entry.start
        verdict = "breach" if took > 300_000_000 else "excluded" if gone else "good"
        assert attributes["sla.verdict"] == verdict, (kind, attributes)
        if response is None:
            continue
        assert attributes["http.response.status_code"] == response.status_code
        if response.status_code != 200:
            assert response.status_code == 500
            assert kind.endswith("raises") or kind == "batched"  # one of a batch fails all of it
        elif kind == "tokens":
            assert attributes["stagetrace.network.chunks"] > 1
        else:
            truth, inference = truth_of(response), stage_of(request, "inference")
            assert inference.start <= truth["predict"][0]
            assert inference.end >= truth["predict"][1]
            if kind == "batched":
                assert batch_of(request, sink)[0].attributes["ml.batch.size"] == truth["size"]


def test_an_error_and_a_lost_worker(server: tuple[str, Service, int], sink: Sink) -> None:
    where, service, _ = server
    trace_id, response = rest(service, "flowers", [[0.5, 1]])
    failed = sink.request(trace_id)
    assert response.status_code == 500
    assert failed.entry.attributes["http.response.status_code"] == 500
    assert failed.total_ns("preprocess") > 4e7
    if where == "there":
        trace_id, response = rest(service, "flowers", [[0.1, 2]])
        lost = sink.request(trace_id)
        assert response.status_code == 500
        assert lost.entry.attributes["ml.worker.lost"] is True
        assert_tiled(lost)


def test_injected_faults_change_no_response(server: tuple[str, Service, int], sink: Sink) -> None:
    where, service, _ = server

    def answers() -> list[Any]:
        """Ask each worker both models and for an error; they take turns."""
        asked = [("flowers", 0), ("flowers", 0), ("batched", 0), ("batched", 0), ("flowers", 1), ("flowers", 1)]
        responses = [rest(service, model, [[0.01, order]])[1] for model, order in asked]
        return [(one.status_code, sorted(truth_of(one)) if one.status_code == 200 else one.text) for one in responses]

    def order(number: int) -> None:
        for _ in range(max(1, WORKERS[where])):
            rest(service, "flowers", [[0, number]])

    expected = answers()
    for number, part in enumerate(PARTS[where]):
        said = service.log.count("injected fault")
        order(10 + number)
        assert answers() == expected, part
        assert service.log.count("injected fault") > said, part
        order(3)
    assert answers() == expected
    trace_id, _ = rest(service, "flowers", [[0.1, 0]])
    assert stage_of(sink.request(trace_id), "inference")


def test_nothing_is_lost_at_the_end(server: tuple[str, Service, int], sink: Sink) -> None:
    """What ended in the last second: the entry span here, and a span in a worker."""
    _, service, _ = server
    trace_id, _ = rest(service, "flowers", [[0.1, 0]])
    service.stop()
    assert [span.name for span in whole(sink, trace_id, "forward").others] == ["forward"]
