"""`stagetrace demo`: a real service with real faults on the embedded back end, and the reports of the commands."""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from stagetrace.cli.registry import ANSWERED, ANSWERS, BAD
from stagetrace.errors import StagetraceError
from stagetrace.settings import environment
from stagetrace.system.packages import requirement

# --- The traffic of the demo: a few faults, and then a day of a service, in a minute.

MESSAGE: Final = "Hello, I paid for order A-{0} twice, $49.90 each time. Please give one of them back!"
_PATIENCE_S: Final = 60.0

# The first act.
_ORDINARY: Final = 150
BLOCKING: Final = "/explain"
_SLOW_MODEL, _SLOW_CLIENTS, _EXPLAINED, _CROWD = 6, 2, 2, 60
SLOW_AT_LEAST: Final = _SLOW_MODEL + _SLOW_CLIENTS + _EXPLAINED

FAULTS: Final = f"""  {_ORDINARY} ordinary requests
  {_SLOW_MODEL} that ask for v2 of the model, a forest of 3,000 trees
  {_SLOW_CLIENTS} from a client that uploads slowly
  {_EXPLAINED} to {BLOCKING}, which computes inside an `async def` and blocks the event loop
  {_CROWD} at the same moment, each with a long text, for the 40 threads of the pool"""

# The second one.
TENANT_HEADER: Final = "x-tenant"
TENANT: Final = "http.request.header.x_tenant"  # the attribute that holds it
_TENANTS: Final = ("acme", "birch", "cedar")
_RATE: Final = 25.0  # requests a second, as they come
_PHASE_S: Final = 12.0
PRESSED: Final = "/predict/batch"  # by crowds
_CROWDS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # clients that send without a pause
_CROWD_S: Final = 2.0
_QUOTED: Final = 150  # messages
_LONG: Final = 80  # messages that one tenant sends at once

DAY: Final = f"""  {_PHASE_S:.0f} s of ordinary requests of three tenants
  {_PHASE_S:.0f} s in which each message quotes the whole thread before it: it drifts
  {_CROWD_S * len(_CROWDS):.0f} s in which ever more clients send without a pause, up to {_CROWDS[-1]}: it saturates
  {_PHASE_S:.0f} s of ordinary requests to the next release, whose model is a forest of 100 trees"""


class Request(NamedTuple):
    """One message: when it is due, in seconds, its sender and its text."""

    due_s: float
    tenant: str
    text: str


def send_faults(address: str) -> None:
    """Send the first act."""
    for number in range(_ORDINARY):
        _post(address, "/predict", {"text": MESSAGE.format(100_000 + number)})
    for number in range(_SLOW_MODEL):
        _post(address, "/predict", {"text": MESSAGE.format(number), "model": "v2"})
    for number in range(_SLOW_CLIENTS):
        _post_slowly(address, "/predict", {"text": MESSAGE.format(number)})
    for number in range(_EXPLAINED):
        _post(address, BLOCKING, {"text": " ".join(MESSAGE.format(number) for _ in range(70))})
    long_text = "\n".join(MESSAGE.format(number) for number in range(400))
    _together(lambda _: _post(address, "/predict", {"text": long_text}), _CROWD)


def send_before_release(address: str) -> None:
    """Send the traffic of the first release."""
    chance = random.Random(1)  # noqa: S311 -- traffic
    _send(address, _arrivals(chance, quoted=0))
    _send(address, _arrivals(chance, quoted=_QUOTED))
    for crowd in _CROWDS:
        _press(address, crowd)


def send_after_release(address: str) -> None:
    """Send the traffic of the second release."""
    _send(address, _arrivals(random.Random(2), quoted=0))  # noqa: S311 -- traffic


def _arrivals(chance: random.Random, quoted: int) -> Iterator[Request]:
    """Yield the requests of a phase: at random times (Poisson), the longest ones those of one tenant."""
    at = 0.0
    while (at := at + chance.expovariate(_RATE)) < _PHASE_S:
        tenant = chance.choice(_TENANTS)
        lines = quoted + (_LONG if tenant == _TENANTS[-1] else 1)
        yield Request(at, tenant, "\n".join(MESSAGE.format(chance.randrange(10**5, 10**6)) for _ in range(lines)))


def _send(address: str, requests: Iterator[Request]) -> None:
    """Send each request when it is due, whether or not earlier ones were answered."""
    began = time.monotonic()
    with ThreadPoolExecutor(64) as pool:
        for one in requests:
            time.sleep(max(0.0, began + one.due_s - time.monotonic()))
            pool.submit(_post, address, "/predict", {"text": one.text}, {TENANT_HEADER: one.tenant})


