"""`stagetrace bench` on a recorded service whose spans `stagetrace up` stores: where the excess lies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from backend.processes import Lines, started
from cli.running import COMMAND, cli, environment
from services import run_service

if TYPE_CHECKING:
    from pathlib import Path

FREE = [part for port in ("grpc", "http", "query-grpc", "query-http") for part in (f"--{port}-port", "0")]


@pytest.mark.usefixtures("services")
def test_the_excess_of_a_service_with_too_few_threads_is_its_queue(tmp_path: Path) -> None:
    """40 threads that sleep for 0.2 s manage 200 requests/s: of 400 the wait for a thread is the excess."""
    data = tmp_path / "data"
    with started([*COMMAND, "up", "--data", str(data), *FREE, "--json"], env=environment()) as up:
        ports = json.loads(Lines(up.stdout).next())
        settings = {
            "STAGETRACE": "1",
            "OTEL_SERVICE_NAME": "sleeper",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ports['grpc_port']}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        with run_service(tmp_path, app="causes", env=settings) as service:
            url = f"{service.url}/sleep?seconds=0.2"
            options = ("--rate", "400", "--duration", "2s", "--warmup", "0s", "--objective", "p90:250ms")
            done = cli("bench", url, *options, "--store", str(data), "--json")
        up.terminate()
        up.wait(30)
    assert done.returncode == 1, done.stderr
    made = json.loads(done.stdout)
    assert made["requests"] == made["joined"] == 800
    assert made["objective"]["verdict"] == "broken"
    assert {"queue", "handler"} <= set(made["stages"])
    assert made["stages"]["handler"]["p50"] >= 200
    assert max(made["excess"]["shares"], key=made["excess"]["shares"].__getitem__) == "queue"
    assert sum(made["excess"]["shares"].values()) == pytest.approx(1)
    assert "of the excess is queue (thread pool)" in made["sentence"]
