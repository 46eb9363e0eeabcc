"""`stagetrace capacity` of a real service, recorded while it is driven to its end: a pool of four workers."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.running import run_up
from cli.running import answered, printed
from clients import step
from services import GUNICORN, PYTHON, recorded, run_service

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


@pytest.mark.usefixtures("services")
def test_the_cpus_are_those_of_all_workers(tmp_path: Path) -> None:
    """As the kernel counts them, without their start: no model is called, and two processes share the requests."""
    requests, each_s = 80, 0.04
    argv = [part.format(app="computing", port="{port}") for part in (*GUNICORN, "-w", "2", "{app}:app")]
    with run_up(tmp_path) as up, run_service(tmp_path, argv=argv, env=recorded(up.url("grpc_port"))) as service:
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(lambda _: service.client.get("/"), range(requests)))
        parent = service.process.pid
        workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        used_s = sum(_cpu_s(worker) for worker in workers)
    found = answered("capacity", "--store", tmp_path / "data", "--since", "10m", code=None)
    seconds = (found["until_unix_nano"] - found["since_unix_nano"]) / 1e9
    assert len(workers) == 2
    assert 0.7 * requests * each_s < found["utilisation"]["cpu"]["mean"] * seconds < used_s
    text = printed("capacity", "--long", "--store", tmp_path / "data", "--since", "10m")
    assert "`stagetrace bench http://HOST:PORT/PATH --find p99:LIMIT`" in text
    assert re.search(r"^cpu, CPUs +[\d.]+ +[\d.]+ ", text, re.MULTILINE), text


def _cpu_s(pid: str) -> float:
    """Return how long a process has computed, by its own figures."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
