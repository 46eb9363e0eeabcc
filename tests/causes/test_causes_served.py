"""Each cause made by real means in a real service, and named on the breach that leaves it."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from priority import ONE_AT_A_TIME, come_first
from services import PYTHON, Service, asgi_command, run_service
from stagetrace.sources import socket_wait, thread_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sink import Received, Sink

pytestmark = [
    ONE_AT_A_TIME,
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(
        thread_cpu.lacks_waiting() is not None or socket_wait.SOURCE.lacks is not None,
        reason="the kernel tells too little",
    ),
]
ENV = {
    "STAGETRACE_SOCKET_WAIT": "1",
    "STAGETRACE_WIRE": "1",
    "STAGETRACE_SLA": (
        "GET /predict within 20ms; GET /health within 10s; "
        "POST /scored-upload within 170ms; GET /asked-and-scored within 170ms; * within 30ms"
    ),
}
WITHIN_S = 20  # of trying again: a busy machine adds causes of its own, what the code gets wrong is wrong each time
BURNER = "while True: sum(range(10000))"


@pytest.fixture(scope="module")
def running(sink: Sink, folder: Path) -> Iterator[tuple[Service, Sink]]:
    with run_service(folder, argv=asgi_command("uvicorn", "causes"), env=sink.environment(**ENV)) as service:
        service.call("GET", "/slow?rows=1")  # the first call of the model
        come_first(service.process.pid)
        yield service, sink


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[None]:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work)
        yield


@contextmanager
def burners(count: int) -> Iterator[None]:
    # A session for each: the kernel shares CPUs among sessions first.
    running = [subprocess.Popen([PYTHON, "-c", BURNER], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def breach(running: tuple[Service, Sink], method: str, path: str, **kwargs: Any) -> Received:
    service, sink = running
    request, response = sink.traced(service, method, path, **kwargs)
    assert response.status_code == 200
    return request.entry


def adds_up(entry: Received) -> bool:
    """Return whether the parts together are the duration, as far as the clocks of threads agree with the wall clock."""
    parts: dict[str, float] = {
        key: took for key, took in entry.attributes.items() if key.startswith("sla.breach.part.")
    }
    # The time of a collection is by the wall clock, and the thread may have waited for a CPU within it.
    if "sla.breach.part.gc_ms" in parts:
        return True
    whole = (entry.end - entry.start) / 1e6
    return abs(sum(parts.values()) - whole) <= max(2, 0.05 * whole)


def named(word: str, ask: Callable[[], Received], at: str | None = None) -> Received:
    """Return a breach that has this cause and whose parts add up, as on a machine that does nothing else.

    Its line of code is in the function `at`, if that is given.
    """
    said: list[Any] = []
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        entry = ask()
        is_there = at is None or str(entry.attributes.get("sla.breach.code")).endswith(f" in {at}")
        if entry.attributes.get("sla.breach.cause") == word and is_there and adds_up(entry):
            assert re.search(r"\d ms", str(entry.attributes["sla.breach.evidence"]))
            return entry
        said.append(entry.attributes.get("sla.breach.evidence"))
    if os.getloadavg()[0] > (os.cpu_count() or 1) and all("waiting for a CPU" in str(why) for why in said):
        pytest.skip(f"the machine has too few CPUs for its load: {said[-1]}")
    raise AssertionError(said)


def test_computing(running: tuple[Service, Sink]) -> None:
    entry = named("compute", lambda: breach(running, "GET", "/slow?rows=40"), at="compute")
    # Garbage may be collected in it.
    assert sum(entry.attributes.get(f"sla.breach.part.{part}_ms", 0) for part in ("compute", "gc")) >= 80
    assert entry.attributes["stagetrace.cpu.time_ms"] >= 80
    assert "ms computing" in entry.attributes["sla.breach.evidence"]


def test_a_machine_without_enough_cpus(running: tuple[Service, Sink]) -> None:
    """So many others want the CPUs that waiting outlasts computing, though the kernel favours who has slept."""
    come_first(running[0].process.pid, first=False)
    try:
        with burners(12 * (os.cpu_count() or 1)):
            entries = [named("cpu_wait", lambda: breach(running, "GET", "/slow?rows=12")) for _ in range(5)]
    finally:
        come_first(running[0].process.pid)
    off = []
    for entry in entries:
        took = [entry.attributes[f"stagetrace.cpu.{part}_ms"] for part in ("time", "wait", "blocked")]
        assert took[1] > took[0]
        inference = entry.attributes["ml.stage.inference.ms"]
        off.append(abs(sum(took) - inference) / max(1, 0.02 * inference))
    assert sorted(off)[2] <= 1  # one whose thread lost the CPU in the middle of a reading may be off


def test_a_rival_that_holds_the_gil(running: tuple[Service, Sink]) -> None:
    """Four rivals: the thread waits four times as long for them as it computes, however few CPUs there are."""
    entry = named("lock_wait", lambda: breach(running, "GET", "/rival?cpu_s=0.02&rivals=4"), at="compute")
    assert for_gil(entry) >= 0.7


def test_a_rival_beside_another_wait_is_told_from_one_that_holds_the_gil(running: tuple[Service, Sink]) -> None:
    named("io_wait", lambda: breach(running, "GET", "/rival?sleep_s=0.2"), at="rival")


def for_gil(entry: Received) -> float:
    """Return how much of its lock_wait waiting for the GIL explains, by the evidence."""
    attributes = entry.attributes
    said = re.search(r"explains at most (\d+\.\d)", attributes["sla.breach.evidence"])
    assert said, attributes
    return float(said[1]) / float(attributes["sla.breach.part.lock_wait_ms"])


def test_garbage_collection(running: tuple[Service, Sink]) -> None:
    breach(running, "GET", "/collect")  # makes the heap
    entry = named("gc", lambda: breach(running, "GET", "/collect"), at="collect")
    assert entry.attributes["stagetrace.gc.pause_ms"] > 10


def test_a_sleep(running: tuple[Service, Sink]) -> None:
    named("io_wait", lambda: breach(running, "GET", "/sleep?seconds=0.2"), at="sleep")


def test_a_sleep_of_a_coroutine(running: tuple[Service, Sink]) -> None:
    named("io_wait", lambda: breach(running, "GET", "/awaiting?seconds=0.2"), at="awaiting")


def test_a_server_that_no_hook_knows(running: tuple[Service, Sink]) -> None:
    def serve(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            time.sleep(0.2)
            connection.sendall(b"answer")

    def ask() -> Received:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            meanwhile(lambda: serve(server)),
        ):
            return breach(running, "GET", f"/asking?port={server.getsockname()[1]}")

    named("io_wait", ask, at="asking")


def test_a_database_that_is_locked(running: tuple[Service, Sink], tmp_path: Path) -> None:
    file = str(tmp_path / "scores.db")

    def ask() -> Received:
        with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS scores (score INTEGER)")
            connection.execute("BEGIN EXCLUSIVE")

            def commit() -> None:
                time.sleep(0.3)
                connection.execute("COMMIT")

            with meanwhile(commit):
                return breach(running, "GET", f"/write?file={file}")

    named("io_wait", ask, at="write")


def test_a_subprocess(running: tuple[Service, Sink]) -> None:
    named("io_wait", lambda: breach(running, "GET", "/run?seconds=0.2"), at="run")


def test_an_event_loop_without_the_gil_is_no_slow_client(running: tuple[Service, Sink]) -> None:
    """Whatever the breaches are named for: the client sends and takes a few bytes, at once."""
    running[0].call("POST", "/compete?count=3")
    try:
        causes = Counter(
            breach(running, "POST", "/echo", content=b"x" * 15).attributes.get("sla.breach.cause") for _ in range(40)
        )
    finally:
        running[0].call("POST", "/compete?count=0")
    assert causes["slow_upload"] == causes["slow_download"] == 0, causes


def test_a_held_event_loop(running: tuple[Service, Sink]) -> None:
    def ask() -> Received:
        with meanwhile(lambda: running[0].call("GET", "/hold?seconds=0.3")):
            time.sleep(0.05)
            return breach(running, "GET", "/predict?rows=1")

    named("socket_wait", ask, at="hold")


def test_a_slow_uploader(running: tuple[Service, Sink]) -> None:
    def trickle() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x"
            time.sleep(0.05)

    named("slow_upload", lambda: breach(running, "POST", "/upload", content=trickle()), at="upload")


def test_the_stage_is_the_one_in_which_the_cause_lies(running: tuple[Service, Sink]) -> None:
    """The model takes longer, and what is allowed for."""

    def trickle() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x"
            time.sleep(0.025)

    entry = named("slow_upload", lambda: breach(running, "POST", "/scored-upload?rows=60", content=trickle()))
    assert entry.attributes["sla.breach.stage"] == "network.receive"
    assert str(entry.attributes["sla.breach.evidence"]).startswith("network.receive took ")
    entry = named("io_wait", lambda: breach(running, "GET", "/asked-and-scored?rows=60&seconds=0.1"))
    assert entry.attributes["sla.breach.stage"] == "preprocess"
    assert "stagetrace.stage(" in str(entry.attributes["sla.breach.evidence"])


def test_a_body_that_lies_in_the_kernel_while_the_event_loop_is_held_is_no_slow_upload(
    running: tuple[Service, Sink],
) -> None:
    def ask() -> Received:
        service, sink = running
        trace_id = os.urandom(16).hex()
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            head = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\nconnection: close\r\n"
            client.sendall(f"{head}traceparent: 00-{trace_id}-{'b' * 16}-01\r\n\r\n".encode())
            time.sleep(0.05)
            with meanwhile(lambda: service.call("GET", "/hold?seconds=0.3")):
                time.sleep(0.05)
                client.sendall(b"x" * 15)
                while client.recv(1_000):
                    pass
        return sink.request(trace_id).entry

    entry = named("socket_wait", ask, at="hold")
    assert entry.attributes["sla.breach.part.socket_wait_ms"] > 100


def test_a_reader_that_does_not_read(running: tuple[Service, Sink]) -> None:
    def ask() -> Received:
        service, sink = running
        trace_id = os.urandom(16).hex()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.connect(("127.0.0.1", service.port))
            parent = f"traceparent: 00-{trace_id}-{'b' * 16}-01"
            client.sendall(f"GET /download HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{parent}\r\n\r\n".encode())
            time.sleep(0.3)
            received = 0
            while received < 400 * 65_536 - 300_000:  # the rest is more than its buffer, less than the server's
                received += len(client.recv(1 << 20))
            return sink.request(trace_id).entry

    entry = named("slow_download", ask)
    assert re.search(
        r"waiting for the client to take the response.*; round trip to the client [\d.]+ ms",
        entry.attributes["sla.breach.evidence"],
    )
    assert entry.attributes["stagetrace.network.unacked_bytes"] > 1_000


def test_a_larger_input_than_usual_and_then_a_full_pool(running: tuple[Service, Sink]) -> None:
    """The pool last, since it stays small."""
    for _ in range(60):
        running[0].call("GET", "/predict?rows=1")
    entry = named("input_size", lambda: breach(running, "GET", "/predict?rows=30"), at="compute")
    assert "an input of 30 where 1 is usual" in entry.attributes["sla.breach.evidence"]
    running[0].call("GET", "/one-thread")

    def ask() -> Received:
        with meanwhile(lambda: running[0].call("GET", "/sleep?seconds=0.3")):
            time.sleep(0.05)
            return breach(running, "GET", "/predict?rows=1")

    named("pool_wait", ask, at="sleep")


def test_a_first_call(sink: Sink, tmp_path: Path) -> None:
    with run_service(tmp_path, argv=asgi_command("uvicorn", "causes"), env=sink.environment(**ENV)) as service:
        come_first(service.process.pid)
        first = breach((service, sink), "GET", "/slow?rows=30")
        assert first.attributes["ml.cold_start"] is True
        assert first.attributes["sla.breach.cause"] in ("cold_start", "cpu_wait")  # the latter on a busy machine
        named("compute", lambda: breach((service, sink), "GET", "/slow?rows=30"))