def _press(address: str, clients: int) -> None:
    """Let some clients send one request after the other."""
    end = time.monotonic() + _CROWD_S

    def press(number: int) -> None:
        while time.monotonic() < end:
            headers = {TENANT_HEADER: _TENANTS[number % len(_TENANTS)]}
            _post(address, PRESSED, {"texts": [MESSAGE.format(100_000 + number)]}, headers)

    _together(press, clients)


def _together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _post(address: str, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> None:
    headers = {"content-type": "application/json", **(headers or {})}
    _read(urllib.request.Request(address + path, json.dumps(body).encode(), headers))  # noqa: S310 -- our own service


def _read(request: urllib.request.Request | str) -> None:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_PATIENCE_S) as response:
        response.read()


def _post_slowly(address: str, path: str, body: dict[str, str]) -> None:
    """Send like a phone on a bad connection: in chunks, with pauses."""
    content = json.dumps(body).encode()
    at = urlsplit(address)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 0, timeout=_PATIENCE_S)
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


DESCRIPTION: Final = """Start the embedded back end and a ticket router (FastAPI and scikit-learn, no tracing code
in it), send it traffic with a few real faults, and show what stagetrace reports. Then let it live through a day in
a minute, and run the ten answers on the recorded requests. Takes about two minutes, and keeps what it recorded, so
that each command can be run again; stopped before its end it keeps nothing."""
EXAMPLE: Final = "stagetrace demo"
OPTIONS: Final = ()
OBJECTIVES: Final = "POST /predict within 50ms for 99%; * within 250ms"
# Release -> the model that it serves.
_RELEASES: Final = {"2026.10": "v1", "2026.11": "v3"}
_PRICES: Final = {"currency": "EUR", "per_hour": 0.19}
# Breaches of which one trace is shown: in words, and by what they are found.
_EXAMPLES: Final = (
    ("of the slow model", "stage", "inference"),
    ("of the handler that blocks the event loop", "route", BLOCKING),
    ("that waited in a queue", "stage", "queue"),
)
_NEEDED: Final = ("fastapi", "uvicorn", "sklearn", "duckdb", "pyarrow")
_READY_WITHIN_S: Final = 60
_QUERYABLE_WITHIN_S: Final = 30
_STOPS_WITHIN_S: Final = 20
_STAGETRACE: Final = (sys.executable, "-m", "stagetrace.cli.main")

_NEXT: Final = f"""
Everything is stopped again. What was recorded is in {{folder}}, with the page report.html: each command
above but `bench`, which needs the service, can be run again there, and `stagetrace page --store {{folder}}/data`
shows it in a browser. `rm -r {{folder}}` removes it.

For your own service: install stagetrace beside it, keep `stagetrace up` running, and start the service with

  STAGETRACE=1 STAGETRACE_SLA="{OBJECTIVES}" OTEL_SERVICE_NAME=my-service uvicorn app:app

Then ask: stagetrace why, stagetrace trace latest, stagetrace stages, stagetrace slo, stagetrace query "SELECT ..."
"""


