"""`stagetrace demo`: a real service with real faults on the embedded back end, and what the commands say of them."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.error import URLError
from urllib.parse import urlsplit

from stagetrace.cli.base import ANSWERED
from stagetrace.errors import StagetraceError
from stagetrace.origin import requirement

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

DESCRIPTION: Final = """Start the embedded back end and a ticket router (FastAPI and scikit-learn, no tracing code
in it), send it traffic with a few real faults, and show what stagetrace says of them. Takes about half a minute and
leaves nothing behind."""
EXAMPLE: Final = "stagetrace demo"
PROMISE: Final = "POST /predict within 50ms for 99%; * within 250ms"
_NEEDED: Final = ("fastapi", "uvicorn", "sklearn", "duckdb", "deltalake", "pyarrow")
_READY_WITHIN_S: Final = 60
_QUERYABLE_WITHIN_S: Final = 30
_STOPS_WITHIN_S: Final = 20
_STAGETRACE: Final = (sys.executable, "-m", "stagetrace.cli.main")

_MESSAGE: Final = "Hello, I paid for order A-{0} twice, $49.90 each time. Please give one of them back!"
_ORDINARY: Final = 150
_SLOW_MODEL, _SLOW_CLIENTS, _EXPLAINED, _CROWD = 6, 2, 2, 60
SLOW_AT_LEAST: Final = _SLOW_MODEL + _SLOW_CLIENTS + _EXPLAINED

_FAULTS: Final = f"""  {_ORDINARY} ordinary requests
  {_SLOW_MODEL} that ask for v2 of the model, a forest of 3,000 trees
  {_SLOW_CLIENTS} from a client that uploads slowly
  {_EXPLAINED} to /explain, which computes inside an `async def` and blocks the event loop
  {_CROWD} at the same moment, each with a long text, for the 40 threads of the pool"""
_NEXT: Final = f"""
Everything is stopped again. For your own service: install stagetrace beside it, keep `stagetrace up` running, and start
the service with

  STAGETRACE=1 STAGETRACE_SLA="{PROMISE}" OTEL_SERVICE_NAME=my-service uvicorn app:app

Then ask: stagetrace breaches, stagetrace stages, stagetrace requests, stagetrace tail -f, stagetrace query "SELECT ..."
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the demo has no options."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Run it all in a folder that is gone afterwards."""
    del args
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StagetraceError(f"the demo needs {', '.join(missing)}\npip install {requirement('demo')}")
    # `kill` and the end of a terminal clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="stagetrace-demo-") as folder:
            _demo(Path(folder))
    except KeyboardInterrupt:
        _say("\ninterrupted; everything is stopped")
        raise
    _say(_NEXT)
    return ANSWERED


def _demo(folder: Path) -> None:
    data = folder / "data"
    _say("starting the embedded back end ...")
    with _back_end(folder, data) as endpoint:
        settings = {
            "STAGETRACE": "1",
            "STAGETRACE_SLA": PROMISE,
            "OTEL_SERVICE_NAME": "ticket-router",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        }
        shown = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
        _say(f"starting the ticket router, training its models:\n  {shown} uvicorn app:app")
        # What it says of itself goes away with the rest.
        with _service(folder, {**settings, "STAGETRACE_STATUS": str(folder / "status")}) as address:
            _say(f"sending:\n{_FAULTS}")
            _traffic(address)
        breaches = _wait_for_breaches(str(data))
        _show("stages", "--store", str(data))
        _show("breaches", "--store", str(data), "--limit", "10")
        for stage in ("inference", "queue"):
            worst = [breach for breach in breaches if breach["stage"] == stage]
            if worst:
                _say(f"\nThe worst of those whose stage is {stage}:")
                _show("trace", max(worst, key=lambda one: float(one["overrun_ms"]))["trace_id"], "--store", str(data))


@contextmanager
def _back_end(folder: Path, data: Path) -> Iterator[str]:
    """Run `stagetrace up` on free ports; give its OTLP endpoint."""
    flags = [flag for port in ("grpc", "http", "query-grpc", "query-http") for flag in (f"--{port}-port", "0")]
    argv = [*_STAGETRACE, "up", "--data", str(data), *flags, "--json"]
    with _process(argv, folder / "up.log", cwd=folder, env=_plain(), stdout=subprocess.PIPE) as process:
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            raise StagetraceError(f"the back end did not start:\n{_tail(folder / 'up.log')}")
        yield f"http://127.0.0.1:{json.loads(line)['grpc_port']}"


