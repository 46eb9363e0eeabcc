"""`stagetrace bench` on a recorded service whose spans `stagetrace up` stores: where the excess lies."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from backend.running import run_up
from cli.running import answered, cli
from services import recorded, run_service

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import CompletedProcess


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


@pytest.mark.usefixtures("services")
def test_the_next_commands_are_of_these_runs_alone(tmp_path: Path) -> None:
    """The command of a comparison has the requests of both runs, and no other."""
    options = ("--rate", "50", "--duration", "1s", "--warmup", "0s")
    with run_up(tmp_path) as up:
        store, env = up.ready["data"], recorded(up.url("grpc_port"), OTEL_BSP_SCHEDULE_DELAY="200")
        home = {"XDG_DATA_HOME": str(tmp_path / "home")}
        with run_service(tmp_path, app="causes", env=env) as service:
            url = f"{service.url}/sleep?seconds=0.01"
            (alone,) = _next(cli("bench", url, *options, "--store", store, "--save", "before", **home))
            compare, why = _next(cli("bench", url, *options, "--store", store, "--against", "before", **home))
        compared, late = (answered(*one, "--json") for one in (compare, why))
    assert alone[:4] == ["why", "--store", store, "--since"]
    assert (compared["a"]["requests"], compared["b"]["requests"], late["requests"]) == (50, 50, 50)


def _next(done: CompletedProcess[str]) -> list[list[str]]:
    """Return the arguments of the commands that an answer names as next."""
    return [shlex.split(one)[2:] for one in done.stdout.splitlines() if one.startswith("Next: ")]
