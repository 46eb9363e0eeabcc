"""Services that leave SIGTERM alone lose no finished request to it, and end as they do untraced."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from backend.processes import until
from e2e.ending import booted, check, environment
from environments import interpreter_with
from services import PYTHON, Service, run_service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otlp.receiver import Receiver

pytestmark = [
    pytest.mark.usefixtures("services"),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a main thread that waits for no server is left"),
]
TIMES = re.compile(rb'"(average_)?duration":[^,]+')  # of Gradio's answers
KILLED_AFTER_S = 10  # by `docker stop`; systemd waits for 90 s

HYPERCORN = ["ml:app", "--bind", "127.0.0.1:{port}", "--workers"]
# Of one request: the method, the path, what more there is.
ML: tuple[str, str, dict[str, Any]] = ("POST", "/predict", {"json": {}})
PLAIN: tuple[str, str, dict[str, Any]] = ("GET", "/health", {})


class Ended(NamedTuple):
    """What a service has done, to somebody who knows nothing of traces."""

    answers: list[tuple[int, bytes]]
    code: int
    workers: list[str]  # exit codes
    went_on: bool


def served_and_ended(
    folder: Path,
    argv: list[str],
    env: Mapping[str, str] | None,
    request: tuple[str, str, dict[str, Any]],
    end: Callable[[int, int], None],
    workers: int = 0,
    **more: Any,
) -> tuple[Ended, set[str]]:
    """Run a service, ask it ten times, and end it; return what it did, and the traces of its answers."""
    folder.mkdir()
    method, path, sent = request
    with run_service(folder, argv=argv, env=env, **more) as service:
        if env:
            booted(service, workers)
        answered = dict(service.call(method, path, **sent) for _ in range(10))
        end(service.process.pid, signal.SIGTERM)
        code = wait_or_kill(service)
        log = service.log
    print(log)  # noqa: T201 -- shown where the test fails
    answers = [(response.status_code, TIMES.sub(b"", response.content)) for response in answered.values()]
    assert {status for status, _ in answers} == {200}
    ended = re.findall(r"a worker ended with (-?\d+)", log)
    return Ended(answers, code, ended, "went on" in log), set(answered)


def wait_or_kill(service: Service) -> int:
    """Return the exit code of a service that was told to end; it gets as long as most managers of services give it."""
    try:
        return service.process.wait(KILLED_AFTER_S)
    except subprocess.TimeoutExpired:
        os.killpg(service.process.pid, signal.SIGKILL)
        return service.process.wait()


def all_of_them_and_workers_twice(group: int, number: int) -> None:
    """Signal a process group, and all but its first process once more."""
    names = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    workers = [int(name) for name in names if int(name) != group and _is_in(int(name), group)]
    os.killpg(group, number)
    time.sleep(0.02)  # or both would come as one
    for worker in workers:
        with suppress(ProcessLookupError):  # untraced it is over
            os.kill(worker, number)


def _is_in(process: int, group: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getpgid(process) == group
    return False


def same_with_and_without_us(receiver: Receiver, folder: Path, argv: list[str], *args: Any, **more: Any) -> Ended:
    """Check that a service does the same traced, and delivers all; return what it does."""
    traced, answered = served_and_ended(folder / "traced", argv, environment(receiver), *args, **more)
    untraced, _ = served_and_ended(folder / "untraced", argv, None, *args, **more)
    assert traced == untraced
    check(receiver, answered)
    return traced


@pytest.mark.parametrize(
    ("server", "wait"),
    [
        pytest.param("uvicorn", "join", marks=pytest.mark.smoke),
        ("uvicorn", "sleep"),
        ("uvicorn", "event"),
        ("uvicorn", "compute"),
        ("wsgiref", "join"),
        ("wsgiref", "serve"),
        ("handle_request", "serve"),
        ("grpc beside", "sleep"),
    ],
)
def test_a_script_that_serves_and_waits(server: str, wait: str, receiver: Receiver, tmp_path: Path) -> None:
    """As Gradio does, or bottle."""
    argv = [PYTHON, "in_a_thread.py", server, wait]
    request = ML if server == "uvicorn" else PLAIN
    ended = same_with_and_without_us(receiver, tmp_path, argv, request, os.kill)
    assert (ended.code, ended.went_on) == (-signal.SIGTERM, False)


@pytest.mark.parametrize("workers", [0, 2], ids=["alone", "2 workers"])
def test_hypercorn_as_systemd_ends_it(workers: int, receiver: Receiver, tmp_path: Path) -> None:
    """SIGTERM for all processes; workers, which do not handle it, get another one from their parent."""
    argv = [PYTHON, *(["hypercorn_joined.py"] if workers else ["-m", "hypercorn"]), *HYPERCORN, str(workers)]
    end = all_of_them_and_workers_twice if workers else os.killpg
    untraced, _ = served_and_ended(tmp_path / "untraced", argv, None, ML, end)
    assert untraced.workers == [str(-signal.SIGTERM)] * workers
    for native in "10":  # in C, and in Python
        env = environment(receiver, STAGETRACE_NATIVE=native)
        traced, answered = served_and_ended(tmp_path / native, argv, env, ML, end, workers)
        assert traced == untraced
        check(receiver, answered)


def test_without_a_receiver_it_ends_before_it_is_killed(receiver: Receiver, tmp_path: Path) -> None:
    """By the signal, and it says what is lost."""
    receiver.stop()
    argv = [PYTHON, "in_a_thread.py", "uvicorn", "sleep"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        service.call("POST", "/predict", json={})
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        code = service.process.wait(60)
        print(f"ended after {time.monotonic() - started:.1f} s")  # noqa: T201 -- a figure, not a promise
        assert code == -signal.SIGTERM
        assert "not all spans were delivered" in service.log


def test_a_forked_child_that_serves_delivers_its_own(receiver: Receiver, tmp_path: Path) -> None:
    """The parent has served before, and one child never does: SIGTERM ends that at once."""
    (tmp_path / "forking.py").write_text(FORKING)
    argv = [PYTHON, str(tmp_path / "forking.py")]
    with run_service(tmp_path, argv=argv, env=environment(receiver), ready="/") as service:
        parent = service.call("GET", "/")[0]
        service.process.send_signal(signal.SIGUSR1)
        until(lambda: "serves" in service.log)
        child = service.call("GET", "/")[0]
        assert service.stop(signal.SIGUSR2) == 0
        assert "idle ended by 15" in service.log
        assert "serving ended by 15" in service.log
    check(receiver, {parent, child})


FORKING = """
import os, signal, sys, threading, time
from wsgiref.simple_server import make_server

