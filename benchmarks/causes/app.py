"""Serve the service of the fault benchmark: it scores rows, and its requests can be made slow in every way.

The query of a request selects the fault; no other trace of it reaches stagetrace.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import queue
import socket
import subprocess
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx
import urllib3
from anyio import to_thread
from fastapi import FastAPI
from sklearn.base import BaseEstimator
from starlette.requests import Request  # noqa: TC002 -- FastAPI looks at it
from starlette.responses import StreamingResponse

import stagetrace

if TYPE_CHECKING:
    from collections.abc import Callable

ROW_S = 0.0015  # of computing for each row
PIECE = 65_536

app = FastAPI()
dependency = os.environ.get("BENCH_DEPENDENCY", "")
DEPENDENCY: Final = (urlsplit(dependency).hostname or "", urlsplit(dependency).port or 0)
stopping = threading.Event()
slower: dict[str, float] = {}  # by what models multiply their work
heap: list[list[int]] = []


def compute(cpu_s: float) -> None:
    """Compute for `cpu_s` seconds of this thread's CPU time."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(500))


class Model(BaseEstimator):  # type: ignore[misc]
    """Compute for each row."""

    def predict(self, rows: list[int]) -> list[int]:
        compute(ROW_S * len(rows) * slower.get(type(self).__name__, 1.0))
        return rows


class Compiled(Model):
    """Compile itself in the first call, as models with lazily built kernels do."""

    lines = 0

    def predict(self, rows: list[int]) -> list[int]:
        if self.lines:
            text = "\n".join(f"x{n} = ({n} + 1) * {n} if {n} else [{n}, {n}]" for n in range(self.lines))
            compile(text, "kernel", "exec")
            self.lines = 0
        return super().predict(rows)


class Batcher:
    """Score rows of up to `MOST` requests together, in a thread of its own."""

    MOST = 8

    def __init__(self) -> None:
        self.while_s = 0.002
        self._asked: queue.SimpleQueue[tuple[Any, int, Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def score(self, rows: int) -> Future[None]:
        """Return a future of the scores of these rows."""
        done: Future[None] = Future()
        self._asked.put((stagetrace.carry(), rows, done))
        return done

    def _work(self) -> None:
        while True:
            taken = [self._asked.get()]
            until = time.monotonic() + self.while_s
            with suppress(queue.Empty):
                while len(taken) < self.MOST:
                    taken.append(self._asked.get(timeout=max(0.0, until - time.monotonic())))
            with stagetrace.batch([carrier for carrier, _, _ in taken]):
                model.predict([0] * sum(rows for _, rows, _ in taken))
            for _, _, done in taken:
                done.set_result(None)


model = Model()
batcher = Batcher()
pool, asking, asking_async = urllib3.PoolManager(), httpx.Client(), httpx.AsyncClient()


@functools.cache
def compiled(name: str, lines: int) -> Compiled:
    """Return the model of this name, which is not compiled yet."""
    found: Compiled = type(name, (Compiled,), {})()
    found.lines = lines
    return found


@app.get("/health")
async def health() -> None:
    """Report that the service is up."""


@app.get("/control")
@app.get("/predict")
def predict(
    rows: int = 2, wait_ms: int = 0, client: str = "httpx", collections: int = 0, name: str = "", lines: int = 0
) -> int:
    """Score rows in a thread of the pool."""
    if wait_ms:
        WAITS[client](wait_ms)
    for _ in range(collections):
        gc.collect()
    one = compiled(name, lines) if name else model
    return len(one.predict([0] * rows))


def _by_socket(ms: int) -> None:
    with socket.create_connection(DEPENDENCY) as connection:
        connection.sendall(f"GET /?ms={ms} HTTP/1.0\r\n\r\n".encode())
        while connection.recv(PIECE):
            pass


WAITS: Final[dict[str, Callable[[int], object]]] = {
    "httpx": lambda ms: asking.get(f"{dependency}/?ms={ms}"),
    "urllib3": lambda ms: pool.request("GET", f"{dependency}/?ms={ms}"),
    "socket": _by_socket,
    "sleep": lambda ms: time.sleep(ms / 1e3),
    "process": lambda ms: subprocess.run(["sleep", str(ms / 1e3)], check=True),
}


@app.get("/awaiting")
async def awaiting(rows: int = 2, wait_ms: int = 0) -> int:
    """Score rows, after a call of another service, in the event loop."""
    if wait_ms:
        await asking_async.get(f"{dependency}/?ms={wait_ms}")
    return len(model.predict([0] * rows))


@app.post("/upload")
async def upload(request: Request, rows: int = 2) -> int:
    """Score rows once the body is there."""
    body = await request.body()
    return len(await to_thread.run_sync(model.predict, [0] * rows)) + len(body)


@app.get("/download")
async def download(pieces: int = 1, rows: int = 2) -> StreamingResponse:
    """Respond with `pieces` chunks, one by one."""
    await to_thread.run_sync(model.predict, [0] * rows)

    async def parts() -> Any:
        for _ in range(pieces):
            yield b"x" * PIECE

    return StreamingResponse(parts())


@app.get("/batched")
async def batched(rows: int = 2) -> None:
    """Score rows together with those of other requests."""
    await asyncio.wrap_future(batcher.score(rows))


@app.post("/while")
async def wait_for_others(ms: float) -> None:
    """Set how long batches wait until they are full."""
    batcher.while_s = ms / 1e3


@app.get("/hold")
async def hold(ms: int, *, computing: bool = False) -> None:
    """Block the event loop."""
    if computing:
        compute(ms / 1e3)
    else:
        time.sleep(ms / 1e3)  # noqa: ASYNC251 -- the fault


@app.get("/occupy")
def occupy(ms: int) -> None:
    """Occupy a thread of the pool."""
    time.sleep(ms / 1e3)


@app.post("/rivals")
async def rivals(count: int) -> None:
    """Let `count` threads compute until the next call; 0 ends them."""
    stopping.set()
    if count:
        stopping.clear()
    for _ in range(count):
        threading.Thread(target=_compete, daemon=True).start()


def _compete() -> None:
    while not stopping.is_set():
        sum(range(1_000))


@app.post("/slower")
async def make_slower(name: str, by: float) -> None:
    """Make one model slower."""
    slower[name] = by


@app.post("/heap")
async def make_heap(objects: int) -> None:
    """Keep `objects` objects that the garbage collector has to traverse."""
    heap[:] = [[number] for number in range(objects)]


gc.collect()
gc.freeze()  # otherwise each full collection traverses the libraries
