"""Run LitServe and MLServer in an environment of their own: MLServer does not work with the newest FastAPI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from backends import free_port
from environments import interpreter_once
from services import APPS, Service, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

READY_WITHIN_S = 240  # each worker process imports everything again, for seconds of a core
HAS_MLSERVER = sys.version_info < (3, 13)  # as it says itself
# MLServer 1.7.1's workers do not start under a newer uvloop: "There is no current event loop".
MLSERVER = ("mlserver==1.7.1", "uvloop<0.22") if HAS_MLSERVER else ()
PACKAGES = ("litserve==0.2.19", "scikit-learn>=1.5", *MLSERVER)


def python() -> str:
    """Return the interpreter of the environment; skip if it cannot be made, under CI fail instead."""
    return interpreter_once("servers", PACKAGES)


@contextmanager
def run_litserve(folder: Path, serving: str, env: Mapping[str, str]) -> Iterator[Service]:
    """Run `litserve_app` with LITSERVE=`serving`, and end all of its processes: its main one obeys SIGINT alone."""
    with run_service(
        folder,
        argv=[python(), "litserve_app.py"],
        env={"LITSERVE": serving, **env},
        ready="/health",
        within_s=READY_WITHIN_S,
    ) as service:
        try:
            yield service
        finally:
            if service.process.poll() is None:
                service.process.send_signal(signal.SIGINT)
                try:
                    service.process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(service.process.pid, signal.SIGKILL)


@contextmanager
def run_mlserver(
    folder: Path, models: Mapping[str, Mapping[str, object]], workers: int, env: Mapping[str, str]
) -> Iterator[tuple[Service, int]]:
    """Run MLServer with models (settings by name); yield the service and the port of gRPC."""
    if not HAS_MLSERVER:
        pytest.skip("MLServer 1.7.1 does not run on Python 3.13 and later")
    grpc_port = free_port()
    (folder / "metrics").mkdir()
    for name, settings in models.items():
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(
            json.dumps({"name": name, "parameters": {"version": "v7"}, **settings})
        )
    env = {
        "MLSERVER_GRPC_PORT": str(grpc_port),
        "MLSERVER_METRICS_PORT": str(free_port()),
        "MLSERVER_PARALLEL_WORKERS": str(workers),
        "MLSERVER_HOST": "127.0.0.1",
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "PYTHONPATH": str(APPS),
        **env,
    }
    start = "import os; os.environ['MLSERVER_HTTP_PORT'] = os.environ['PORT']; from mlserver.cli import main; main()"
    argv = [python(), "-c", start, "start", str(folder)]
    with run_service(folder, argv=argv, env=env, ready="/v2/health/ready", within_s=READY_WITHIN_S) as service:
        yield service, grpc_port
