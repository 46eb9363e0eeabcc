"""Stall in every way whose line of code is known: a comment at the end of each such line names the stall.

Each function takes about `ms` milliseconds. A stall of several lines is right with any of them.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import re
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HERE: Final = "benchmarks/stalls/planted.py"
POOL: Final = 4  # threads of those servers that have a pool
weights = np.random.default_rng(1).random((400, 400))
began = asyncio.Event()
heap: list[list[int]] = []  # what the garbage collector has to traverse


def lines(stall: str) -> set[int]:
    """Return the numbers of the lines that a stall marks as its own."""
    source = Path(__file__).read_text().splitlines()
    return {number for number, line in enumerate(source, 1) if line.endswith(f"# stall: {stall}")}


def after(ms: float, work: Callable[[], Any]) -> None:
    """Do this in a thread of its own, `ms` later."""
    timer = threading.Timer(ms / 1e3, work)
    timer.daemon = True
    timer.start()


# --- of a thread, or of an event loop, which they block


def ordinary(ms: float) -> None:
    """Take the time that a request normally takes."""
    time.sleep(ms / 1e3)


def lock(ms: float) -> None:
    """Wait for a lock that another thread holds."""
    mine, taken = threading.Lock(), threading.Event()

    def hold() -> None:
        with mine:
            taken.set()
            time.sleep(ms / 1e3)

    threading.Thread(target=hold, daemon=True).start()
    taken.wait()
    with mine:  # stall: lock
        pass


def sleep(ms: float) -> None:
    """Sleep."""
    time.sleep(ms / 1e3)  # stall: sleep


def block_others(ms: float) -> None:
    """Block the event loop, once another request awaits that."""
    began.set()
    time.sleep(ms / 1e3)  # stall: block_others
    began.clear()


def recv(ms: float) -> None:
    """Wait for a byte of a peer."""
    here, there = socket.socketpair()
    with here, there:
        after(ms, lambda: there.send(b"x"))
        here.recv(1)  # stall: recv


def fifo(ms: float) -> None:
    """Read a file whose writer takes its time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fifo")
        os.mkfifo(path)
        after(ms, lambda: path.write_text("x"))
        path.read_text()  # stall: fifo


def database(ms: float) -> None:
    """Write to a database that another connection has locked."""
    with tempfile.TemporaryDirectory() as folder:
        other = sqlite3.connect(f"{folder}/db", isolation_level=None, check_same_thread=False)
        other.execute("CREATE TABLE scores (at REAL)")
        other.execute("BEGIN EXCLUSIVE")
        after(ms, lambda: other.execute("COMMIT"))
        mine = sqlite3.connect(f"{folder}/db", timeout=30, isolation_level=None)
        mine.execute("INSERT INTO scores VALUES (1)")  # stall: database
        mine.close()
        other.close()


def numpy(ms: float) -> None:
    """Multiply matrices, without the GIL."""
    until = time.monotonic() + ms / 1e3
    while time.monotonic() < until:  # stall: numpy
        weights @ weights  # stall: numpy


def loop(ms: float) -> None:
    """Compute in Python."""
    until, total = time.monotonic() + ms / 1e3, 0
    while time.monotonic() < until:  # stall: loop
        for number in range(1000):  # stall: loop
            total += number * number  # stall: loop


def regex(ms: float) -> None:
    """Match by backtracking, in C with the GIL held."""
    text = "a" * letters(ms) + "b"
    re.match(r"(a+)+$", text)  # stall: regex


def factorial(ms: float) -> None:
    """Multiply long numbers in one call that never releases the GIL."""
    of = factor(ms)
    math.factorial(of)  # stall: factorial


def collect(ms: float) -> None:  # noqa: ARG001 -- the size of the heap says how long
    """Collect garbage among many objects."""
    gc.collect()  # stall: collect


