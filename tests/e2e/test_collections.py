"""Recording leaves next to nothing for the garbage collector, whose full collections are a service's longest stops.

One request after the other to a real service, so that the number of collections is the same on any machine: CPython
collects when as many more objects were made than went, which is what a request leaves behind (docs/decisions/009).
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backend.processes import until
from services import AT_END, PYTHON, Service, recorded, run_service
from sink import run_sink

if TYPE_CHECKING:
    from collections.abc import Mapping


pytestmark = pytest.mark.usefixtures("services")

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
SERVICE = [PYTHON, "-m", "uvicorn", "--app-dir", str(BENCHMARKS), "app_gc:app", "--port", "{port}", "--no-access-log"]
REQUESTS = 1_000
A_FEW = 5  # young collections in that many requests
SOME = 50  # objects: what a connection leaves as it closes; an object for each request would be 1,000


@dataclass(frozen=True)
class Collected:
    """By generation, the collections during the requests; and the objects that only the collector could free."""

    collections: list[float]
    garbage: float


def figures(file: Path) -> tuple[float, ...]:
    return struct.unpack("9d", file.read_bytes())


def collect_fully(service: Service, file: Path) -> None:
    before = figures(file)[2]
    service.process.send_signal(signal.SIGUSR1)
    until(lambda: figures(file)[2] != before, service.process)


def ask(service: Service, requests: int) -> None:
    port = service.url.rpartition(":")[2]
    options = f"--port {port} --pid {service.process.pid} --connections 1 --warm-up 0 --requests {requests}"
    argv = [PYTHON, str(BENCHMARKS / "load.py"), *options.split()]
    done = subprocess.run(argv, check=True, capture_output=True)
    assert len(json.loads(done.stdout)["latencies_s"]) == requests


def collected(folder: Path, env: Mapping[str, str]) -> Collected:
    """Run the service and make the requests, from one full collection to another."""
    file = folder / "gc"
    with run_service(folder, argv=SERVICE, env={"BENCH_GC_FILE": str(file), **env}) as service:
        ask(service, 500)
        collect_fully(service, file)
        before = figures(file)
        ask(service, REQUESTS)
        after = figures(file)
        collect_fully(service, file)
        garbage = sum(figures(file)[6:]) - sum(before[6:])
    return Collected([now - then for now, then in zip(after[:3], before[:3], strict=True)], garbage)


def test_a_traced_service_collects_hardly_more_often_than_an_untraced_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """And what recording makes of a request goes by itself: no request leaves a cycle for the collector to find."""
    untraced = collected(tmp_path_factory.mktemp("untraced"), {})
    with run_sink() as sink:
        env = recorded(sink.endpoint, "* within 60s", **AT_END)
        traced = collected(tmp_path_factory.mktemp("traced"), env)
        assert len(sink.traces()) > REQUESTS  # those of the warm-up, too
    assert traced.collections[0] <= untraced.collections[0] + A_FEW, (untraced, traced)
    assert traced.collections[1] <= untraced.collections[1] + 1, (untraced, traced)
    assert traced.collections[2] <= untraced.collections[2], (untraced, traced)
    assert traced.garbage <= untraced.garbage + SOME, (untraced, traced)
