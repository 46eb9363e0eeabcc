"""However a service ends, each finished request is delivered; with nobody to deliver to, the end comes all the same.

WSGI servers have no lifespan: gunicorn ends its workers by signals, or they end themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode

from backend.processes import until
from e2e.ending import (
    ask,
    booted,
    check,
    ended,
    environment,
    hang,
    holds_connections,
    pid,
    recycled,
    stop,
)
from otlp.receiver import Receiver, Reply
from services import APPS, GUNICORN, PYTHON, run_service, wsgi_command
from sink import SERVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from services import Service

UVICORN = [PYTHON, "-m", "uvicorn", "ml:app", "--port", "{port}"]
ASGI = [*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "ml:app"]
SYNC = [*GUNICORN, "flask_light:app"]
THREADS = [*GUNICORN, "-k", "gthread", "--threads", "4", "flask_light:app"]
GEVENT = [*GUNICORN, "-k", "gevent", "-w", "2", "flask_light:app"]
TWO = ["-w", "2"]

pytestmark = pytest.mark.usefixtures("services")


def ctrl_c(service: Service) -> None:
    """Send SIGINT to all processes, as a terminal does."""
    os.killpg(service.process.pid, signal.SIGINT)


def only_first(number: int) -> Callable[[Service], None]:
    return lambda service: service.process.send_signal(number)


@pytest.mark.parametrize(
    ("argv", "workers", "each", "count", "end"),
    [
        ([*ASGI, *TWO], 2, 15, 100, ctrl_c),
        ([*SYNC, *TWO], 2, 10, 40, only_first(signal.SIGINT)),
        (THREADS, 1, 10, 40, only_first(signal.SIGTERM)),
    ],
    ids=["uvicorn workers", "sync", "gthread"],
)
def test_workers_that_are_recycled_deliver_everything(
    argv: list[str],
    workers: int,
    each: int,
    count: int,
    end: Callable[[Service], None],
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    """And so do those that are there at the end, however it comes."""
    with run_service(tmp_path, argv=[*argv, "--max-requests", str(each)], env=environment(receiver)) as service:
        answered = ask(service, count)
        recycled(service, workers)
        end(service)
        ended(service)
    check(receiver, answered)


@pytest.mark.parametrize(
    ("argv", "workers"),
    [pytest.param(UVICORN, 1, marks=pytest.mark.smoke), ([*UVICORN, "--workers", "2"], 2)],
    ids=["uvicorn", "uvicorn --workers"],
)
def test_ctrl_c_delivers_everything(argv: list[str], workers: int, receiver: Receiver, tmp_path: Path) -> None:
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 30)
        booted(service, workers)
        ctrl_c(service)
        ended(service)
    check(receiver, answered)


@pytest.mark.parametrize(
    ("worker", "number"),
    [
        pytest.param(THREADS, signal.SIGQUIT, marks=pytest.mark.smoke),
        ([*THREADS, "--preload"], signal.SIGTERM),
        (GEVENT, signal.SIGQUIT),
        ([*GEVENT, "--preload"], signal.SIGTERM),
    ],
    ids=["gthread SIGQUIT", "gthread preload", "gevent SIGQUIT", "gevent preload"],
)
def test_gunicorn_delivers_everything(worker: list[str], number: int, receiver: Receiver, tmp_path: Path) -> None:
    """All workers are ready, and hold no connection any more.

    Traced or not, one that is still booting hears of no signal, and a gthread worker locks up, to be killed after half
    a minute, where SIGQUIT comes as its main thread gives the pool a connection, also one that a client has closed:
    `handle_quit` wants the lock that `submit` holds. SIGTERM without preloading: test_servers.py.
    """
    with run_service(tmp_path, argv=worker, env=environment(receiver)) as service:
        answered = ask(service, 20)
        booted(service, 2 if "-w" in worker else 1)
        until(lambda: not holds_connections(service))
        stop(service, number)
    check(receiver, answered)


def _reloading(server: str, app: str) -> list[str]:
    return {
        "uvicorn": [*UVICORN, "--reload", "--reload-dir", app, "--app-dir", app],
        "gthread": [*THREADS, "--reload", "--reload-engine", "poll", "--chdir", app],
        "werkzeug": [*(PYTHON, "-m", "flask", "--app", f"{app}/flask_light.py", "run"), "--port", "{port}", "--reload"],
    }[server]


@pytest.mark.parametrize("server", ["uvicorn", "gthread", "werkzeug"])
def test_a_reload_delivers_what_was_before_and_after(server: str, receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    app = Path(shutil.copy(APPS / ("ml.py" if server == "uvicorn" else "flask_light.py"), tmp_path / "app"))
    argv = _reloading(server, str(app.parent))
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 10)
        before = pid(service)
        app.write_text(app.read_text() + "\n# changed\n")
        until(lambda: pid(service) not in (before, None))
        answered |= ask(service, 10)
        if server == "werkzeug":
            # The child alone: a parent that is told, too, kills it after a quarter of a second, traced or not.
            child = pid(service)
            assert child is not None
            os.kill(child, signal.SIGINT)
            ended(service)
        else:
            stop(service)
    check(receiver, answered)


@pytest.mark.parametrize(
    "argv", [ASGI, [*ASGI, "--preload"], SYNC, THREADS], ids=["uvicorn worker", "preload", "sync", "gthread"]
)
def test_a_request_that_hangs_until_gunicorn_kills_its_worker_takes_nothing_with_it(
    argv: list[str], receiver: Receiver, tmp_path: Path
) -> None:
    """After its graceful timeout gunicorn kills: no lifespan end and no exit handler is run in that worker."""
    argv = [*argv, "-w", "1", "--graceful-timeout", "4"]
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


def test_the_end_logs_how_much_was_refused_since_the_last_log(receiver: Receiver, tmp_path: Path) -> None:
    receiver.always = Reply(code=StatusCode.UNAUTHENTICATED, takes=False)
    env = environment(receiver, OTEL_BSP_SCHEDULE_DELAY="100")
    with run_service(tmp_path, launcher="gunicorn", env=env) as service:
        ask(service, 1)
        until(lambda: "cannot deliver spans" in service.log)
        ask(service, 10)
        stop(service)
        assert "spans were lost in all" in service.log


def test_a_forked_child_of_a_service_delivers_its_own(receiver: Receiver, tmp_path: Path) -> None:
    """A pre-forking server of one's own, whose parent has served before."""
    (tmp_path / "forking.py").write_text(FORKING)
    env = environment(receiver, PYTHONPATH=str(APPS))
    with run_service(tmp_path, argv=[PYTHON, str(tmp_path / "forking.py")], env=env) as service:
        parent = {service.call("POST", "/predict", json={})[0]}
        first = pid(service)
        service.process.send_signal(signal.SIGUSR1)
        until(lambda: pid(service) not in (first, None))
        child = ask(service, 10)
        os.kill(pid(service) or 0, signal.SIGTERM)
        ended(service)
    check(receiver, parent | child)


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
            until(lambda: _has_pending(last, signal.SIGTERM))
        finally:
            os.kill(last, signal.SIGCONT)
        ended(service)
    check(receiver, {trace_id})


