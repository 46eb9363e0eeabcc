"""As test_shutdown.py, for WSGI servers, which have no lifespan: gunicorn ends its workers by signals, or they do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from e2e.test_shutdown import (
    SERVER,
    _pid,
    ask,
    booted,
    check,
    ended,
    environment,
    hang,
    holds_connections,
    receiver,
    stop,
    wait_for,
)
from services import APPS, GUNICORN, PYTHON, WSGI_SERVERS, run_service, wsgi_command

if TYPE_CHECKING:
    from pathlib import Path

    from otlp.receiver import Receiver

__all__ = ["receiver"]
SYNC = [*GUNICORN, "-w", "2"]
THREADS = [*GUNICORN, "-k", "gthread", "--threads", "4"]
GEVENT = [*GUNICORN, "-k", "gevent", "-w", "2"]

pytestmark = pytest.mark.usefixtures("services")


@pytest.mark.parametrize(
    ("worker", "number"),
    [
        pytest.param(SYNC, signal.SIGTERM, marks=pytest.mark.smoke),
        (SYNC, signal.SIGINT),
        (THREADS, signal.SIGTERM),
        pytest.param(THREADS, signal.SIGQUIT, marks=pytest.mark.smoke),
        ([*THREADS, "--preload"], signal.SIGTERM),
        pytest.param(GEVENT, signal.SIGTERM, marks=pytest.mark.smoke),
        (GEVENT, signal.SIGQUIT),
        ([*GEVENT, "--preload"], signal.SIGTERM),
    ],
    ids=[
        *("sync", "sync SIGINT", "gthread", "gthread SIGQUIT", "gthread preload"),
        *("gevent", "gevent SIGQUIT", "gevent preload"),
    ],
)
def test_gunicorn_delivers_everything(worker: list[str], number: int, receiver: Receiver, tmp_path: Path) -> None:
    """All workers are ready, and hold no connection any more.

    Traced or not, one that is still booting hears of no signal, and a gthread worker locks up, to be killed after half
    a minute, where SIGQUIT comes as its main thread gives the pool a connection, also one that a client has closed:
    `handle_quit` wants the lock that `submit` holds.
    """
    with run_service(tmp_path, argv=[*worker, "flask_light:app"], env=environment(receiver)) as service:
        answered = ask(service, 20)
        booted(service, 2 if "-w" in worker else 1)
        wait_for(lambda: not holds_connections(service))
        stop(service, number)
    check(receiver, answered)


def test_a_worker_stopped_as_it_ends_a_request_delivers_that(receiver: Receiver, tmp_path: Path) -> None:
    """SIGQUIT, which Ctrl-C becomes, comes where the worker's first span starts the thread that sends."""
    config = tmp_path / "interrupted.py"
    config.write_text(INTERRUPTED)
    env = environment(receiver, OTEL_PYTHON_FLASK_EXCLUDED_URLS="health")
    with run_service(tmp_path, argv=[*GUNICORN, "-c", str(config), "flask_light:app"], env=env) as service:
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
    argv = [*GUNICORN, "-c", str(config), "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
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


@pytest.mark.parametrize("worker", [SYNC, THREADS], ids=["sync", "gthread"])
def test_workers_that_are_recycled_deliver_everything(worker: list[str], receiver: Receiver, tmp_path: Path) -> None:
    argv = [*worker, "--max-requests", "10", "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 40)
        wait_for(lambda: service.log.count("Booting worker") > (2 if "-w" in worker else 1))  # one was recycled
        booted(service, service.log.count("Booting worker"))
        stop(service)
    check(receiver, answered)


def test_a_reload_delivers_what_was_before_and_after(receiver: Receiver, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(APPS / "flask_light.py", app)
    argv = [*THREADS, "--reload", "--reload-engine", "poll", "--chdir", str(app), "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 10)
        before = _pid(service)
        (app / "flask_light.py").write_text((app / "flask_light.py").read_text() + "\n# changed\n")
        wait_for(lambda: _pid(service) not in (before, None))
        answered |= ask(service, 10)
        stop(service)
    check(receiver, answered)


@pytest.mark.parametrize("worker", [[*GUNICORN], THREADS], ids=["sync", "gthread"])
def test_a_request_that_hangs_until_gunicorn_kills_its_worker_takes_nothing_with_it(
    worker: list[str], receiver: Receiver, tmp_path: Path
) -> None:
    argv = [*worker, "--graceful-timeout", "4", "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 20)
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as hanging:
            hang(hanging)
            stop(service)
    check(receiver, answered)


@pytest.mark.parametrize(
    "server", ["werkzeug gevent", "gevent", pytest.param("cheroot", marks=pytest.mark.smoke), "wsgiref"]
)
def test_sigterm_where_greenlets_serve_or_the_loop_is_of_a_base(
    server: str, receiver: Receiver, tmp_path: Path
) -> None:
    """A signal's handler runs in whichever greenlet has the main thread."""
    with run_service(tmp_path, argv=wsgi_command(server, "flask_light"), env=environment(receiver)) as service:
        answered = ask(service, 20)
        code = stop(service)
    check(receiver, answered)
    assert code == -signal.SIGTERM


@pytest.mark.smoke
def test_granians_workers_of_wsgi_deliver_everything(receiver: Receiver, tmp_path: Path) -> None:
    """They are processes of `multiprocessing`, which run no exit handlers, and no patch surrounds them."""
    argv = [PYTHON, "-m", "granian", "--interface", "wsgi", "--workers", "2", "--port", "{port}", "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 20)
        stop(service)
    check(receiver, answered)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("server", [pytest.param("waitress", marks=pytest.mark.smoke), "werkzeug"])
def test_servers_that_leave_sigterm_alone(server: str, number: int, receiver: Receiver, tmp_path: Path) -> None:
    """It ends the process as it does untraced, after what has ended was delivered."""
    assert server in WSGI_SERVERS
    with run_service(tmp_path, argv=wsgi_command(server, "flask_light"), env=environment(receiver)) as service:
        answered = ask(service, 20)
        code = stop(service, number)
    check(receiver, answered)
    assert code == (-number if number == signal.SIGTERM else 0)


def test_werkzeugs_reloader_delivers_what_was_before_and_after(receiver: Receiver, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(APPS / "flask_light.py", app)
    argv = [PYTHON, "-m", "flask", "--app", str(app / "flask_light.py"), "run", "--port", "{port}", "--reload"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 10)
        before = _pid(service)
        (app / "flask_light.py").write_text((app / "flask_light.py").read_text() + "\n# changed\n")
        wait_for(lambda: _pid(service) not in (before, None))
        answered |= ask(service, 10)
        # The child alone: a parent that is told, too, kills it after a quarter of a second, traced or not.
        child = _pid(service)
        assert child is not None
        os.kill(child, signal.SIGINT)
        ended(service)
    check(receiver, answered)
