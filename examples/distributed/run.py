"""Start the three services, each with an objective of its own, send a few requests, and stop them.

Run `stagetrace up` before. Spans go to OTEL_EXPORTER_OTLP_ENDPOINT, by default http://localhost:4317.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
DELAY_S = 0.2  # delay of the slow connection for each chunk, one way
OBJECTIVES = {
    "gateway": "GET /recommend/{user} within 250ms for 99%",
    "features": "GET /features/{user} within 50ms for 99%",
    "scorer": "shop.Scorer/Score within 100ms for 99%",
}
REQUESTS = {
    "an ordinary one": "/recommend/1",
    "a user who is not in the features' cache": "/recommend/17",
    "all items at once": "/recommend/2?items=200000",
    "features at the far end of a long line": "/recommend/3?line=far",
}


def free_port() -> int:
    """Return a free port, below those that the kernel gives to connections: no other process gets it meanwhile."""
    while True:
        port = random.randrange(10_000, 20_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def service(name: str, *command: str, **env: str) -> Iterator[None]:
    """Run a service with recording on; its code does not refer to it."""
    recording = {"STAGETRACE": "1", "STAGETRACE_SLA": OBJECTIVES[name], "OTEL_SERVICE_NAME": name}
    process = subprocess.Popen([sys.executable, *command], cwd=HERE, env={**os.environ, **recording, **env})
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def slow_connection(port: int) -> int:
    """Return a port that forwards to `port` over a slow connection."""
    server = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, target: socket.socket) -> None:
        while chunk := source.recv(65_536):
            time.sleep(DELAY_S)
            target.sendall(chunk)
        target.close()

    def accept() -> None:
        while True:
            here = server.accept()[0]
            there = socket.create_connection(("127.0.0.1", port))
            for ends in ((here, there), (there, here)):
                threading.Thread(target=carry, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(server.getsockname()[1])


def wait_for(*ports: int) -> None:
    deadline = time.monotonic() + 60
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def main() -> None:
    gateway, features, scorer = free_port(), free_port(), free_port()
    web = ("-m", "uvicorn", "--log-level", "warning", "--port")
    with ExitStack() as running:
        running.enter_context(service("features", *web, str(features), "features:app"))
        running.enter_context(service("scorer", "scorer.py", PORT=str(scorer)))
        env = {
            "FEATURES_URL": f"http://127.0.0.1:{features}",
            "FEATURES_FAR_URL": f"http://127.0.0.1:{slow_connection(features)}",
            "SCORER_TARGET": f"127.0.0.1:{scorer}",
        }
        running.enter_context(service("gateway", *web, str(gateway), "gateway:app", **env))
        wait_for(gateway, features, scorer)
        for path in ("/recommend/1", *REQUESTS.values()):  # the first opens the connections
            trace_id = secrets.token_hex(16)
            request = urllib.request.Request(
                f"http://127.0.0.1:{gateway}{path}",
                headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
            )
            urllib.request.urlopen(request, timeout=20).read()  # noqa: S310 -- a URL of ours
            what = next((what for what, of in REQUESTS.items() if of == path), path)
            print(f"{what}: stagetrace trace {trace_id}", flush=True)


if __name__ == "__main__":
    main()
