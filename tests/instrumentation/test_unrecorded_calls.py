"""Models that are called where no request is recorded: below which servers that is logged, once, and where never."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from environments import interpreter_once
from services import PYTHON, run_python, run_service
from stagetrace.output import processes
from stagetrace.process_status.files import Found
from test_status import status_in

if TYPE_CHECKING:
    from pathlib import Path

    from sink import Sink

LOGGED = "LogisticRegression is called, and no request is recorded"
TRACED = {"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none"}
OWN_ENVIRONMENT = ("robyn", "scikit-learn>=1.5")


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    "server",
    ["http.server", pytest.param("robyn", marks=pytest.mark.heavy)],
)
def test_a_model_below_a_handler_of_a_server_without_a_patch_is_logged_once(server: str, tmp_path: Path) -> None:
    argv = [
        interpreter_once("unpatched_servers", OWN_ENVIRONMENT) if server in OWN_ENVIRONMENT else PYTHON,
        "unpatched_servers.py",
        server,
    ]
    with run_service(tmp_path, argv=argv, env=TRACED, within_s=120) as service:
        assert LOGGED not in service.log, "the warm-up call is to log nothing"
        answers, calls = set(), 0
        while calls < 12 or LOGGED not in service.log:  # it checks once a second
            answers.add(service.call("GET", "/predict")[1].text)
            calls += 1
            time.sleep(0.1)
    assert service.log.count(LOGGED) == 1
    assert f"stagetrace does not see those of {server}, and nothing that it knows has served here" in service.log
    assert "README.md" in service.log
    with run_service(tmp_path, argv=argv, within_s=120) as service:
        assert answers == {service.call("GET", "/predict")[1].text}
    assert "stagetrace" not in service.log


@pytest.mark.usefixtures("services")
def test_where_a_patched_server_serves_nothing_is_logged(tmp_path: Path) -> None:
    """Although models are called before its requests, and beside them."""
    with run_service(tmp_path, "ml", env=TRACED) as service:
        service.call("POST", "/predict", json={})
        service.call("GET", "/background")
        while not service.call("GET", "/background-done")[1].json()["done"]:
            pass
        assert "no request is recorded" not in service.log


CALLS = """
import os, sys, threading
BEFORE
from stagetrace.instrumentation.models.marked import marked
from stagetrace.instrumentation.models import unrecorded_calls

unrecorded_calls.sleep = lambda _: None

class LogisticRegression:
    predict = marked(lambda self: 1, lambda *_: None)

for second in (1, 59, 60, 61, 62, 120, 200):
    unrecorded_calls.time_ns = lambda: second * 10**9
    assert LogisticRegression().predict() == 1
    for thread in threading.enumerate():
        if thread.name == "stagetrace-log":
            thread.join()
    if second <= 60:
        print("until then", file=sys.stderr)
"""
PROVIDER = (
    "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider; "
    "trace.set_tracer_provider(TracerProvider())"
)
ROBYN = "import types; sys.modules['robyn'] = types.ModuleType('robyn')"
CHILD = (
    "import multiprocessing.process, types; "
    "multiprocessing.process.parent_process = lambda: types.SimpleNamespace(pid=os.getpid()); "
    "multiprocessing.process.current_process()._identity = ({},)"
)
STATUS = (
    "import json; from stagetrace.process_status import files; me = files.myself(); "
    "files.write(files.folder(), me, json.dumps({'namespace': me.namespace}))"
)
# By process, a part of what is logged a minute after the first call; empty where nothing is.
PROCESSES = {
    "a script": ("", "none of the servers that stagetrace knows has served here"),
    "of robyn, which calls the model in a thread": (ROBYN, "does not see those of robyn"),
    "of aiohttp, for its client": ("import aiohttp", "none of the servers"),
    "of aiohttp.web": ("import aiohttp.web", ""),
    "that will serve by uvicorn": (f"{ROBYN}; import uvicorn", ""),
    "of FastAPI": (f"{ROBYN}; import fastapi", ""),
    "with a provider of its own": (f"{ROBYN}; {PROVIDER}", ""),
    "made by multiprocessing first": (CHILD.format(1), "If this process serves requests of others"),
    "made by multiprocessing after others": (CHILD.format(2), ""),
    "made by multiprocessing, to serve": (f"{CHILD.format(2)}; {ROBYN}", "does not see those of robyn"),
    "made by multiprocessing, of a service": (
        f"{CHILD.format(2)}; {STATUS}; import fastapi",
        "has made this one, records some",
    ),
    "that has served": ("from stagetrace.runtime.runtime import runtime; runtime.ready = True", ""),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_outside_a_handler_it_is_logged_once_after_a_minute(process: str, tmp_path: Path) -> None:
    before, logged = PROCESSES[process]
    stderr = run(CALLS.replace("BEFORE", before), STAGETRACE_STATUS=str(tmp_path))
    if logged:
        waited, _, then = stderr.rpartition("until then\n")
        assert waited == "until then\n" * 2
        assert then.count(LOGGED) == 1
        assert logged in then
        assert len(then.splitlines()) <= 3
    else:
        assert stderr == "until then\n" * 3


def test_a_short_script_logs_nothing() -> None:
    assert run(CALLS.replace("BEFORE", "").replace("60, 61, 62, 120, 200", "60")).count(LOGGED) == 0


def test_a_check_that_fails_is_logged_once_and_harms_no_call() -> None:
    broken = "import stagetrace.instrumentation.models.unrecorded_calls as broken; del broken._calling_server"
    stderr = run(CALLS.replace("BEFORE", broken))
    assert stderr.count("fault of stagetrace") == 1
    assert LOGGED not in stderr


def run(code: str, **more: str) -> str:
    done = run_python("-c", code, **TRACED, **more)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.thorough
@pytest.mark.usefixtures("services")
@pytest.mark.smoke
def test_calls_in_no_request_are_counted_named_and_evidence_of_requests_without_a_model(
    sink: Sink, tmp_path: Path
) -> None:
    folder = tmp_path / "status"
    env = sink.environment(STAGETRACE_SLA="/predict/* within 1ms") | {"STAGETRACE_STATUS": str(folder)}
    with run_service(tmp_path, "unseen_batcher", env=env) as service:
        requests = [sink.traced(service, "POST", "/predict/1", json={})[0] for _ in range(3)]
        status = status_in(folder, lambda one: one["unrecorded_calls"].get("sklearn") == 3)
        service.stop()
    for request in requests:
        assert "inference" not in request.names
        assert "meanwhile 1 call of sklearn was in no request" in request.entry.attributes["sla.breach.evidence"]
    assert service.log.count("3 calls of sklearn were in no request") == 1, service.log
    found = [one.found for one in processes.checks(Found(tmp_path / "7-7.json", status, alive=True))]
    assert "calls of models that were in no request: 3 of sklearn" in found