def _has_pending(process: int, number: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) >> (number - 1) & 1)


def test_a_worker_stopped_as_it_ends_a_request_delivers_that(receiver: Receiver, tmp_path: Path) -> None:
    """SIGQUIT, which Ctrl-C becomes, comes where the worker's first span starts the thread that sends."""
    config = tmp_path / "interrupted.py"
    config.write_text(INTERRUPTED)
    env = environment(receiver, OTEL_PYTHON_FLASK_EXCLUDED_URLS="health")
    with run_service(tmp_path, argv=[*SYNC, "-c", str(config)], env=env) as service:
        answered = ask(service, 1)
        booted(service, 2)
        stop(service)
    check(receiver, answered)


INTERRUPTED = """
import os, signal
def post_worker_init(worker):
    from stagetrace.otlp.export import sender
    original = sender.start
    def start(*arguments):
        original(*arguments)
        os.kill(os.getpid(), signal.SIGQUIT)
    sender.start = start
"""


def test_a_worker_stopped_as_it_writes_is_no_client_that_disconnected(receiver: Receiver, tmp_path: Path) -> None:
    """SIGQUIT ends it where it comes; whether the client has all of the answer, nobody knows."""
    config = tmp_path / "interrupted.py"
    config.write_text(INTERRUPTED_WRITE)
    with run_service(tmp_path, argv=[*SYNC, "-c", str(config)], env=environment(receiver)) as service:
        trace_id, response = service.call("POST", "/predict", json={})
        assert response.status_code == 200
        stop(service)
    check(receiver, {trace_id})
    (entry,) = (span for span in receiver.spans() if span.trace_id.hex() == trace_id and span.kind == SERVER)
    attributes = {pair.key: pair.value.string_value for pair in entry.attributes}
    assert attributes["stagetrace.network.disconnect"] == "cancelled"


INTERRUPTED_WRITE = """
import os, signal
from gunicorn.http.wsgi import Response
original = Response.write
def write(self, data):
    original(self, data)
    if self.req.path == "/predict":
        os.kill(os.getpid(), signal.SIGQUIT)
Response.write = write
"""


@pytest.mark.parametrize("server", ["waitress", "werkzeug"])
def test_servers_that_leave_sigterm_alone_end_by_ctrl_c(server: str, receiver: Receiver, tmp_path: Path) -> None:
    with run_service(tmp_path, argv=wsgi_command(server, "flask_light"), env=environment(receiver)) as service:
        answered = ask(service, 20)
        assert stop(service, signal.SIGINT) == 0
    check(receiver, answered)
