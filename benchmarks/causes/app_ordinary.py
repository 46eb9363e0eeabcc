"""Serve a service as users write them: models beside a feature store, a database and NumPy; nothing is marked by hand.

The query of a request selects how its time is spent; no other trace of it reaches stagetrace.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI
from sklearn.base import BaseEstimator

from benchmarks.causes.app import compute

MATRIX = 600  # rows and columns: some milliseconds of BLAS, which uses every core

app = FastAPI()
store = ("127.0.0.1", urlsplit(os.environ.get("BENCH_DEPENDENCY", "")).port or 0)
database = os.environ.get("BENCH_DATABASE", ":memory:")
stopping = threading.Event()


class Search(BaseEstimator):  # type: ignore[misc]
    """Compute for a time that depends on the row, as a search or a decoder does."""

    def predict(self, rows: list[float]) -> list[float]:
        compute(sum(rows))
        return rows


class Layers(BaseEstimator):  # type: ignore[misc]
    """Multiply matrices, by the threads that BLAS starts by default."""

    def __init__(self) -> None:
        self.weights = np.random.default_rng(1).random((MATRIX, MATRIX))

    def predict(self, rows: list[float]) -> list[float]:
        until = time.monotonic() + sum(rows)
        while time.monotonic() < until:
            self.weights @ self.weights
        return rows


search, layers = Search(), Layers()


def _asked(ms: float) -> bytes:
    return f"GET /?ms={ms:.0f} HTTP/1.1\r\n\r\n".encode()


def fetch(ms: float) -> None:
    """Call the feature store over a plain socket, by a client without instrumentation."""
    with socket.create_connection(store) as connection:
        connection.sendall(_asked(ms))
        while connection.recv(4096):
            pass


async def fetch_async(ms: float) -> None:
    """Call it from the event loop."""
    reader, writer = await asyncio.open_connection(*store)
    writer.write(_asked(ms))
    await reader.read()
    writer.close()


@app.get("/health")
async def health() -> None:
    """Report that the service is up."""


@app.get("/score")
def score(ms: float = 5, features_ms: float = 0) -> str:
    """Look features up, and score them in Python."""
    if features_ms:
        fetch(features_ms)
    search.predict([ms / 1e3])
    return "fifteen bytes.."


@app.get("/score-async")
async def score_async(ms: float = 2, features_ms: float = 0) -> str:
    """Do the same in the event loop."""
    if features_ms:
        await fetch_async(features_ms)
    search.predict([ms / 1e3])
    return "fifteen bytes.."


@app.get("/prepare")
async def prepare(ms: float = 2) -> str:
    """Compute in the event loop, outside a model."""
    compute(ms / 1e3)
    return "fifteen bytes.."


@app.get("/layers")
def multiply(ms: float = 5, sleep_ms: float = 5) -> str:
    """Sleep, and multiply matrices."""
    time.sleep(sleep_ms / 1e3)
    layers.predict([ms / 1e3])
    return "fifteen bytes.."


@app.get("/record")
def record(ms: float = 2) -> str:
    """Score, and write that to the database, which another process locks at times."""
    search.predict([ms / 1e3])
    with sqlite3.connect(database, timeout=30) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS scores (at REAL)")
        connection.execute("INSERT INTO scores VALUES (?)", [time.time()])
    connection.close()
    return "fifteen bytes.."


@app.post("/neighbours")
async def neighbours(count: int) -> None:
    """Let `count` threads compute in Python until the next call; 0 ends them."""
    stopping.set()
    if count:
        await asyncio.sleep(0.01)  # those before have ended
        stopping.clear()
    for _ in range(count):
        threading.Thread(target=_compete, daemon=True).start()


def _compete() -> Any:
    while not stopping.is_set():
        sum(range(1_000))
