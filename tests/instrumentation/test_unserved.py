"""Servers without a hook: what is said once of the model that is called there, and to whom nothing is said."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from environments import interpreter_once
from services import PYTHON, run_service

if TYPE_CHECKING:
    from pathlib import Path

SAID = "LogisticRegression is called, and no request is recorded"
TRACED = {"STAGETRACE": "1", "OTEL_TRACES_EXPORTER": "none"}
ELSEWHERE = ("tornado", "sanic", "robyn", "scikit-learn>=1.5")


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    "server",
    [
        pytest.param("aiohttp.web", marks=pytest.mark.smoke),
        "http.server",
        *(pytest.param(one, marks=pytest.mark.heavy) for one in ("tornado", "sanic", "robyn")),
    ],
)
def test_a_model_below_a_handler_of_a_server_without_a_hook_is_said_once(server: str, tmp_path: Path) -> None:
    argv = [interpreter_once("unserved", ELSEWHERE) if server in ELSEWHERE else PYTHON, "unserved.py", server]
    with run_service(tmp_path, argv=argv, env=TRACED, within_s=120) as service:
        assert SAID not in service.log, "of the call that warms it up nothing is to be said yet"
        answers, calls = set(), 0
        while calls < 12 or SAID not in service.log:  # it looks once a second
            answers.add(service.call("GET", "/predict")[1].text)
            calls += 1
            time.sleep(0.1)
    assert service.log.count(SAID) == 1
    assert f"stagetrace does not see those of {server}, and nothing that it knows has served here" in service.log
    assert "README.md" in service.log
    with run_service(tmp_path, argv=argv, within_s=120) as service:
        assert answers == {service.call("GET", "/predict")[1].text}
    assert "stagetrace" not in service.log


@pytest.mark.usefixtures("services")
def test_where_a_server_with_a_hook_serves_nothing_is_said(tmp_path: Path) -> None:
    """Whatever calls models before and beside its requests."""
    with run_service(tmp_path, "ml", env=TRACED) as service:
        service.call("POST", "/predict", json={})
        service.call("GET", "/background")
        while not service.call("GET", "/background-done")[1].json()["done"]:
            pass
        assert "no request is recorded" not in service.log


CALLS = """
import os, sys, threading
BEFORE
from stagetrace.instrumentation.models import base as model; from stagetrace.instrumentation.models import unserved

unserved.sleep = lambda _: None

class LogisticRegression:
    predict = model.marked(lambda self: 1, lambda *_: None)

for second in (1, 59, 60, 61, 62, 120, 200):
    unserved.time_ns = lambda: second * 10**9
    assert LogisticRegression().predict() == 1
    for thread in threading.enumerate():
        if thread.name == "stagetrace-say":
            thread.join()
    if second <= 60:
        print("until then", file=sys.stderr)
"""
PROVIDER = (
    "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider; "
    "trace.set_tracer_provider(TracerProvider())"
)
CHILD = "import multiprocessing.process; multiprocessing.process.parent_process = lambda: 'one'"
# What the process is, and what is said of it a minute after the first call.
PROCESSES = {
    "a script": ("", "none of the servers that stagetrace knows has served here"),
    "of aiohttp, which calls the model in a thread": ("import aiohttp.web", "does not see those of aiohttp.web"),
    "of aiohttp, for its client": ("import aiohttp", "none of the servers"),
    "that will serve by uvicorn": ("import aiohttp.web, uvicorn", ""),
    "of FastAPI": ("import aiohttp.web, fastapi", ""),
    "with a provider of its own": (f"import aiohttp.web; {PROVIDER}", ""),
    "made by multiprocessing": (CHILD, ""),
    "made by multiprocessing, to serve": (f"{CHILD}; import aiohttp.web", "does not see those of aiohttp.web"),
    "that has served": ("from stagetrace.runtime.runtime import runtime; runtime.ready = True", ""),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_elsewhere_it_is_said_after_a_minute_with_what_is_known_and_once(process: str) -> None:
    before, said = PROCESSES[process]
    stderr = run(CALLS.replace("BEFORE", before))
    if said:
        waited, _, then = stderr.rpartition("until then\n")
        assert waited == "until then\n" * 2
        assert then.count(SAID) == 1
        assert said in then
        assert len(then.splitlines()) <= 3
    else:
        assert stderr == "until then\n" * 3


def test_a_short_script_hears_nothing() -> None:
    assert run(CALLS.replace("BEFORE", "").replace("60, 61, 62, 120, 200", "60")).count(SAID) == 0


def test_a_look_that_fails_is_said_once_and_harms_no_call() -> None:
    broken = "import stagetrace.instrumentation.models.unserved as broken; del broken._calling"
    stderr = run(CALLS.replace("BEFORE", broken))
    assert stderr.count("fault of stagetrace") == 1
    assert SAID not in stderr


def run(code: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("STAGETRACE", "OTEL_"))} | TRACED
    return subprocess.run([PYTHON, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True).stderr
