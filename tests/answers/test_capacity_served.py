"""`stagetrace capacity` of a real service, recorded while it is driven to its end: a pool of four workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backend.running import run_up
from cli.running import answered
from clients import step
from services import PYTHON, recorded, run_service

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = (1, 2, 3, 4, 6, 9, 13, 20)
TRIES = 3  # a busy machine may leave no throughput that follows the load


@pytest.mark.usefixtures("services")
def test_a_pool_driven_past_its_end(tmp_path: Path) -> None:
    """Its peak is what the clients themselves got at most; what is more in flight waits for the pool's four threads."""
    argv = [PYTHON, "-m", "uvicorn", "pool:app", "--port", "{port}"]
    for number in range(TRIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        with run_up(folder) as up, run_service(folder, argv=argv, env=recorded(up.url("grpc_port"))) as service:
            rates = step(int(service.url.rpartition(":")[2]), "/work", CLIENTS, 1.2)
        found = answered("capacity", "--store", folder / "data", "--route", "/work", "--since", "10m", code=None)
        assert found["requests"] >= sum(rates) * 1.2 - 1
        if found["identifiable"]:
            break
    assert found["identifiable"], found["why_not"]
    assert found["peak_per_s"] == pytest.approx(max(rates), rel=0.2)
    assert found["peak_per_s"] < 200 * 1.1
    assert found["utilisation"]["thread_pool"]["of"] == 4
    assert found["utilisation"]["thread_pool"]["pool"] == "executor"
    top = found["points"][-1]
    assert top["in_flight"] > 12
    assert top["waiting"] > top["in_flight"] / 2
    assert len(found["instances"]) == found["at_work"] == 1