@contextmanager
def _service(folder: Path, settings: dict[str, str]) -> Iterator[str]:
    """Run the ticket router; give its address."""
    port = _free_port()
    log = folder / "service.log"
    argv = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]
    with _process(argv, log, cwd=service_folder(), env=_plain() | settings) as process:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _READY_WITHIN_S
        while not _is_up(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StagetraceError(f"the ticket router did not start:\n{_tail(log)}")
            time.sleep(0.1)
        yield address
    for line in log.read_text("utf-8", errors="replace").splitlines():
        _say(f"  service: {line}")


def service_folder() -> Path:
    """Return where the example service lies: in the installed package, or in a clone beside it."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_demo"
    return shipped if shipped.exists() else package.parent.parent / "examples" / "service"


@contextmanager
def _process(argv: list[str], log: Path, **kwargs: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        kwargs = {"stdout": output} | kwargs
        # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order.
        process: Any = subprocess.Popen(argv, stderr=output, start_new_session=True, **kwargs)  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _traffic(address: str) -> None:
    for number in range(_ORDINARY):
        _post(address, "/predict", {"text": _MESSAGE.format(100_000 + number)})
    for number in range(_SLOW_MODEL):
        _post(address, "/predict", {"text": _MESSAGE.format(number), "model": "v2"})
    for number in range(_SLOW_CLIENTS):
        _post_slowly(address, "/predict", {"text": _MESSAGE.format(number)})
    for number in range(_EXPLAINED):
        _post(address, "/explain", {"text": " ".join(_MESSAGE.format(number) for _ in range(70))})
    long_text = "\n".join(_MESSAGE.format(number) for number in range(400))
    crowd = [threading.Thread(target=_post, args=(address, "/predict", {"text": long_text})) for _ in range(_CROWD)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()


def _post(address: str, path: str, body: dict[str, str]) -> None:
    request = urllib.request.Request(  # noqa: S310 -- our own service on loopback
        address + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        response.read()


def _post_slowly(address: str, path: str, body: dict[str, str]) -> None:
    """Send as a phone on a bad connection does: in pieces, with pauses."""
    import http.client

    content = json.dumps(body).encode()
    at = urlsplit(address)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 0, timeout=60)
    connection.putrequest("POST", path)
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(len(content)))
    connection.endheaders()
    step = len(content) // 4 + 1
    for start in range(0, len(content), step):
        connection.send(content[start : start + step])
        time.sleep(0.1)
    connection.getresponse().read()
    connection.close()


def _wait_for_breaches(store: str) -> list[dict[str, Any]]:
    """Return the breaches, once all that are sure to be there are."""
    deadline = time.monotonic() + _QUERYABLE_WITHIN_S
    while True:
        argv = [*_STAGETRACE, "breaches", "--store", store, "--json"]
        asked = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        breaches: list[dict[str, Any]] = json.loads(asked.stdout)["breaches"] if asked.returncode == 0 else []
        if len(breaches) >= SLOW_AT_LEAST:
            return breaches
        if time.monotonic() > deadline:
            raise StagetraceError(
                f"{len(breaches)} breaches arrived within {_QUERYABLE_WITHIN_S} s, at least {SLOW_AT_LEAST} were due\n"
                f"{asked.stderr.strip()}"
            )
        time.sleep(0.3)


def _show(*arguments: str) -> None:
    """Run one command of ours, with its output on the terminal."""
    _say(f"\n$ stagetrace {shlex.join(arguments)}")
    done = subprocess.run([*_STAGETRACE, *arguments], check=False)  # noqa: S603
    if done.returncode != 0:
        raise StagetraceError(f"`stagetrace {arguments[0]}` ended with {done.returncode}; what it said is above")


def _plain() -> dict[str, str]:
    """Return the environment without what steers recording: the demo sets all of it itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STAGETRACE"))}


def _is_up(address: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}/health", timeout=5):
            return True
    except (URLError, OSError):
        return False


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-2000:].strip()


def _say(text: str) -> None:
    print(text, flush=True)
