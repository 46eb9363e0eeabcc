"""Libraries whose models are not recognised are named: when a service starts or imports one, and by doctor."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import pytest

from services import asgi_command, run_python, run_service
from stagetrace.patches.registry import wanted
from stagetrace.system import unrecognised_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sink import Sink

APP = """
import ncnn
from fastapi import FastAPI
app = FastAPI()
@app.get("/health")
def health() -> str:
    return "ok"
@app.get("/load")
def load() -> str:
    import tinygrad
    return "ok"
"""


def test_none_of_them_is_patched() -> None:
    assert not unrecognised_models.MODELS.keys() & {name.partition(".")[0] for name in wanted()}


def test_one_that_something_else_has_imported_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras imports JAX to compute with, and its models are recognised."""
    monkeypatch.setitem(sys.modules, "jax", sys)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert unrecognised_models.imported() == ["jax"]
    monkeypatch.setitem(sys.modules, "keras", sys)
    assert unrecognised_models.imported() == []


@pytest.mark.usefixtures("services")
def test_a_service_logs_each_library_that_it_imports_once(sink: Sink, tmp_path: Path) -> None:
    """One before it serves, one later; `doctor` reports both, with what to do."""
    (tmp_path / "app.py").write_text(APP)
    for name in ("ncnn", "tinygrad"):
        (tmp_path / f"{name}.py").touch()
    env = sink.environment(STAGETRACE_STATUS=str(tmp_path / "status"))
    with run_service(tmp_path, argv=[*asgi_command("uvicorn", "app"), "--app-dir", str(tmp_path)], env=env) as service:
        wait_for(lambda: "calls of ncnn," in service.log)
        service.call("GET", "/load")
        wait_for(lambda: "calls of tinygrad," in service.log)
        said: list[dict[str, str]] = []

        def complete() -> bool:
            said[:] = doctor("--pid", str(service.process.pid), STAGETRACE_STATUS=str(tmp_path / "status"))
            return "tinygrad" in str(said)

        wait_for(complete)
        service.call("GET", "/load")
    lines = [line for line in service.log.splitlines() if "not recognised" in line]
    begins = [f"stagetrace: model calls of {name}, imported here, are not recognised" for name in ("ncnn", "tinygrad")]
    assert [line.partition(":")[0] + ":" + line.split(":")[1] for line in lines] == begins
    assert all(unrecognised_models.REMEDY in line for line in lines)
    (check,) = [check for check in said if "not recognised" in check["found"]]
    assert (check["state"], check["mend"]) == ("ok", unrecognised_models.REMEDY)
    assert check["found"].startswith("model calls of ncnn, tinygrad, imported here, ")


def doctor(*options: str, **env: str) -> list[dict[str, str]]:
    """Return what doctor finds."""
    done = run_python("-m", "stagetrace.cli.main", "doctor", "--json", *options, **env)
    found: list[dict[str, str]] = json.loads(done.stdout)["checks"]
    return found


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_doctor_names_those_that_are_installed(tmp_path: Path) -> None:
    for name in ("tinygrad", "ncnn"):
        (tmp_path / f"{name}.py").touch()
    said = doctor(PYTHONPATH=str(tmp_path), STAGETRACE_STATUS="0", OTEL_TRACES_EXPORTER="none")
    (check,) = [check for check in said if check["name"] == "libraries"]
    assert "ncnn" in check["found"]
    assert check["mend"] == f"model calls of ncnn, tinygrad: {unrecognised_models.REMEDY}"
