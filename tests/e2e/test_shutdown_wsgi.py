"""As test_shutdown.py, for WSGI servers, which have no lifespan: gunicorn ends its workers by signals, or they do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from e2e.test_shutdown import _pid, ask, check, environment, receiver, wait_for
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
        (SYNC, signal.SIGTERM),
        (SYNC, signal.SIGINT),
        (THREADS, signal.SIGTERM),
        (THREADS, signal.SIGQUIT),
        ([*THREADS, "--preload"], signal.SIGTERM),
        (GEVENT, signal.SIGTERM),
        (GEVENT, signal.SIGQUIT),
        ([*GEVENT, "--preload"], signal.SIGTERM),
    ],
    ids=[
        *("sync", "sync SIGINT", "gthread", "gthread SIGQUIT", "gthread preload"),
        *("gevent", "gevent SIGQUIT", "gevent preload"),
    ],
)
def test_gunicorn_delivers_everything(worker: list[str], number: int, receiver: Receiver, tmp_path: Path) -> None:
    with run_service(tmp_path, argv=[*worker, "flask_light:app"], env=environment(receiver)) as service:
        answered = ask(service, 20)
        # A gevent worker that is still booting hears of no signal, traced or not, until gunicorn kills it.
        if "gevent" in worker:
            wait_for(lambda: service.log.count("recording in process") == 2)
        service.stop(number)
    check(receiver, answered)


@pytest.mark.parametrize("worker", [SYNC, THREADS], ids=["sync", "gthread"])
def test_workers_that_are_recycled_deliver_everything(worker: list[str], receiver: Receiver, tmp_path: Path) -> None:
    argv = [*worker, "--max-requests", "10", "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 40)
        wait_for(lambda: service.log.count("Booting worker") > 2)  # one was recycled
        service.stop()
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
        service.stop()
    check(receiver, answered)


@pytest.mark.parametrize("worker", [[*GUNICORN], THREADS], ids=["sync", "gthread"])
def test_a_request_that_hangs_until_gunicorn_kills_its_worker_takes_nothing_with_it(
    worker: list[str], receiver: Receiver, tmp_path: Path
) -> None:
    argv = [*worker, "--graceful-timeout", "4", "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 20)
        body = b'{"inference_s": 60}'
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as hanging:
            hanging.sendall(head % len(body) + body)
            time.sleep(0.5)
            service.stop()
    check(receiver, answered)


@pytest.mark.parametrize("server", ["werkzeug gevent", "gevent", "cheroot", "wsgiref"])
def test_sigterm_where_greenlets_serve_or_the_loop_is_of_a_base(
    server: str, receiver: Receiver, tmp_path: Path
) -> None:
    """A signal's handler runs in whichever greenlet has the main thread."""
    with run_service(tmp_path, argv=wsgi_command(server, "flask_light"), env=environment(receiver)) as service:
        answered = ask(service, 20)
        code = service.stop()
    check(receiver, answered)
    assert code == -signal.SIGTERM


def test_granians_workers_of_wsgi_deliver_everything(receiver: Receiver, tmp_path: Path) -> None:
    """They are processes of `multiprocessing`, which run no exit handlers, and no hook of ours surrounds them."""
    argv = [PYTHON, "-m", "granian", "--interface", "wsgi", "--workers", "2", "--port", "{port}", "flask_light:app"]
    with run_service(tmp_path, argv=argv, env=environment(receiver)) as service:
        answered = ask(service, 20)
        service.stop()
    check(receiver, answered)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("server", ["waitress", "werkzeug"])
def test_servers_that_leave_sigterm_alone(server: str, number: int, receiver: Receiver, tmp_path: Path) -> None:
    """It ends the process as it does untraced, after what has ended was delivered."""
    assert server in WSGI_SERVERS
    with run_service(tmp_path, argv=wsgi_command(server, "flask_light"), env=environment(receiver)) as service:
        answered = ask(service, 20)
        code = service.stop(number)
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
        service.process.wait(20)
    check(receiver, answered)
