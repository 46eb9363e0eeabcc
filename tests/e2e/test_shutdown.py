"""However a service ends, each finished request is delivered; with nobody to deliver to, the end comes all the same."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from grpc import StatusCode

from otlp.receiver import Receiver, Reply, run_receiver
from services import APPS, PYTHON, Service, run_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER = 2
GUNICORN = [PYTHON, "-m", "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"]
ENDS_WITHIN_S = 90  # after half a minute gunicorn kills a worker that has not ended
UVICORN = [PYTHON, "-m", "uvicorn", "ml:app", "--port", "{port}"]

pytestmark = pytest.mark.usefixtures("services")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


def environment(receiver: Receiver, **more: str) -> dict[str, str]:
    return {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": "* within 1s",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc,
        # Far longer than the test: what arrives was delivered because the end came.
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        **more,
    }


def entries(receiver: Receiver) -> list[str]:
    return [span.trace_id.hex() for span in receiver.spans() if span.kind == SERVER]


def ask(service: Service, count: int) -> set[str]:
    """Make requests, four at a time; return the traces of those that were answered, which must be all."""
    answered: set[str] = set()
    left = list(range(count))

    def work() -> None:
        while left:
            with suppress(IndexError):
                left.pop()
                while True:  # a worker that ends refuses a connection; the request then never was
                    with suppress(httpx.TransportError):
                        trace_id, response = service.call("POST", "/predict", json={})
                        assert response.status_code == 200
                        answered.add(trace_id)
                        break

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) == count
    return answered


def booted(service: Service, workers: int) -> None:
    """Wait until so many workers are ready: one that has just been forked hears of no signal, traced or not."""
    wait_for(lambda: service.log.count("recording in process") >= workers)


def stop(service: Service, number: int = signal.SIGTERM) -> int:
    """Signal the service and wait for its end, which may take as long as its own bounds allow; return the exit code."""
    service.process.send_signal(number)
    return ended(service)


def ended(service: Service) -> int:
    """Wait for the service's end; return the exit code."""
    code = service.process.wait(ENDS_WITHIN_S)
    print(service.log)  # noqa: T201 -- shown where the test fails
    return code


def hang(client: socket.socket) -> None:
    """Ask for what takes a minute, and wait until the server at the other end has read that."""
    body = b'{"inference_s": 60}'
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    client.sendall(head % len(body) + body)
    wait_for(lambda: _is_read(*(name[1] for name in (client.getpeername(), client.getsockname()))))


def _is_read(port: int, client: int) -> bool:
    """Return whether the server at `port` has accepted the connection from the port `client`, and read all."""
    return any(is_read for other, is_read in _accepted(port) if other == client)


def holds_connections(service: Service) -> bool:
    """Return whether the service has connections that it has not closed."""
    return any(client for client, _ in _accepted(int(service.url.rpartition(":")[2])))


