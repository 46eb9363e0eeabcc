"""Start the test applications as a user would, under each launcher, and send them real HTTP requests."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from backends import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

APPS = Path(__file__).parent / "apps"
allowed = True  # whether the running test may start a service (conftest.py)
# What OpenTelemetry's instrumentations record, and stagetrace by default does not.
AS_STOCK = {"STAGETRACE_RECORD_EXCEPTIONS": "full", "STAGETRACE_RECORD_CLIENT": "1"}
UNSEEN = {"STAGETRACE_SOCKET_WAIT": "0", "STAGETRACE_WIRE": "0"}
PYTHON = sys.executable

LAUNCHERS: dict[str, list[str]] = {
    "uvicorn": ["uvicorn", "{app}:app", "--port", "{port}", "--loop", "asyncio", "--http", "h11"],
    "uvicorn --lifespan off": ["uvicorn", "{app}:app", "--port", "{port}", "--lifespan", "off"],
    "uvicorn --workers 2": ["uvicorn", "{app}:app", "--port", "{port}", "--workers", "2"],
    "uvicorn --reload": ["uvicorn", "{app}:app", "--port", "{port}", "--reload"],
    "gunicorn": ["gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b", "127.0.0.1:{port}", "{app}:app"],
    "gunicorn --preload": [
        *("gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "--preload"),
        *("-b", "127.0.0.1:{port}", "{app}:app"),
    ],
    "hypercorn --workers 2": ["hypercorn", "{app}:app", "--bind", "127.0.0.1:{port}", "--workers", "2"],
    "python -m": ["{app}"],
}

# Servers of ASGI applications, and of WSGI applications; tests name the application.
UVICORN = ("uvicorn", "{app}:app", "--port", "{port}")
HYPERCORN = ("hypercorn", "{app}:app", "--bind", "127.0.0.1:{port}")
ASGI_SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn": UVICORN,
    "uvicorn h11": (*UVICORN, "--http", "h11", "--loop", "asyncio"),
    "uvicorn uvloop": (*UVICORN, "--http", "httptools", "--loop", "uvloop"),
    "hypercorn": HYPERCORN,
    "hypercorn trio": (*HYPERCORN, "-k", "trio"),
    "granian": ("granian", "--interface", "asgi", "{app}:app", "--port", "{port}"),
    "daphne": ("daphne", "-p", "{port}", "{app}:app"),
    "gunicorn": ("gunicorn", "-b", "127.0.0.1:{port}", "-k", "uvicorn_worker.UvicornWorker", "{app}:app"),
}
GUNICORN = (PYTHON, "-m", "gunicorn", "-b", "127.0.0.1:{port}")
WSGI_SERVERS: dict[str, tuple[str, ...]] = {
    "gunicorn": (*GUNICORN, "{app}:app"),
    "gunicorn gthread": (*GUNICORN, "-k", "gthread", "--threads", "40", "{app}:app"),
    "gunicorn gevent": (*GUNICORN, "-k", "gevent", "{app}:app"),
    "waitress": (PYTHON, "wsgi_server.py", "waitress", "{app}:app"),
    "werkzeug": (PYTHON, "wsgi_server.py", "werkzeug", "{app}:app"),
    "werkzeug gevent": (PYTHON, "wsgi_server.py", "werkzeug gevent", "{app}:app"),
    "gevent": (PYTHON, "wsgi_server.py", "gevent", "{app}:app"),
    "cheroot": (PYTHON, "wsgi_server.py", "cheroot", "{app}:app"),
    "wsgiref": (PYTHON, "wsgi_server.py", "wsgiref", "{app}:app"),
}


@dataclass
class Service:
    """A running service. `log` is complete once it has stopped, and readable before."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path
    client: httpx.Client
    first: httpx.Response | None = None  # the response that showed that it is ready

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def call(self, method: str, path: str, **kwargs: Any) -> tuple[str, httpx.Response]:
        """Make one request in a trace of its own; return the trace id and the response."""
        trace_id, headers = new_trace()
        headers |= kwargs.pop("headers", {})
        return trace_id, self.client.request(method, path, headers=headers, **kwargs)

    def call_at_once(self, path: str, bodies: list[Any]) -> list[tuple[str, httpx.Response]]:
        """Post all bodies at the same time; return what `call` returns, in their order."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.call("POST", path, json=body), bodies))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the process and wait for its end; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables of stagetrace and of OpenTelemetry."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STAGETRACE"))}


def run_python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with these variables beside a clean environment; return its output and exit code."""
    whole = clean_environment() | env
    return subprocess.run([PYTHON, *arguments], env=whole, capture_output=True, text=True, timeout=300, check=False)


def new_trace() -> tuple[str, dict[str, str]]:
    """Return a new trace id, and the headers by which a request belongs to that trace."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}


# With these nothing but the flush at a service's end delivers its spans, where no batch gets full.
AT_END = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}


def recorded(endpoint: str, sla: str = "", **more: str) -> dict[str, str]:
    """Return the variables of a service that is recorded under this policy, and sends its spans there."""
    policy = {"STAGETRACE_SLA": sla} if sla else {}
    return {"STAGETRACE": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **policy, **more}


def command(launcher: str, app: str, port: int) -> list[str]:
    """Return the command line of a launcher."""
    return [PYTHON, "-m", *(part.format(app=app, port=port) for part in LAUNCHERS[launcher])]


def asgi_command(server: str, app: str) -> list[str]:
    """Return the command line by which an ASGI server serves a test application; `{port}` in it is the port."""
    return [PYTHON, "-m", *(part.replace("{app}", app) for part in ASGI_SERVERS[server])]


def wsgi_command(server: str, app: str) -> list[str]:
    """Return the command line by which a WSGI server serves a test application; `{port}` in it is the port."""
    return [part.replace("{app}", app) for part in WSGI_SERVERS[server]]


@contextmanager
def run_service(
    folder: Path,
    app: str = "ml",
    launcher: str = "uvicorn",
    env: Mapping[str, str] | None = None,
    argv: list[str] | None = None,
    ready: str = "/health",
    *,
    tls: bool = False,
    within_s: float = 60,
) -> Iterator[Service]:
    """Run an app of tests/apps until the block ends; ready when the path `ready` answers, `within_s`.

    Socket waits and network readings are off, unless `env` switches them on: a busy machine adds the former to any
    request, and stock tracing lacks the latter.
    `argv` replaces the launcher's command, with `{port}` as the port. `tls`: over TLS, with any certificate.
    """
    assert allowed, "a test that starts a service asks for the fixture `services`, by which it is marked so"
    port = free_port()
    argv = [part.format(port=port) for part in argv] if argv else command(launcher, app, port)
    log_file = folder / f"service-{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            argv,
            cwd=APPS,
            env={**clean_environment(), "PORT": str(port), "PYTHONUNBUFFERED": "1", **UNSEEN, **(env or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    # Connections are closed: a server would wait for an open one when it has to stop.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=30, limits=limits, verify=not tls) as client:
        service = Service(url, process, log_file, client)
        try:
            _wait_ready(service, ready, within_s)
            yield service
        finally:
            end(process)


def end(process: subprocess.Popen[bytes], within_s: float = 20) -> None:
    """Have the leader of a session end, unless it has; kill its whole session if it does not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_ready(service: Service, path: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            break
        with suppress(httpx.TransportError):
            service.first = service.client.get(path)
            if service.first.status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"the service did not get ready:\n{service.log[-4000:]}")
