"""Call an ASGI application without a server or a socket, in a process of its own, once for each set-up and round.

Requests follow one another, or so many are in flight at a time, each in a task of its own as under a real server, so
objects left in its context stay there. The process prints one JSON object: `requests`, `cpu_s` of the process with all
its threads, exports included, `seconds` of the loop, `collections` of the garbage collector by generation. To take
turns with others it prints a line when it is ready, and after each block of requests that a line of its input asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping

    Message = MutableMapping[str, Any]
    App = Callable[
        [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
        Awaitable[None],
    ]

BODY = json.dumps({"features": [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8]}).encode()
HEADERS = [
    (b"host", b"bench:8000"),
    (b"user-agent", b"bench"),
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
]
PATH = "/predict"
# The process is idle if it used no more than IDLE_S of CPU in LOOK_S.
LOOK_S, IDLE_S, MOST_LOOKS = 0.2, 0.002, 50


def scope_of(path: str) -> dict[str, Any]:
    """Return a scope as of uvicorn, a new one for each request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(HEADERS),
        "state": {},
    }


class Exchange:
    """The channels of one request: its body in, its response out."""

    def __init__(self) -> None:
        self._sent = False
        self.status = 0
        self.complete = False

    async def receive(self) -> Message:
        if self._sent:
            await asyncio.get_running_loop().create_future()  # the client stays
        self._sent = True
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.complete = not message.get("more_body", False)


async def call(app: App, paths: Iterable[str], at_once: int = 1) -> int:
    """Send requests, `at_once` at a time; return their number. A status other than 200 ends the benchmark."""
    counts = await asyncio.gather(*(_call(app, one) for one in _shared(paths, at_once)))
    return sum(counts)


def _shared(paths: Iterable[str], at_once: int) -> list[Iterable[str]]:
    """Return one source of paths for each of those that send at once: they take from the same."""
    source = iter(paths)
    return [source] * at_once


async def _call(app: App, paths: Iterable[str]) -> int:
    loop = asyncio.get_running_loop()
    count = 0
    for path in paths:
        exchange = Exchange()
        await loop.create_task(app(scope_of(path), exchange.receive, exchange.send))  # type: ignore[arg-type]
        if exchange.status != 200 or not exchange.complete:
            raise SystemExit(f"{path} was answered with {exchange.status}, complete: {exchange.complete}")
        count += 1
    return count


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    """Start the application as a server does, and stop it at the end of the block."""
    asked: asyncio.Queue[Message] = asyncio.Queue()
    sent: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    running = asyncio.ensure_future(app(scope, asked.get, sent.put))
    for step in ("startup", "shutdown"):
        await asked.put({"type": f"lifespan.{step}"})
        message = await sent.get()
        if message["type"] != f"lifespan.{step}.complete":
            raise SystemExit(f"the application did not manage its {step}: {message}")
        if step == "startup":
            yield
    await running


def load(name: str) -> Any:
    """Return the object of `module:name`; modules are beside this file."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Collections:
    """Count the collections of the garbage collector, and their seconds, by generation."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0]
        self.seconds = [0.0, 0.0, 0.0]
        self._started = 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self.counts[info["generation"]] += 1
            self.seconds[info["generation"]] += time.perf_counter() - self._started


async def settle(seconds: float) -> None:
    """Wait `seconds`, and then until the process is idle: work in progress belongs to earlier requests."""
    await asyncio.sleep(seconds)
    for _ in range(MOST_LOOKS if seconds else 0):
        before = time.process_time()
        await asyncio.sleep(LOOK_S)
        if time.process_time() - before < IDLE_S:
            return


async def measure(
    app: App, paths: list[str], blocks: Iterable[int], warm_up: int, settle_s: float, at_once: int
) -> dict[str, Any]:
    """Start the application, send the requests, wait for the exports; return the figures."""
    requests = 0
    async with lifespan(app):
        await call(app, _around(paths, warm_up), at_once)
        await settle(settle_s)
        collections = Collections()
        before, started = time.process_time_ns(), time.perf_counter()
        for block in blocks:
            await call(app, _around(paths, block), at_once)
            requests += block
        seconds = time.perf_counter() - started
        await settle(settle_s)
        cpu_s = (time.process_time_ns() - before) / 1e9
        return {"requests": requests, "cpu_s": cpu_s, "seconds": seconds, "collections": collections.counts}


def turns() -> Iterator[int]:
    """Yield how many requests each line of the input asks for; say when the process is ready, and for the next ones."""
    print(flush=True)
    for line in sys.stdin:
        yield int(line)
        print(flush=True)


def _around(paths: list[str], count: int) -> Iterable[str]:
    return (paths[number % len(paths)] for number in range(count))


def main() -> None:
    """Warm up, wait, measure, wait."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: STAGETRACE=1 python benchmarks/asgi.py --app app_staged:app --requests 4000",
    )
    parser.add_argument("--app", default="app_staged:app", help="module:name, a module of this folder")
    parser.add_argument("--paths", help="module:name of a list of paths to ask for in turn; default /predict")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--in-turns", action="store_true", help="as many requests as each line of the input says")
    parser.add_argument("--warm-up", type=int, default=500, help="requests made before")
    parser.add_argument("--settle", type=float, default=0, help="seconds before and after, in which exports end")
    parser.add_argument("--at-once", type=int, default=1, help="requests in flight at a time")
    args = parser.parse_args()
    paths = load(args.paths) if args.paths else [PATH]
    blocks = turns() if args.in_turns else [args.requests]
    figures = asyncio.run(measure(load(args.app), paths, blocks, args.warm_up, args.settle, args.at_once))
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
