"""A service in which requests are in each other's way. Each signs that it has begun, by a file."""

import asyncio
import contextlib
import gc
import re
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI

THREADS = 2  # of each pool
HOLDS_GIL = "a" * 21 + "b"
lock = threading.Lock()
executor = ThreadPoolExecutor(THREADS)
is_computing = threading.Event()
heap: list[list[int]] = []


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> None: ...


@app.get("/blocking")
async def blocking(sign: Path, seconds: float) -> None:
    sign.touch()  # noqa: ASYNC240
    time.sleep(seconds)  # noqa: ASYNC251


@app.get("/unhurried")
async def unhurried(sign: Path, seconds: float) -> None:
    """Block the event loop, within an objective that allows for it."""
    sign.touch()  # noqa: ASYNC240
    time.sleep(seconds)  # noqa: ASYNC251


@app.get("/awaiting")
async def awaiting(sign: Path, seconds: float) -> None:
    sign.touch()  # noqa: ASYNC240
    await asyncio.sleep(seconds)


@app.get("/sleeping")
def sleeping(sign: Path, seconds: float) -> None:
    sign.touch()
    time.sleep(seconds)


def execute(sign: Path, seconds: float) -> None:
    sign.touch()
    time.sleep(seconds)


@app.get("/executing")
async def executing(sign: Path, seconds: float) -> None:
    await asyncio.get_running_loop().run_in_executor(executor, execute, sign, seconds)


def hold(seconds: float) -> None:
    until = time.monotonic() + seconds
    with lock:
        is_computing.set()
        while time.monotonic() < until:
            sum(range(100))


@app.get("/locked")
def locked(seconds: float) -> None:
    is_computing.clear()
    threading.Thread(target=hold, args=(seconds,), daemon=True).start()
    is_computing.wait(10)
    with lock:
        pass


@app.get("/parsing")
def parsing() -> None:
    for _ in range(3):
        re.match(r"(a+)+$", HOLDS_GIL)


@app.get("/collecting")
def collecting() -> None:
    if not heap:
        gc.disable()
        heap.extend([index] for index in range(1_000_000))
        gc.enable()
    gc.collect()


def parse(seconds: float) -> None:
    time.sleep(seconds)
    parsing()


@app.get("/waiting-for-the-gil")
def waiting_for_the_gil(seconds: float) -> None:
    """Compute a little, while another thread holds the GIL."""
    threading.Thread(target=parse, args=(seconds,), daemon=True).start()
    until = time.monotonic() + 2 * seconds
    while time.monotonic() < until:
        sum(range(100))
