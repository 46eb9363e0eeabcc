"""Call a WSGI application without a server or a socket, in a process of its own, once for each set-up and round.

Requests follow one another, each as gunicorn would pass it on. The process prints one JSON object as `asgi.py` does.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.asgi import BODY, HEADERS, IDLE_S, LOOK_S, MOST_LOOKS, PATH, Collections, load, turns


def environ_of() -> dict[str, Any]:
    """Return an environ as of gunicorn, a new one for each request."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": PATH,
        "QUERY_STRING": "",
        "RAW_URI": PATH,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(BODY),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in HEADERS:
        key = name.decode().upper().replace("-", "_")
        environ[key if key.startswith("CONTENT_") else f"HTTP_{key}"] = value.decode()
    return environ


def call(app: Any, count: int) -> None:
    """Send one request after the other. A status other than 200 ends the benchmark."""
    statuses: list[str] = []

    def start_response(status: str, _headers: Any, _exc_info: Any = None) -> Any:
        statuses.append(status)

    for _ in range(count):
        answer = app(environ_of(), start_response)
        for _chunk in answer:
            pass
        answer.close()
        if statuses.pop() != "200 OK":
            raise SystemExit("not every answer was 200")


def settle(seconds: float) -> None:
    """Wait `seconds`, and then until the process is idle: work in progress belongs to earlier requests."""
    time.sleep(seconds)
    for _ in range(MOST_LOOKS if seconds else 0):
        before = time.process_time()
        time.sleep(LOOK_S)
        if time.process_time() - before < IDLE_S:
            return


def main() -> None:
    """Warm up, wait, measure, wait."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: STAGETRACE=1 python benchmarks/wsgi.py --app app_flask:app --requests 4000",
    )
    parser.add_argument("--app", default="app_flask:app", help="module:name, a module of this folder")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--in-turns", action="store_true", help="as many requests as each line of the input says")
    parser.add_argument("--warm-up", type=int, default=500, help="requests made before")
    parser.add_argument("--settle", type=float, default=0, help="seconds before and after, in which exports end")
    args = parser.parse_args()
    app = load(args.app)
    call(app, args.warm_up)
    settle(args.settle)
    collections = Collections()
    requests, before, started = 0, time.process_time_ns(), time.perf_counter()
    for block in turns() if args.in_turns else [args.requests]:
        call(app, block)
        requests += block
    seconds = time.perf_counter() - started
    settle(args.settle)
    cpu_s = (time.process_time_ns() - before) / 1e9
    gc.callbacks.clear()
    figures = {"requests": requests, "cpu_s": cpu_s, "seconds": seconds, "collections": collections.counts}
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
