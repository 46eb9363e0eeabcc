"""infinity-emb: each request has its wait for a batch, and the inference; by a stand-in, and the real server."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from backends import free_port
from environments import interpreter_with
from services import APPS, run_service
from sink import Sink, assert_tiled
from trees import batch_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services import Service
    from sink import Request

pytestmark = pytest.mark.usefixtures("services")

WHERE = "stagetrace_contrib.infinity_emb"
# Those of one line fail together.
PARTS = [(f"{WHERE}:Wait.__init__", f"{WHERE}:_Batch.wait"), (f"{WHERE}:_Batch.go_on",)]
STAGES = ["queue", "preprocess", "inference", "postprocess", "network.send"]
TEXT_NS = 20_000_000  # that the stand-in's model takes for each text
MODEL = {"ml.model.name": "tiny/bert", "ml.framework": "torch"}


@pytest.fixture(scope="module")
def service(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(tmp_path_factory.mktemp("traced"), "infinity_app", env=environment(sink)) as found:
        yield found
        assert "fault of stagetrace" not in found.log


def environment(sink: Sink, **more: str) -> dict[str, str]:
    return sink.environment(STAGETRACE_SLA="POST /* within 60s", **more)


def waits(request: Request) -> list[int]:
    """Return the waits for a batch, in nanoseconds."""
    return [one.end - one.start for one in request.stages if one.attributes.get("queue.reason") == "batch"]


def from_batch_on(request: Request) -> list[str]:
    """Return the stages from the wait for a batch on, neighbours of one name once."""
    names = [one.name for one in request.stages]
    begun = next(at for at, one in enumerate(request.stages) if one.attributes.get("queue.reason") == "batch")
    return [name for at, name in enumerate(names[begun:], begun) if at == begun or name != names[at - 1]]


@pytest.mark.smoke
def test_a_request_alone_has_its_wait_and_its_inference(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "POST", "/embeddings", json={"input": ["a", "bcd"]})
    assert response.json() == [[1], [3]]
    (inference,) = [one for one in request.stages if one.name == "inference"]
    assert {name: inference.attributes[name] for name in MODEL} == MODEL
    assert inference.attributes["ml.batch.size"] == 2
    assert inference.end - inference.start >= 2 * TEXT_NS
    assert request.entry.attributes["ml.model.name"] == "tiny/bert"
    assert [name for name in from_batch_on(request) if name != "queue"] == STAGES[1:]
    assert len(waits(request)) == 3  # for its batch, and of that for the next two threads


def test_a_batch_is_one_inference_of_all_that_are_in_it(service: Service, sink: Sink) -> None:
    found = {}
    for trace_id, response in service.call_at_once("/embeddings", [{"input": ["a"]}] * 16):
        assert response.json() == [[1]]
        request = sink.tiled(trace_id)
        assert request.entry.attributes["ml.model.name"] == "tiny/bert"
        (inference,) = [one for one in request.stages if one.name == "inference"]
        size = inference.attributes["ml.batch.size"]
        assert inference.end - inference.start >= size * TEXT_NS
        if size > 1:
            batch, _ = batch_of(request, sink)
            assert {name: batch.attributes[name] for name in MODEL} == MODEL
            found[batch.span_id] = size
    assert max(found.values()) > 1


def test_a_request_of_many_texts_has_all_its_batches(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "POST", "/embeddings", json={"input": ["a"] * 10})
    assert response.json() == [[1]] * 10
    assert request.names.count("inference") == 3
    assert request.total_ns("inference") >= 10 * TEXT_NS


def test_a_request_that_waits_in_vain_has_waited_for_a_batch(service: Service, sink: Sink) -> None:
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(service.call, "POST", "/embeddings", json={"input": ["a"] * 60})
        time.sleep(0.2)
        request, response = sink.traced(service, "POST", "/impatient", json={"input": ["a"]})
        assert busy.result()[1].status_code == 200
    assert response.status_code == 503
    assert "inference" not in request.names
    assert max(waits(request)) >= 40_000_000


def assert_as_untraced(service: Service, sink: Sink) -> None:
    for texts in (["a"], ["a", "bcd"]):
        request, response = sink.traced(service, "POST", "/embeddings", json={"input": texts})
        assert response.json() == [[len(text)] for text in texts]
        assert_tiled(request)


def test_injected_faults_change_no_response_and_a_model_that_fails_leaves_nothing_open(
    sink: Sink, tmp_path: Path
) -> None:
    control = free_port()
    env = environment(sink, APP="infinity_app", CONTROL=str(control))
    with run_service(tmp_path, "controlled", env={**env, "BREAK": f"{WHERE}:Steps.__init__"}) as service:
        assert_as_untraced(service, sink)
        assert "injected fault" in service.log
    with run_service(tmp_path, "controlled", env=env) as service:
        for parts in PARTS:
            for part in parts:
                httpx.get(f"http://127.0.0.1:{control}/break/{part}").raise_for_status()
            before = service.log.count("injected fault")
            assert_as_untraced(service, sink)
            assert service.log.count("injected fault") > before, parts
            httpx.get(f"http://127.0.0.1:{control}/mend").raise_for_status()
        before = service.log.count("fault of stagetrace")
        request, response = sink.traced(service, "POST", "/impatient", json={"input": ["fail"]})
        assert response.status_code == 503  # its thread has ended: nobody completes the future
        assert waits(request)
        service.stop()
        assert service.log.count("fault of stagetrace") == before


@pytest.mark.heavy
@pytest.mark.xdist_group("infinity-emb")
def test_the_real_server_has_queue_and_inference_in_each_request(sink: Sink, tmp_path: Path) -> None:
    python = interpreter_with(["infinity-emb[torch,server]", "torch"])
    model = tmp_path / "tiny"
    model.mkdir()
    subprocess.run([python, str(APPS / "tiny_bert.py"), str(model)], check=True, capture_output=True)
    options = ("--model-id", str(model), "--device", "cpu", "--batch-size", "4", "--no-bettertransformer")
    argv = [str(Path(python).parent / "infinity_emb"), "v2", *options, "--host", "127.0.0.1", "--port", "{port}"]
    env = environment(sink, HF_HUB_OFFLINE="1", DO_NOT_TRACK="1", INFINITY_ANONYMOUS_USAGE_STATS="0")
    name = f"{tmp_path.name}/tiny"
    with run_service(tmp_path, argv=argv, env=env, within_s=180) as service:
        alone = [service.call("POST", "/embeddings", json={"model": name, "input": ["a b", "c"]}) for _ in range(3)]
        bodies = [{"model": name, "input": ["a b c"]}] * 12
        for trace_id, response in (*alone, *service.call_at_once("/embeddings", bodies)):
            assert response.status_code == 200, response.text
            request = sink.tiled(trace_id)
            assert waits(request)
            assert "inference" in request.names
            found = {key: request.entry.attributes[key] for key in ("ml.model.name", "ml.framework", "ml.device")}
            assert found == {"ml.model.name": name, "ml.framework": "torch", "ml.device": "cpu"}
        service.stop()
        assert "fault of stagetrace" not in service.log
