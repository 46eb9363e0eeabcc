"""Recording works on each Python that the README names; the other tests run on one of them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from environments import interpreter_of
from services import AT_END, clean_environment, recorded, run_service
from sink import assert_tiled, run_sink

if TYPE_CHECKING:
    from pathlib import Path

# The newest releases for Python 3.10.
PACKAGES = ("fastapi==0.162.5", "uvicorn==0.54.0", "scikit-learn==1.7.2")
IMPORT_ALL = """
import importlib, pkgutil, stagetrace, stagetrace.otlp.encode
recording = "api causes instrumentation otlp.export patches policy process_status protocols request runtime sla "
recording += "sources system"
for folder in (*map("stagetrace.{}".format, recording.split()), "stagetrace_contrib"):
    package = importlib.import_module(folder)
    for module in pkgutil.walk_packages(package.__path__, f"{folder}."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert not error.name.startswith("stagetrace"), error  # a library that is not installed
        print(module.name)
"""


@pytest.fixture(scope="module", params=["3.10", "3.12", "3.13"])
def python(request: pytest.FixtureRequest) -> str:
    return interpreter_of(request.param, PACKAGES)


@pytest.mark.thorough
def test_each_recording_module_can_be_imported(python: str) -> None:
    argv = [python, "-W", "error", "-c", IMPORT_ALL]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) > 200


@pytest.mark.usefixtures("services")
def test_a_request_is_recorded_with_its_breach(python: str, tmp_path: Path) -> None:
    """With cause and line of code, delivered at SIGTERM; the log has no warning and no fault."""
    argv = [python, "-W", "default", "-m", "uvicorn", "ml:app", "--port", "{port}"]
    quiet = {**AT_END, "STAGETRACE_LOG": "warning"}
    with (
        run_sink() as sink,
        run_service(tmp_path, argv=argv, env=recorded(sink.endpoint, "* within 50ms", **quiet)) as service,
    ):
        service.call("POST", "/predict", json={})  # the first call imports what the later ones have
        trace_id, response = service.call("POST", "/predict", json={"inference_s": 1})
        assert response.status_code == 200
        service.stop()
        request = sink.request(trace_id)
    assert_tiled(request)
    attributes = request.entry.attributes
    assert (attributes["sla.breached"], attributes["sla.breach.stage"]) == (True, "inference")
    assert attributes["sla.breach.cause"] == "io_wait"
    assert "sleepy.py" in attributes["sla.breach.code"]
    assert [line for line in service.log.splitlines() if "stagetrace" in line or "Warning" in line] == []
