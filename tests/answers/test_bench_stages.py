"""`stagetrace bench` on a recorded service whose spans `stagetrace up` stores: where the excess lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backend.running import run_up
from cli.running import answered
from services import recorded, run_service

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("services")
def test_the_excess_of_a_service_with_too_few_threads_is_its_queue(tmp_path: Path) -> None:
    """40 threads that sleep for 0.2 s manage 200 requests/s: of 400 the wait for a thread is the excess."""
    options = ("--rate", "400", "--duration", "2s", "--warmup", "0s", "--objective", "p90:250ms")
    with run_up(tmp_path) as up:
        env = recorded(up.url("grpc_port"), OTEL_BSP_SCHEDULE_DELAY="200")
        with run_service(tmp_path, app="causes", env=env) as service:
            url = f"{service.url}/sleep?seconds=0.2"
            made = answered("bench", url, *options, "--store", up.ready["data"], code=1)
    assert made["requests"] == made["joined"] == 800
    assert made["objective"]["verdict"] == "broken"
    assert {"queue", "handler"} <= set(made["stages"])
    assert made["stages"]["handler"]["p50"] >= 200
    assert max(made["excess"]["shares"], key=made["excess"]["shares"].__getitem__) == "queue"
    assert sum(made["excess"]["shares"].values()) == pytest.approx(1)
    assert "of the excess is queue (thread pool)" in made["sentence"]