def allocate(ms: float) -> None:  # noqa: ARG001 -- the size of the heap says how long
    """Allocate so much that the garbage collector runs by itself."""
    kept: list[list[int]] = [[] for _ in range(len(heap) // 2)]  # stall: allocate
    del kept  # stall: allocate


def process(ms: float) -> None:
    """Wait for a process."""
    subprocess.run(["sleep", f"{ms / 1e3}"], check=True)  # stall: process


# --- of a coroutine, which lets the event loop run


async def await_deep(ms: float) -> None:
    """Await two coroutines down."""
    await _middle(ms)


async def _middle(ms: float) -> None:
    await _inner(ms)


async def _inner(ms: float) -> None:
    await asyncio.sleep(ms / 1e3)  # stall: await_deep


async def await_task(ms: float) -> None:
    """Await a task: its own line, or the one where the task waits."""
    task = asyncio.create_task(_in_task(ms))
    await task  # stall: await_task


async def _in_task(ms: float) -> None:
    await asyncio.sleep(ms / 1e3)  # stall: await_task


async def await_gather(ms: float) -> None:
    """Await two tasks, of which one is slow: its own line, or the one where that task waits."""
    await asyncio.gather(_quick(), _slow(ms))  # stall: await_gather


async def _quick() -> None:
    await asyncio.sleep(0)


async def _slow(ms: float) -> None:
    await asyncio.sleep(ms / 1e3)  # stall: await_gather


async def await_lock(ms: float) -> None:
    """Await a lock that another task holds."""
    mine = asyncio.Lock()
    await mine.acquire()
    asyncio.get_running_loop().call_later(ms / 1e3, mine.release)
    async with mine:  # stall: await_lock
        pass


async def await_blocker(ms: float) -> None:
    """Await that another request begins, which then blocks the event loop; for `ms` at most."""
    await asyncio.wait_for(began.wait(), ms / 1e3)


async def executor(ms: float) -> None:
    """Sleep in a thread of the loop's executor."""
    await asyncio.get_running_loop().run_in_executor(None, _in_executor, ms)


def _in_executor(ms: float) -> None:
    time.sleep(ms / 1e3)  # stall: executor


async def to_thread(ms: float) -> None:
    """Sleep in a thread."""
    await asyncio.to_thread(_in_thread, ms)


def _in_thread(ms: float) -> None:
    time.sleep(ms / 1e3)  # stall: to_thread


async def stream(ms: float) -> None:
    """Await a byte of a peer."""
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    after(ms, lambda: there.send(b"x"))
    await reader.read(1)  # stall: stream
    writer.close()
    there.close()


BLOCKING: Final[dict[str, Callable[[float], None]]] = {
    one.__name__: one
    for one in (
        *(ordinary, lock, sleep, block_others, recv, fifo, database, numpy),
        *(loop, regex, factorial, collect, allocate, process),
    )
}
AWAITING: Final[dict[str, Callable[[float], Awaitable[None]]]] = {
    one.__name__: one
    for one in (await_deep, await_task, await_gather, await_lock, await_blocker, executor, to_thread, stream)
}


async def plant(stall: str, ms: float) -> None:
    """Stall in the event loop."""
    if stall in AWAITING:
        await AWAITING[stall](ms)
    else:
        BLOCKING[stall](ms)


# --- sizes


@cache
def letters(ms: float) -> int:
    """Return how many letters take about so long to match."""
    return _size(range(10, 40), lambda size: re.match(r"(a+)+$", "a" * size + "b"), 0.8 * ms)


@cache
def factor(ms: float) -> int:
    """Return the number whose factorial takes about so long."""
    return _size(range(20_000, 10**7, 10_000), math.factorial, ms)


def _size(sizes: range, work: Callable[[int], object], ms: float) -> int:
    """Return the first of these sizes with which the work takes at least so long."""
    for size in sizes:
        began = time.monotonic()
        work(size)
        if time.monotonic() - began >= ms / 1e3:
            return size
    raise SystemExit(f"no size in {sizes} takes {ms} ms")


def resize_heap(objects: int) -> None:
    """Keep `objects` objects that the garbage collector has to traverse."""
    heap[:] = [[] for _ in range(objects)]


gc.collect()
gc.freeze()  # otherwise each full collection traverses the libraries