def _accepted(port: int) -> Iterator[tuple[int, bool]]:
    """Yield the client's port (0: the listening socket itself) of each socket at `port`, and whether all is read."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, _, _, _, _, inode, *_ = line.split()
        if int(local[-4:], 16) == port and inode != "0":
            yield int(remote[-4:], 16), int(queues.partition(":")[2], 16) == 0


def check(receiver: Receiver, answered: set[str]) -> None:
    """All that was answered was delivered, once."""
    receiver.wait_for(lambda r: answered <= set(entries(r)))
    delivered = [trace for trace in entries(receiver) if trace in answered]
    assert len(delivered) == len(answered)


def test_workers_that_are_recycled_deliver_everything(receiver: Receiver, tmp_path: Path) -> None:
    argv = [*GUNICORN, "-w", "2", "--max-requests", "15", "ml:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 100)
        wait_for(lambda: service.log.count("Booting worker") > 2)  # one was recycled
        booted(service, service.log.count("Booting worker"))
        stop(service)
    check(receiver, answered)


@pytest.mark.parametrize(
    ("argv", "workers"),
    [
        pytest.param(UVICORN, 1, marks=pytest.mark.smoke),
        ([*UVICORN, "--workers", "2"], 2),
        ([*GUNICORN, "-w", "2", "ml:app"], 2),
    ],
    ids=["uvicorn", "uvicorn --workers", "gunicorn"],
)
def test_ctrl_c_delivers_everything(argv: list[str], workers: int, receiver: Receiver, tmp_path: Path) -> None:
    """As a terminal does it: SIGINT for all processes."""
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 30)
        booted(service, workers)
        os.killpg(service.process.pid, signal.SIGINT)
        ended(service)
    check(receiver, answered)


def test_a_reload_delivers_what_was_before_and_after(receiver: Receiver, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(APPS / "ml.py", app)
    argv = [*UVICORN, "--reload", "--reload-dir", str(app), "--app-dir", str(app)]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 20)
        before = service.call("GET", "/health")[1].json()["pid"]
        (app / "ml.py").write_text((app / "ml.py").read_text() + "\n# changed\n")
        wait_for(lambda: _pid(service) not in (before, None))
        answered |= ask(service, 20)
        stop(service)
    check(receiver, answered)


def _pid(service: Service) -> int | None:
    with suppress(httpx.TransportError):
        pid: int = service.call("GET", "/health")[1].json()["pid"]
        return pid
    return None


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_a_request_that_hangs_until_gunicorn_kills_its_worker_takes_nothing_with_it(
    preload: list[str], receiver: Receiver, tmp_path: Path
) -> None:
    """After its graceful timeout gunicorn kills: no lifespan end and no exit handler is run in that worker."""
    argv = [*GUNICORN, *preload, "-w", "1", "--graceful-timeout", "4", "ml:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 20)
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as hanging:
            hang(hanging)
            stop(service)
    check(receiver, answered)


@pytest.mark.parametrize("launcher", ["uvicorn", "uvicorn --lifespan off", "gunicorn", "python -m"])
def test_without_a_receiver_the_process_ends_and_the_loss_is_logged(
    launcher: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.stop()
    with run_service(tmp_path, launcher=launcher, env=environment(receiver)) as service:
        ask(service, 10)
        started = time.monotonic()
        stop(service)
        print(f"{launcher}: ended after {time.monotonic() - started:.1f} s")  # noqa: T201 -- a figure, not a promise
        assert "not all spans were delivered" in service.log


@pytest.mark.parametrize("launcher", ["uvicorn", "gunicorn"])
def test_the_end_logs_how_much_was_refused_since_the_last_log(
    launcher: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.always = Reply(code=StatusCode.UNAUTHENTICATED, takes=False)
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="100")
    with run_service(tmp_path, launcher=launcher, env=env) as service:
        ask(service, 1)
        wait_for(lambda: "cannot deliver spans" in service.log)
        ask(service, 10)
        stop(service)
        assert "spans were lost in all" in service.log


def test_a_forked_child_of_a_service_delivers_its_own(receiver: Receiver, tmp_path: Path) -> None:
    """A pre-forking server of one's own, whose parent has served before."""
    (tmp_path / "forking.py").write_text(FORKING)
    env = environment(receiver) | {"PYTHONPATH": str(APPS)}
    argv = [PYTHON, str(tmp_path / "forking.py")]
    with run_service(tmp_path, argv=argv, env=env) as service:
        parent = {service.call("POST", "/predict", json={})[0]}
        service.process.send_signal(signal.SIGUSR1)
        first = service.call("GET", "/health")[1].json()["pid"]
        wait_for(lambda: _pid(service) not in (first, None))
        child = ask(service, 10)
        os.kill(_pid(service) or 0, signal.SIGTERM)
        ended(service)
    check(receiver, parent | child)


def test_hypercorns_worker_that_ends_last_delivers_everything(receiver: Receiver, tmp_path: Path) -> None:
    """Once one worker has ended, hypercorn sends SIGTERM to the others, which do not handle it."""
    argv = [PYTHON, "-m", "hypercorn", "ml:app", "--bind", "127.0.0.1:{port}", "--workers", "2"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        booted(service, 2)
        trace_id, response = service.call("GET", "/health")
        last: int = response.json()["pid"]
        os.kill(last, signal.SIGSTOP)
        try:
            service.process.send_signal(signal.SIGTERM)
            wait_for(lambda: _has_pending(last, signal.SIGTERM))
        finally:
            os.kill(last, signal.SIGCONT)
        ended(service)
    check(receiver, {trace_id})


def _has_pending(process: int, number: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) >> (number - 1) & 1)


FORKING = """
import os, signal, socket, sys, threading
import uvicorn
from ml import app

server = None
def end(*_):
    server.should_exit = True
signal.signal(signal.SIGUSR1, end)
port = int(os.environ["PORT"])

def serve():
    global server
    server = uvicorn.Server(uvicorn.Config(app, port=port))
    server.run()

serve()
child = os.fork()
if child == 0:
    serve()
    sys.exit(0)
os.waitpid(child, 0)
"""


def wait_for(ready: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
