"""The oldest versions that pyproject.toml allows, the newest that there are, and one that breaks a patch.

Each service is a real one on a real socket, and is asked once: one entry span, tiled, with route and verdict.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest
import tomllib  # type: ignore[import-not-found]  # there from 3.11 on, which the tests need

import instrumentation.grpc_client as rpc
from doctor import checks
from environments import ROOT, interpreter_with
from services import GUNICORN, recorded, run_service
from sink import Sink, assert_tiled, run_sink
from stagetrace.output.processes import FAIL
from stagetrace.process_status import files as status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
# Of what the tests need, that which services are made of; a lower bound there is a promise.
SERVED_WITH = "fastapi starlette uvicorn hypercorn gunicorn flask django grpcio-reflection scikit-learn"
UVICORN = ("-m", "uvicorn", "{app}:app", "--port", "{port}")
HYPERCORN = ("-m", "hypercorn", "{app}:app", "--bind", "127.0.0.1:{port}")
HTTP: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    # application: server, method and path, route, stages that must be there
    "ml": (UVICORN, "POST /predict", "/predict", "network.receive queue preprocess inference"),
    "any_starlette": (HYPERCORN, "POST /tree", "/tree", "preprocess"),
    "flask_ml": (("-m", *GUNICORN[2:], "-k", "gthread", "{app}:app"), "POST /predict", "/predict", "inference"),
    "semantics_django": (("-m", *GUNICORN[2:], "{app}:app"), "GET /items/7", "/items/<str:item_id>", "handler"),
    "any_django": (UVICORN, "GET /items/7", "/items/<int:item>", "handler"),
}
RPC = {"grpc_threads": "queue network.receive inference", "grpc_aio": "network.receive inference network.send"}


def requirements() -> list[str]:
    """Return what the tests of this project serve with, as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [*project["dependency-groups"]["dev"], *project["project"]["optional-dependencies"]["backend"]]
    served = {re.split(r"[>=;\[ ]", one)[0]: one for one in listed}
    return [served[name] for name in SERVED_WITH.split()]


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with run_sink() as running:
        yield running


@pytest.fixture(scope="module", params=[pytest.param("oldest", marks=pytest.mark.sample), "newest"])
def interpreter(request: pytest.FixtureRequest) -> str:
    return interpreter_with(requirements(), RESOLUTIONS[request.param])


def environment(sink: Sink, folder: Path) -> dict[str, str]:
    more = {"STAGETRACE_STATUS": str(folder / "status"), "OTEL_BSP_SCHEDULE_DELAY": "50"}
    return recorded(sink.endpoint, "* within 1us", **more)


def check(sink: Sink, trace_id: str, route: tuple[str, str], stages: str, folder: Path, log: Any) -> None:
    request = sink.request(trace_id)
    assert_tiled(request)
    attributes = request.entry.attributes
    assert attributes[route[0]] == route[1]
    assert (attributes["sla.breached"], attributes["sla.objective"]) == (True, "* within 1us")
    assert set(stages.split()) <= set(request.names)
    patches = [one.status["patches"] for one in status.read(folder / "status") if one.status]
    assert patches
    assert all((one["failed"], one["switched_off"], one["failures"]) == ({}, [], {}) for one in patches), patches
    assert "cannot patch" not in log
    assert "fault of stagetrace" not in log


@pytest.mark.heavy
@pytest.mark.parametrize("app", HTTP)
def test_a_request_has_one_entry_span_and_a_verdict(app: str, interpreter: str, sink: Sink, tmp_path: Path) -> None:
    server, asked, route, stages = HTTP[app]
    argv = [interpreter, *(part.replace("{app}", app) for part in server)]
    ready = "/plain" if app == "semantics_django" else "/health"
    with run_service(tmp_path, argv=argv, env=environment(sink, tmp_path), ready=ready) as service:
        method, path = asked.split()
        trace_id, response = service.call(method, path, **({"json": {"inference_s": 0.02}} if method == "POST" else {}))
        assert response.status_code == 200
        check(sink, trace_id, ("http.route", route), stages, tmp_path, service.log)


@pytest.mark.heavy
@pytest.mark.parametrize("app", RPC)
def test_an_rpc_has_one_entry_span_and_a_verdict(app: str, interpreter: str, sink: Sink, tmp_path: Path) -> None:
    with rpc.run_service(tmp_path, app, environment(sink, tmp_path), [interpreter]) as service:
        trace_id, outcome = service.call("Predict", {"inference_s": 0.02})
        assert outcome.code == "OK"
        check(sink, trace_id, ("rpc.method", "ml.Scorer/Predict"), RPC[app], tmp_path, service.log)


def test_a_patch_that_a_version_breaks_is_reported_and_the_rest_goes_on(sink: Sink, tmp_path: Path) -> None:
    newer = {"APP": "ml", "NEWER": "anyio.to_thread:current_default_thread_limiter"}
    with run_service(tmp_path, "newer", env=environment(sink, tmp_path) | newer) as service:
        trace_id, response = service.call("POST", "/predict", json={"inference_s": 0.02})
        assert response.status_code == 200
        request = sink.request(trace_id)
        (said,) = [one for one in checks(tmp_path)[f"process {service.process.pid}"] if one.state == FAIL]
        assert service.log.count("cannot patch anyio.to_thread (AttributeError") == 1
    assert_tiled(request)
    assert "queue" not in request.names  # which is what that patch records
    assert {"network.receive", "inference"} <= set(request.names)
    assert request.entry.attributes["sla.breached"] is True
    assert said.found.startswith("anyio.to_thread could not be patched and is not traced: AttributeError")
    assert said.fix


def test_a_server_whose_patch_a_version_breaks_serves_on(sink: Sink, tmp_path: Path) -> None:
    """Untraced, and saying so. What is gone is what gRPC refuses an RPC with."""
    env = environment(sink, tmp_path) | {"APP": "grpc_threads", "NEWER": "grpc._server:_reject_rpc"}
    with rpc.run_service(tmp_path, "newer", env) as service:
        expected = {"Predict": "OK", "Abort": "NOT_FOUND", "Raise": "UNKNOWN"}
        calls = {method: service.call(method, {}) for method in expected}
        assert {method: got.code for method, (_, got) in calls.items()} == expected
        time.sleep(0.3)  # spans would arrive meanwhile
        log = service.log
    assert log.count("cannot patch grpc._server (AttributeError") == 1
    assert "_reject_rpc" in log
    assert "fault of stagetrace" not in log
    assert not sink.traces() & {trace_id for trace_id, _ in calls.values()}
