"""A breach says what was in the way of its request: in a real service, the line of another one's code."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from priority import ONE_AT_A_TIME, come_first
from services import APPS, PYTHON, Service, asgi_command, clean_environment, run_service, wsgi_command
from sink import SERVER, run_sink
from stagetrace.sources import socket_wait, stacks, thread_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sink import Received, Sink

LACKS = [lack for lack in (thread_cpu.lacks_waiting(), socket_wait.SOURCE.lacks, stacks.SOURCE.lacks) if lack]
pytestmark = [
    ONE_AT_A_TIME,
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(bool(LACKS), reason=str(LACKS)),
]
ENV = {
    "STAGETRACE_SOCKET_WAIT": "1",
    "STAGETRACE_SLA": "GET /health within 10s; GET /unhurried within 10s; * within 30ms",
}
WITHIN_S = 40  # of trying again: a busy machine adds causes of its own, what the code gets wrong is wrong each time
LONG, SHORT = 0.4, 0.001
ROUNDS = 2  # of the gRPC server
BLOCKED = 6  # of that whose handler blocks the loop
_names = itertools.count()


@pytest.fixture(scope="module")
def running(sink: Sink, folder: Path) -> Iterator[tuple[Service, Sink]]:
    argv = asgi_command("uvicorn", "in_the_way")
    with run_service(folder, argv=argv, env=sink.environment(**ENV)) as service:
        come_first(service.process.pid)
        yield service, sink


class Wanted(NamedTuple):
    """What a breach is to say: one of these causes, its file and function, and what is found in its evidence."""

    causes: str
    file: str
    function: str
    said: str

    def fits(self, entry: Received) -> bool:
        cause, code, evidence = (
            str(entry.attributes.get(f"sla.breach.{name}")) for name in ("cause", "code", "evidence")
        )
        line = re.fullmatch(r"(.*):\d+ in (.*)", code)
        is_there = line is not None and line.groups() == (self.file, self.function)
        return is_there and cause in self.causes.split() and re.search(self.said, evidence) is not None


def until(wanted: Wanted, ask: Callable[[], Received]) -> None:
    """Ask until a breach says what is wanted."""
    said: list[Any] = []
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        entry = ask()
        if wanted.fits(entry):
            return
        said.append([entry.attributes.get(f"sla.breach.{name}") for name in ("code", "evidence")])
    if os.getloadavg()[0] > (os.cpu_count() or 1) and all("waiting for a CPU" in str(why) for why in said):
        pytest.skip(f"the machine has too few CPUs for its load: {said[-1]}")
    raise AssertionError(said)


def ask_together(service: Service, folder: Path, first: str, second: str, count: int = 1) -> tuple[str, str]:
    """Make `count` requests, and one more as soon as all of them have begun; return the traces of one and that one."""
    signs = [folder / f"sign-{next(_names)}" for _ in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(service.call, "GET", first.format(sign=sign)) for sign in signs[1:]]
        while not all(sign.exists() for sign in signs[1:]):
            time.sleep(0.002)
        last, _ = service.call("GET", second.format(sign=signs[0]))
        return asked[0].result()[0], last


def path_of(name: str, seconds: float) -> str:
    return f"/{name}?sign={{sign}}&seconds={seconds}"


APP = "in_the_way.py"
ALL = r"\((\d+) of \1 samples\)"
IN_THE_WAY = {
    "socket": (
        (1, path_of("blocking", LONG), path_of("sleeping", SHORT)),
        Wanted("socket_wait", APP, "blocking", f"; the event loop stood at .* {ALL}"),
    ),
    "socket, behind a request in time": (
        (1, path_of("unhurried", LONG), path_of("sleeping", SHORT)),
        Wanted("socket_wait", APP, "unhurried", f"; the event loop stood at .* {ALL}"),
    ),
    "anyio": (
        (2, path_of("sleeping", LONG), path_of("sleeping", SHORT)),
        Wanted("pool_wait", APP, "sleeping", f"; the pool's threads stood at .* {ALL}"),
    ),
    "executor": (
        (2, path_of("executing", LONG), path_of("executing", SHORT)),
        Wanted("pool_wait", APP, "execute", f"; the pool's threads stood at .* {ALL}"),
    ),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_had_the_thread_that_a_request_waited_for(
    running: tuple[Service, Sink], tmp_path: Path, name: str
) -> None:
    (service, sink), ((count, first, second), wanted) = running, IN_THE_WAY[name]
    until(wanted, lambda: sink.request(ask_together(service, tmp_path, first, second, count)[1]).entry)


def test_what_blocked_the_event_loop_while_a_request_awaited(running: tuple[Service, Sink], tmp_path: Path) -> None:
    service, sink = running
    first, second = path_of("awaiting", 0.1), path_of("blocking", LONG)
    until(
        Wanted("socket_wait", APP, "blocking", "; the event loop stood at"),
        lambda: sink.request(ask_together(service, tmp_path, first, second)[0]).entry,
    )


ALONE = {
    "/locked?seconds=0.4": Wanted(
        "lock_wait", APP, "locked", r"; another thread computed at .* in hold .*; at in_the_way.py:\d+ in locked "
    ),
    "/parsing": Wanted("compute cpu_wait", APP, "parsing", "; the GIL was held for .*; at in_the_way"),
    "/waiting-for-the-gil?seconds=0.02": Wanted(
        "lock_wait cpu_wait",
        APP,
        "waiting_for_the_gil",
        r"; the GIL was held for .* by another thread, at .* in parsing;",
    ),
    "/collecting": Wanted("gc", APP, "collecting", r"; garbage was collected for \d+ ms at"),
}


@pytest.mark.parametrize("path", ALONE)
def test_what_kept_a_request_from_going_on(running: tuple[Service, Sink], path: str) -> None:
    service, sink = running
    until(ALONE[path], lambda: sink.request(service.call("GET", path)[0]).entry)


WSGI = {
    "gunicorn": Wanted("socket_wait", "holding_wsgi.py", "hold", f"; its thread stood at .* {ALL}"),
    "gunicorn gthread": Wanted("pool_wait", "holding_wsgi.py", "hold", f"; the pool's threads stood at .* {ALL}"),
}


@pytest.mark.parametrize("server", WSGI)
def test_what_had_the_thread_of_a_wsgi_server(sink: Sink, tmp_path: Path, server: str) -> None:
    argv = [part.replace("40", "1") for part in wsgi_command(server, "holding_wsgi")]
    first = f"/hold/still?seconds={LONG}&sign={{sign}}"
    with run_service(tmp_path, argv=argv, env=sink.environment(**ENV)) as service:
        come_first(service.process.pid)
        until(WSGI[server], lambda: sink.request(ask_together(service, tmp_path, first, "/quick")[1]).entry)


def test_what_had_the_threads_of_a_grpc_server() -> None:
    wanted = Wanted("pool_wait", "in_the_way_grpc.py", "sleep", f"; the pool's threads stood at .* {ALL}")
    with run_sink() as sink:
        env = clean_environment() | sink.environment(**ENV)
        subprocess.run([PYTHON, "in_the_way_grpc.py"], cwd=APPS, env=env, check=True, timeout=120)
        entries = responded(sink.wait_for(lambda spans: len(responded(spans)) == ROUNDS))
    assert any(map(wanted.fits, entries)), [entry.attributes for entry in entries]


def test_an_rpc_waits_while_another_one_blocks_the_loop() -> None:
    """Before its handler, or with its response on its way. Neither client is slow."""
    with run_sink() as sink:
        env = clean_environment() | sink.environment(**ENV)
        subprocess.run([PYTHON, "blocked_loop_grpc.py"], cwd=APPS, env=env, check=True, timeout=120)
        entries = entries_in(sink.wait_for(lambda spans: len(entries_in(spans)) == 2 * BLOCKED))
    for stage, slow in (("network.receive", "slow_upload"), ("network.send", "slow_download")):
        waited = [one.attributes for one in entries if one.attributes[f"ml.stage.{stage}.ms"] > 80]
        assert any(
            one["sla.breach.part.socket_wait_ms"] > 80 and one.get(f"sla.breach.part.{slow}_ms", 0) < 40
            for one in waited
            if "sla.breach.part.socket_wait_ms" in one
        ), waited


def entries_in(spans: list[Received]) -> list[Received]:
    return [span for span in spans if span.kind == SERVER]


def responded(spans: list[Received]) -> list[Received]:
    return [span for span in spans if span.kind == SERVER and span.name == "ml.Scorer/Respond"]