def run(args: argparse.Namespace) -> int:
    """Run it all in a new folder, which stays if all goes well."""
    del args
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StagetraceError(f"the demo needs {', '.join(missing)}\npip install {requirement('demo')}")
    # `kill` and the end of a terminal clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="stagetrace-demo-"))
    try:
        _demo(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            _print("\ninterrupted; everything is stopped")
        raise
    _print(_NEXT.format(folder=folder))
    return ANSWERED


def _demo(folder: Path) -> None:
    data = folder / "data"
    _print("starting the embedded back end ...")
    with _back_end(folder, data) as endpoint:
        settings = {
            "STAGETRACE": "1",
            "STAGETRACE_SLA": OBJECTIVES,
            "OTEL_SERVICE_NAME": "ticket-router",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        }
        shown = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
        _print(f"starting the ticket router, training its models:\n  {shown} uvicorn app:app")
        # Its status files are deleted with the rest.
        settings["STAGETRACE_STATUS"] = str(folder / "status")
        with _service(folder, settings) as address:
            _print(f"sending:\n{FAULTS}")
            send_faults(address)
        breaches = _wait_for_breaches(str(data))
        _show("stages", "--long", "--store", str(data))
        _show("why", "--store", str(data))
        _show("breaches", "--each", "--store", str(data), "--limit", "10")
        for of, key, value in _EXAMPLES:
            alike = [breach for breach in breaches if breach[key] == value]
            if alike:
                _print(f"\nThe worst {of}:")
                _show("trace", max(alike, key=lambda one: float(one["overrun_ms"]))["trace_id"], "--store", str(data))
        _second_act(folder, data, settings)


def _second_act(folder: Path, data: Path, settings: dict[str, str]) -> None:
    """Let the service live through a day, and run the ten answers on the recorded requests."""
    since = ["--store", str(data), "--since", datetime.now(timezone.utc).isoformat()]
    recorded = settings | {"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": TENANT_HEADER}
    _print(f"\nThe second act: a day of the ticket router, in a minute.\n{DAY}")
    first, second = _RELEASES
    with _service(folder, recorded | _release(first)) as address:
        send_before_release(address)
    with _service(folder, recorded | _release(second)) as address:
        send_after_release(address)
        _print("  and a benchmark of it")
        message = json.dumps({"text": MESSAGE.format(123_456)})
        load = [f"{address}/predict", "--rate", "40", "--body", message, "--objective", "p99:50ms"]
        bench = _ask("bench", *load, *since[:2], "--json")
    (folder / "bench.json").write_text(bench, "utf-8")
    (folder / "prices.json").write_text(json.dumps(_PRICES), "utf-8")
    options = {
        "compare": ["--a", f"service.version={first}", "--b", f"service.version={second}"],
        "capacity": ["--route", PRESSED],
        "cost": ["--prices", str(folder / "prices.json")],
        "segments": ["--by", TENANT],
    }
    given = [one for verb, some in options.items() for one in ("--with", shlex.join([verb, *some]))]
    page = _ask("report", "--all", *since, *given, "--bench", str(folder / "bench.json"), "--format", "html")
    (folder / "report.html").write_text(page, "utf-8")
    _print(f"\nThe ten answers, with pictures, are on one page: {folder / 'report.html'}\n")
    for verb in ANSWERS:
        command = [verb, *options.get(verb, []), *since]
        _print(f"$ stagetrace {shlex.join(command)}")
        _print(f"  {json.loads(_ask(*command, '--json'))['sentence']}")
    _print(f"$ stagetrace {shlex.join(['bench', *load])}\n  {json.loads(bench)['sentence']}")


def _release(version: str) -> dict[str, str]:
    return {"OTEL_RESOURCE_ATTRIBUTES": f"service.version={version}", "ROUTER_MODEL": _RELEASES[version]}


def _ask(*arguments: str) -> str:
    """Return the output of one command, whether its answer is good or bad."""
    done = subprocess.run([*_STAGETRACE, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    is_answer = done.stdout.startswith("{") if "--json" in arguments else bool(done.stdout.strip())
    if done.returncode not in (ANSWERED, BAD) or not is_answer:
        why = f"ended with {done.returncode} and gave no answer:\n{done.stderr.strip()}"
        raise StagetraceError(f"`stagetrace {arguments[0]}` {why}")
    return done.stdout


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
        _print(f"  service: {line}")


def service_folder() -> Path:
    """Return where the example service lies: in the installed package, or in a clone beside it."""
    package = Path(__file__).resolve().parents[1]
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


def _wait_for_breaches(store: str) -> list[dict[str, Any]]:
    """Return the breaches, once all that are sure to be there are."""
    deadline = time.monotonic() + _QUERYABLE_WITHIN_S
    while True:
        argv = [*_STAGETRACE, "breaches", "--each", "--store", store, "--json"]
        asked = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        breaches: list[dict[str, Any]] = json.loads(asked.stdout)["breaches"] if asked.returncode == 0 else []
        if len(breaches) >= SLOW_AT_LEAST:
            return breaches
        if time.monotonic() > deadline:
            raise StagetraceError(
                f"{len(breaches)} breaches arrived within {_QUERYABLE_WITHIN_S} s, "
                f"at least {SLOW_AT_LEAST} were due\n"
                f"{asked.stderr.strip()}"
            )
        time.sleep(0.3)


def _show(*arguments: str) -> None:
    """Run one command of ours, with its output on the terminal."""
    _print(f"\n$ stagetrace {shlex.join(arguments)}")
    done = subprocess.run([*_STAGETRACE, *arguments], check=False)  # noqa: S603
    if done.returncode != 0:
        raise StagetraceError(f"`stagetrace {arguments[0]}` ended with {done.returncode}; its output is above")


def _plain() -> dict[str, str]:
    """Return the environment without settings of recording: the demo sets all of them itself."""
    return {name: value for name, value in environment().items() if not name.startswith(("OTEL_", "STAGETRACE"))}


def _is_up(address: str) -> bool:
    try:
        _read(f"{address}/health")
    except OSError:  # those of urllib are, too
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")[-2000:].strip()


def _print(text: str) -> None:
    print(text, flush=True)
