"""The main job, end to end and for real: `make demo`.

Starts Jaeger, the Collector and the ticket router with recording switched on by environment variables alone, sends
requests of which a few are truly slow, and asks `stagetrace` which of them broke the promise and where their time went.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "examples" / "service"
# There is one way to run the real processes, and the tests have it.
sys.path.insert(0, str(ROOT / "tests"))

from backends import LOOPBACK, BackendFailed, BackendMissing, free_port, run_collector, run_jaeger  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends import Collector, Jaeger

PROMISE = "POST /predict within 50ms for 99%; * within 250ms"
MESSAGES = [
    "Hello, the blue jacket from order A-{0} is too small. Can I swap it for a larger one?",
    "I paid for order A-{0} twice, $49.90 each time. Please give one of them back!",
    "Parcel {0} should have come on Friday. The tracking page still says 'in transit'. Where is it?",
    "Your app shows error 502 whenever I open order A-{0} on my phone. Reinstalling did not help.",
    "I no longer have the number that you send the sign-in code to. How do I get into my account {0}?",
]
ORDINARY = 190
LONG_LOGS, SLOW_UPLOADS, BIG_BATCHES = 3, 2, 2
SLOW = LONG_LOGS + SLOW_UPLOADS + BIG_BATCHES
STARTS_WITHIN_S = 30
QUERYABLE_WITHIN_S = 30


class DemoFailed(Exception):  # noqa: N818 - reads as what it says
    """Say what the demo expected and did not get."""


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)


def recording(collector: Collector) -> dict[str, str]:
    """Return the variables that switch recording on: all that a service needs."""
    return {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": PROMISE,
        "OTEL_SERVICE_NAME": "ticket-router",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp_grpc,
    }


@contextmanager
def run_service(folder: Path, settings: dict[str, str]) -> Iterator[str]:
    """Run the ticket router until the block ends; give its address."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STAGETRACE"))}
    log = folder / "service.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches only this script, which then stops everything in order.
        process = subprocess.Popen(
            command, cwd=SERVICE, env=inherited | settings, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until_up(f"http://{LOOPBACK}:{port}/health", process, log)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for line in log.read_text("utf-8", errors="replace").splitlines():
            say(f"  service: {line}")


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the address answers 200."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    message = f"The ticket router did not start:\n{log.read_text('utf-8', errors='replace')[-2000:]}"
    raise DemoFailed(message)


def server_log(lines: int) -> str:
    """Return what a customer's engineer pastes into a ticket."""
    line = "2026-03-0{0} 10:1{1}:{2:02} ERROR A-{3} of user{3}@example.com: https://api.example.com/v1/{3} gave 502"
    return "\n".join(line.format(n % 9 + 1, n % 6, n % 60, 100_000 + n) for n in range(lines))


def slowly(text: str, pause_s: float) -> Iterator[bytes]:
    """Yield a request body as a phone on a bad connection sends it: in pieces, with pauses."""
    body = json.dumps({"text": text}).encode()
    step = len(body) // 4 + 1
    for start in range(0, len(body), step):
        time.sleep(pause_s)
        yield body[start : start + step]


def traffic(client: httpx.Client) -> list[Callable[[], httpx.Response]]:
    """Return the requests to send, in the order to send them."""
    texts = [MESSAGES[number % len(MESSAGES)].format(100_000 + number) for number in range(20_000)]
    json_type = {"content-type": "application/json"}
    slow: list[Callable[[], httpx.Response]] = [
        *[lambda: client.post("/predict", json={"text": server_log(8_000)})] * LONG_LOGS,
        *[lambda: client.post("/predict", content=slowly(texts[0], 0.1), headers=json_type)] * SLOW_UPLOADS,
        *[lambda: client.post("/predict/batch", json={"texts": texts})] * BIG_BATCHES,
    ]
    ordinary = [lambda text=text: client.post("/predict", json={"text": text}) for text in texts[:ORDINARY]]
    requests = [*ordinary, *slow]
    random.Random(7).shuffle(requests)
    return requests


def send(address: str) -> int:
    """Send all requests, one after the other; return how many."""
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        requests = traffic(client)
        for number, request in enumerate(requests, 1):
            request().raise_for_status()
            if number % 50 == 0:
                say(f"  {number} requests answered")
    return len(requests)


def stagetrace(*arguments: str, capture: bool = False) -> str:
    """Run the command; its output goes to the terminal, or is returned."""
    command = [str(Path(sys.executable).parent / "stagetrace"), *arguments]
    if not capture:
        say(f"\n$ stagetrace {shlex.join(arguments)}")
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode != 0:
        message = f"`stagetrace {shlex.join(arguments)}` ended with {done.returncode}; what it said is above."
        raise DemoFailed(message)
    return done.stdout or ""


def wait_for_breaches(jaeger: Jaeger) -> list[dict[str, Any]]:
    """Return the breaches once all slow requests are among them and two answers in a row are the same."""
    before: list[dict[str, Any]] = []
    deadline = time.monotonic() + QUERYABLE_WITHIN_S
    while time.monotonic() < deadline:
        answer = json.loads(stagetrace("breaches", "--store", jaeger.url, "--since", "15m", "--json", capture=True))
        breaches: list[dict[str, Any]] = answer["breaches"]
        if len(breaches) >= SLOW and breaches == before and answer["complete"]:
            return breaches
        before = breaches
        time.sleep(0.5)
    found = len(before) or "No"
    message = (
        f"{found} breaches within {QUERYABLE_WITHIN_S} s, but {SLOW} requests were slow enough to break '{PROMISE}'."
    )
    raise DemoFailed(message)


NEXT = f"""
Everything is stopped again. The same for your own service:

  pip install stagetrace      # into the environment of the service, then start it as ever, with

  STAGETRACE=1 STAGETRACE_SLA="{PROMISE}" \\
  OTEL_SERVICE_NAME=my-service OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317 uvicorn app:app

  stagetrace breaches --store jaeger://127.0.0.1:16685 --since 15m

A Collector and a Jaeger that stay: `docker compose up`, or collector-config/README.md without Docker."""


def demo(folder: Path) -> None:
    """Run it all."""
    say("starting Jaeger and the OpenTelemetry Collector ...")
    with run_jaeger(folder) as jaeger:
        with run_collector(folder, jaeger) as collector:
            settings = recording(collector)
            say("starting the ticket router (examples/service, no tracing code in it):")
            say(
                "  " + " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items()) + " uvicorn app:app"
            )
            with run_service(folder, settings) as address:
                say(
                    f"sending requests: {ORDINARY} ordinary, {LONG_LOGS} with a long server log, "
                    f"{SLOW_UPLOADS} uploaded slowly, {BIG_BATCHES} with 20,000 texts ..."
                )
                count = send(address)
            say("waiting until their spans have come through the Collector into Jaeger ...")
            breaches = wait_for_breaches(jaeger)
            say(f"{len(breaches)} of {count} requests broke the promise.")
        window = ("--store", jaeger.url)
        stagetrace("breaches", *window, "--since", "15m")
        worst = max(breaches, key=lambda breach: float(breach["overrun_ms"]))
        stagetrace("trace", str(worst["trace_id"]), *window)


def main() -> int:
    """Run the demo in a folder that is gone afterwards; return the exit code."""
    # `kill` and the end of a terminal clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="stagetrace-demo-") as folder:
            demo(Path(folder))
    except KeyboardInterrupt:
        say("\ninterrupted; everything is stopped")
        return 130
    except (BackendMissing, BackendFailed, DemoFailed) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    say(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