def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]

server = make_server("127.0.0.1", int(os.environ["PORT"]), app)
server.timeout = 0.1
forks, ends = threading.Event(), threading.Event()
signal.signal(signal.SIGUSR1, lambda *_: forks.set())
signal.signal(signal.SIGUSR2, lambda *_: ends.set())
while not forks.is_set():
    server.handle_request()
children = {"idle": os.fork()}
if not children["idle"]:
    time.sleep(3600)
children["serving"] = os.fork()
if not children["serving"]:
    print("serves", flush=True)
    while True:
        server.handle_request()
ends.wait()
for name, child in children.items():
    os.kill(child, signal.SIGTERM)
    print(name, "ended by", -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_forked_process_of_multiprocessing_delivers_what_it_serves(receiver: Receiver, tmp_path: Path) -> None:
    """The parent has served before."""
    (tmp_path / "forking.py").write_text(PROCESS)
    argv = [PYTHON, str(tmp_path / "forking.py")]
    with run_service(tmp_path, argv=argv, env=environment(receiver), ready="/") as service:
        until(lambda: "serves" in service.log)
        trace_id, _ = service.call("GET", "/")
        assert service.process.wait(60) == 0
    check(receiver, {trace_id})


PROCESS = """
import multiprocessing, os
from wsgiref.simple_server import make_server

def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]

def serve():
    print("serves", flush=True)
    server.handle_request()

server = make_server("127.0.0.1", int(os.environ["PORT"]), app)
server.handle_request()
child = multiprocessing.get_context("fork").Process(target=serve)
child.start()
child.join()
"""


@pytest.mark.heavy
def test_gradio(receiver: Receiver, tmp_path: Path) -> None:
    """It has uvicorn in a thread, while the main thread sleeps."""
    argv = [interpreter_with(("gradio",)), "gradio_app.py"]
    ended = same_with_and_without_us(
        receiver,
        tmp_path,
        argv,
        ("POST", "/gradio_api/run/double", {"json": {"data": [21]}}),
        os.kill,
        ready="/config",
        within_s=300,
    )
    assert ended.code == -signal.SIGTERM
