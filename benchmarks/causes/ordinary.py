"""Produce ordinary loads: services without an injected fault, whose requests are late for an everyday reason.

The draw of each request decides the reason: most take their normal time, and some have one part with a long tail. If
no such part was drawn and the request was late, other requests delayed it, whatever resource they used.
"""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Final

from benchmarks.causes.faults import Case
from benchmarks.causes.matrix import CONTENTION

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from benchmarks.ground_truth.client import Client

SERVER: Final = ("-m", "uvicorn", "benchmarks.causes.app_ordinary:app", "--no-access-log", "--port")
SCORE: Final = ("GET", "/score?features_ms=3")
SCORE_ASYNC: Final = ("GET", "/score-async?features_ms=3")
PREPARE: Final = ("GET", "/prepare?ms=2")
LAYERS: Final = ("GET", "/layers")
RECORD: Final = ("GET", "/record")
BURST: Final = 60  # requests at once, on a pool of 40
RATE: Final = 12.0  # requests/s of the mixture, and so many seconds of it
SECONDS: Final = 5
TAIL: Final = 0.2  # of the mixture's requests have one


def _tail(draw: Random) -> int:
    return draw.randint(100, 200)


async def native_threads(client: Client) -> None:
    """Sleep and multiply matrices, one request at a time, either of them for long."""
    sleep = client.chance.random() < 0.5
    path = f"/layers?sleep_ms={_tail(client.chance)}" if sleep else f"/layers?ms={_tail(client.chance)}"
    await client.ask(path, "io_wait" if sleep else "compute")


async def feature_store(client: Client) -> None:
    """Call a feature store that is slow at times."""
    path = client.chance.choice(("/score", "/score-async"))
    await client.ask(f"{path}?features_ms={_tail(client.chance)}", "io_wait")


async def locked_database(client: Client) -> None:
    """Write to a database while another process writes to it."""
    connection = sqlite3.connect(client.database, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    asked = asyncio.create_task(client.ask("/record", "io_wait"))
    await asyncio.sleep(_tail(client.chance) / 1e3)
    connection.execute("COMMIT")
    connection.close()
    await asked


async def computing_handler(client: Client) -> None:
    """Compute in an asynchronous handler, outside any model."""
    await client.ask(f"/prepare?ms={_tail(client.chance)}", "compute")


async def two_clients(client: Client) -> None:
    """Let two clients send requests of pure Python, each as soon as it has its response."""

    async def ask_on() -> None:
        for _ in range(3):
            await client.ask(f"/score?ms={client.chance.randint(48, 55)}", "lock_wait")

    await asyncio.gather(ask_on(), ask_on())


async def heavy_neighbours(client: Client) -> None:
    """Let threads of the service compute in Python, and send requests that compute, or wait for longer than that."""
    draw = client.chance
    await client.ask(f"/neighbours?count={draw.randint(1, 2)}", method="POST")
    for _ in range(draw.randint(2, 4)):
        if draw.random() < 0.5:
            await client.ask(f"/score?ms={draw.randint(40, 55)}", "lock_wait")
        else:
            await client.ask(f"/score?ms=1&features_ms={2 * _tail(draw)}", "io_wait")
    await client.ask("/neighbours?count=0", method="POST")


def _score(draw: Random) -> tuple[str, str]:
    if draw.random() < 0.5:
        return f"/score?features_ms={_tail(draw)}", "io_wait"
    return f"/score?features_ms=3&ms={_tail(draw)}", "compute"


MIXTURE: Final[tuple[tuple[str, Callable[[Random], tuple[str, str]]], ...]] = (
    (SCORE[1], _score),
    (SCORE_ASYNC[1], lambda draw: (f"/score-async?features_ms={_tail(draw)}", "io_wait")),
    (LAYERS[1], lambda draw: (f"/layers?sleep_ms={_tail(draw)}", "io_wait")),
    (PREPARE[1], lambda _: (PREPARE[1], CONTENTION)),
    (RECORD[1], lambda _: (RECORD[1], CONTENTION)),
)


async def mixture(client: Client) -> None:
    """Send requests of all kinds at random times, some with a long tail."""
    draw = client.chance
    asked = []
    for _ in range(int(SECONDS * RATE)):
        usual, tailed = draw.choice(MIXTURE)
        path, truth = tailed(draw) if draw.random() < TAIL else (usual, CONTENTION)
        asked.append(asyncio.create_task(client.ask(path, truth)))
        await asyncio.sleep(draw.expovariate(RATE))
    await asyncio.gather(*asked)


async def burst(client: Client) -> None:
    """Send more requests at once than the pool has threads."""
    ms = client.chance.randint(2, 4)
    await asyncio.gather(*(client.ask(f"/score?ms={ms}&features_ms=10", CONTENTION) for _ in range(BURST)))
    await asyncio.sleep(0.2)


ORDINARY: Final = (
    Case("BLAS with its own threads", native_threads, (LAYERS,), (LAYERS,), server=SERVER, is_quiet=True),
    Case("slow feature store", feature_store, (SCORE, SCORE_ASYNC), (SCORE, SCORE_ASYNC), server=SERVER),
    Case("locked database", locked_database, (RECORD,), (SCORE, RECORD), server=SERVER),
    Case("handler that computes in the loop", computing_handler, (PREPARE,), (PREPARE,), server=SERVER, is_quiet=True),
    Case("two clients", two_clients, (("GET", "/score?ms=50"),), server=SERVER, is_quiet=True),
    Case("neighbours that hold the GIL", heavy_neighbours, (SCORE,), (SCORE,), server=SERVER, is_quiet=True),
    Case("mixed endpoints", mixture, (SCORE, SCORE_ASYNC, LAYERS, PREPARE, RECORD), server=SERVER, is_quiet=True),
    Case("burst of 60 on 40 threads", burst, (SCORE,), (SCORE,), server=SERVER, is_quiet=True),
)
