"""cog: each prediction has an entry span in the worker process, whatever the kind of the user's method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from environments import interpreter_with
from services import APPS, Service, run_service
from sink import assert_tiled, request_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sink import Request, Sink

pytestmark = [pytest.mark.usefixtures("services"), pytest.mark.heavy, pytest.mark.xdist_group("cog")]

NEEDS = ("cog>=0.23", "onnx", "onnxruntime")
RESULTS = {"Plain": -7.0, "Awaited": -7.0, "Generated": ["-7.0", "-8.0", "-9.0"], "Streamed": ["-7.0", "-8.0", "-9.0"]}


@pytest.fixture(scope="module", params=RESULTS)
def served(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[tuple[str, Service, Service]]:
    python = interpreter_with(NEEDS)
    env = {
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",  # where cog finds the Python of its worker
        "COG_PREDICT_TYPE_STUB": f"{APPS / 'cog_predictor.py'}:{request.param}",
    }
    argv = ["sh", "-c", f"PORT={{port}} exec {python} -m cog.server.http --host 127.0.0.1"]
    traced_env = sink.environment(**env, STAGETRACE_SLA="cog/run within 20s")
    with (
        run_service(folder, argv=argv, env=traced_env, ready="/health-check", within_s=120) as traced,
        run_service(folder, argv=argv, env=env, ready="/health-check", within_s=120) as untraced,
    ):
        yield request.param, traced, untraced


def predicted(service: Service, **given: Any) -> Any:
    """Return what a prediction gives, once the worker is ready."""
    while True:
        response = service.call("POST", "/predictions", json={"input": given})[1]
        if response.status_code != 503:
            return response.json()


def test_a_prediction_has_an_entry_span_with_its_inference(served: tuple[str, Service, Service], sink: Sink) -> None:
    kind, traced, untraced = served
    seen = sink.traces()
    found = predicted(traced)
    assert (found["status"], found["output"]) == ("succeeded", RESULTS[kind])
    assert found["output"] == predicted(untraced)["output"]
    request = first(sink, seen)
    assert (
        request.entry.attributes.items()
        >= {"rpc.system.name": "cog", "rpc.method": "cog/run", "sla.verdict": "good"}.items()
    )
    inferences = [stage for stage in request.stages if stage.name == "inference"]
    assert inferences[0].attributes["ml.framework"] == "onnxruntime"
    assert request.entry.attributes.get("stagetrace.network.chunks") == (3 if isinstance(RESULTS[kind], list) else None)


def first(sink: Sink, seen: set[str]) -> Request:
    """Return the one request that has come since then."""
    spans = sink.wait_for(lambda all_: any(one.kind == 2 and one.trace_id not in seen for one in all_))
    (trace_id,) = {one.trace_id for one in spans if one.kind == 2} - seen
    request = request_of([one for one in spans if one.trace_id == trace_id])
    assert_tiled(request)
    return request


@pytest.mark.parametrize("served", ["Plain"], indirect=True)
def test_a_prediction_that_fails_is_an_error(served: tuple[str, Service, Service], sink: Sink) -> None:
    _, traced, untraced = served
    seen = sink.traces()
    found = predicted(traced, value=101)
    assert (found["status"], found["error"]) == ("failed", predicted(untraced, value=101)["error"])
    assert first(sink, seen).entry.status == 2
