"""A service as many are: NumPy with the threads that its BLAS starts, a database, other work in the background."""

import asyncio
import os
import socket
import threading
import time

import computing
import numpy as np
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware

app = FastAPI()
matrix = np.random.default_rng(1).random((700, 700))
stop = threading.Event()
lock = threading.Lock()
database, its_end = socket.socketpair()


def multiply(cpu_s: float) -> None:
    """Multiply by BLAS, which lets go of the GIL and computes in threads of its own, too."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        _ = matrix @ matrix


@app.get("/health")
async def health() -> int:
    multiply(0.001)  # BLAS starts its threads
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


@app.post("/background")
async def background(count: int = 1) -> None:
    """Let so many threads compute in Python for good, none to let them end."""
    stop.set()
    if count:
        stop.clear()
    for _ in range(count):
        threading.Thread(target=computing.compete, args=(stop,), daemon=True).start()


@app.get("/sleep-and-multiply")
def sleep_and_multiply(sleep_s: float, cpu_s: float) -> None:
    time.sleep(sleep_s)
    multiply(cpu_s)


@app.get("/sleep")
def only_sleep(sleep_s: float) -> None:
    time.sleep(sleep_s)


@app.get("/multiply")
def only_multiply(cpu_s: float) -> None:
    multiply(cpu_s)


@app.get("/compute")
def only_compute(cpu_s: float) -> None:
    computing.compute(cpu_s)


@app.get("/ask")
def ask(takes_s: float) -> None:
    """Ask a database, which takes so long to answer."""
    threading.Timer(takes_s, lambda: its_end.send(b"x")).start()
    database.recv(1)


@app.get("/holding")
def holding(cpu_s: float) -> None:
    """Compute while holding a lock."""
    with lock:
        computing.compute(cpu_s)


@app.get("/awaiting-and-computing")
async def awaiting_and_computing(sleep_s: float, cpu_s: float) -> None:
    await asyncio.sleep(sleep_s)
    computing.compute(cpu_s)


async def passing_on(request, call_next):  # noqa: ANN001, ANN201
    return await call_next(request)


behind = FastAPI()
behind.add_middleware(BaseHTTPMiddleware, dispatch=passing_on)  # which runs the rest of the application in another task
behind.get("/computing")(awaiting_and_computing)
app.mount("/behind", behind)
