"""List the faults, one line each in CASES: how it is produced, and which requests are then slow for that reason alone.

An episode draws its times and sizes from the client's generator of random numbers, so a seed reproduces them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.causes.matrix import NOTHING
from benchmarks.ground_truth.client import RPC
from benchmarks.ground_truth.processes import start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from typing import Any

    from benchmarks.ground_truth.client import Client

    Episode = Callable[[Client], Awaitable[None]]

TOKENS: Final = 40  # of anyio's pool
WORKERS: Final = 4  # of the gRPC server
BURNER: Final = "while True: sum(range(10000))"
CORES: Final = os.cpu_count() or 1
PREDICT: Final = ("GET", "/predict?rows=2")
RANKER: Final = ("GET", "/predict?rows=9&name=Ranker")
FASTAPI: Final = ("-m", "uvicorn", "benchmarks.causes.app:app", "--no-access-log", "--port")
CALL: Final = (RPC, "/bench.Scorer/Predict?rows=2")
GRPC: Final = ("-m", "benchmarks.causes.app_grpc", "--port")
GUNICORN: Final = ("-m", "gunicorn", "benchmarks.causes.app_wsgi:app", "--bind")


@dataclass(frozen=True)
class Case:
    """One cause, produced one way; `normal` are earlier requests of its route, and `traffic` the others meanwhile."""

    name: str
    episode: Episode
    normal: tuple[tuple[str, str], ...] = (PREDICT,)
    traffic: tuple[tuple[str, str], ...] = (PREDICT,)
    needs_usual: bool = False  # it needs a baseline
    server: tuple[str, ...] = FASTAPI
    around: Callable[[Client], Any] | None = None  # what holds during all episodes of one service
    is_quiet: bool = False  # no other requests meanwhile


async def _later(seconds: float, work: Coroutine[Any, Any, Any]) -> None:
    await asyncio.sleep(seconds)
    await work


def _a_victim(client: Client, truth: str, also_ms: int = 0) -> Coroutine[Any, Any, Any]:
    path = client.chance.choice(("/predict?rows=2", "/predict?rows=3", "/awaiting?rows=2"))
    return client.ask(f"{path}&wait_ms={also_ms}", truth)


async def blocked_loop(client: Client, also_ms: int = 0) -> None:
    """Block the event loop, by sleeping or by computing, and send requests meanwhile."""
    draw = client.chance
    ms, computing = draw.randint(250, 500), draw.random() < 0.5
    victims = [
        _later(draw.uniform(0.05, 0.2 if also_ms else 0.4) * ms / 1e3, _a_victim(client, "socket_wait", also_ms))
        for _ in range(draw.randint(1, 3))
    ]
    await asyncio.gather(client.ask(f"/hold?ms={ms}&computing={computing}"), *victims)


async def busy_worker(client: Client) -> None:
    """Block the one worker of gunicorn, and send requests meanwhile."""
    draw = client.chance
    ms = draw.randint(200, 400)
    victims = [
        _later(draw.uniform(0.05, 0.5) * ms / 1e3, client.ask("/predict?rows=2", "socket_wait"))
        for _ in range(draw.randint(1, 3))
    ]
    await asyncio.gather(client.ask(f"/hold?ms={ms}"), *victims)


async def full_pool(client: Client, also_ms: int = 0) -> None:
    """Occupy each thread of the pool, and send one more request."""
    draw = client.chance
    ms = draw.randint(600, 900)
    occupied = [client.ask(f"/occupy?ms={ms}") for _ in range(TOKENS)]
    victims = [
        _later(0.3 + draw.uniform(0, 0.1), client.ask(f"/predict?rows=2&wait_ms={also_ms}", "pool_wait"))
        for _ in range(draw.randint(2, 5))
    ]
    await asyncio.gather(*occupied, *victims)


async def full_workers(client: Client) -> None:
    """Occupy each worker of a gRPC server, and send one more RPC."""
    draw = client.chance
    ms = draw.randint(250, 500)
    occupied = [client.ask(f"/bench.Scorer/Occupy?ms={ms}", method=RPC) for _ in range(WORKERS)]
    victims = [
        _later(draw.uniform(0.1, 0.5) * ms / 1e3, client.ask(CALL[1], "pool_wait", RPC))
        for _ in range(draw.randint(1, 4))
    ]
    await asyncio.gather(*occupied, *victims)


async def slow_batch(client: Client) -> None:
    """Let batches wait long for requests that do not arrive, or arrive while a large one is scored."""
    draw = client.chance
    if draw.random() < 0.5:
        await client.ask(f"/while?ms={draw.randint(150, 400)}", method="POST")
        for _ in range(draw.randint(1, 3)):
            await client.ask("/batched?rows=2", "batch_wait")
        await client.ask("/while?ms=2", method="POST")
    else:
        rows = draw.randint(120, 200)  # 1.5 ms each
        victims = [
            _later(draw.uniform(0.05, 0.3) * rows * 1.5e-3, client.ask("/batched?rows=2", "batch_wait"))
            for _ in range(draw.randint(1, 3))
        ]
        await asyncio.gather(client.ask(f"/batched?rows={rows}"), *victims)


async def slow_upload(client: Client, rows: int = 2) -> None:
    """Send a body in chunks."""
    draw = client.chance
    pieces = draw.randint(3, 8)
    pause = draw.uniform(0.15, 0.4) / pieces

    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b"x" * draw.choice((1, 100, 10_000))
            await asyncio.sleep(pause)

    await client.ask(f"/upload?rows={rows}", "slow_upload", "POST", trickle())


async def slow_download(client: Client) -> None:
    """Request megabytes, and do not read them for a while."""
    draw = client.chance
    path = f"/download?pieces={draw.randint(160, 256)}"
    await client.ask(path, "slow_download", read_after_s=draw.uniform(0.2, 0.5))


async def slow_dependency(client: Client) -> None:
    """Send requests that call another service, by each client library in turn."""
    draw = client.chance
    how = draw.choice(("/predict?client=httpx", "/predict?client=urllib3", "/awaiting?rows=2"))
    await client.ask(f"{how}&wait_ms={draw.randint(100, 350)}", "downstream")


async def uninstrumented(client: Client) -> None:
    """Send requests that wait in ways without a patch: a socket, a sleep, a process."""
    draw = client.chance
    how = draw.choice(("socket", "sleep", "process"))
    await client.ask(f"/predict?rows=2&client={how}&wait_ms={draw.randint(150, 350)}", "io_wait")


@asynccontextmanager
async def _slower(client: Client, by: float) -> AsyncIterator[None]:
    await client.ask(f"/slower?name=Ranker&by={by}", method="POST")
    yield
    await client.ask("/slower?name=Ranker&by=1", method="POST")


async def slower_model(client: Client) -> None:
    """Make one model slower for a few requests."""
    draw = client.chance
    async with _slower(client, draw.uniform(6, 10)):
        for _ in range(draw.randint(2, 5)):
            await client.ask(f"/predict?rows={draw.randint(7, 11)}&name=Ranker", "compute")


async def larger_input(client: Client) -> None:
    """Send at least twenty times the normal input."""
    await client.ask(f"/predict?rows={client.chance.randint(50, 90)}", "input_size")


async def first_call(client: Client) -> None:
    """Call a model that compiles itself in its first call."""
    draw = client.chance
    await client.ask(
        f"/predict?name=M{draw.getrandbits(64):x}&lines={draw.randint(2500, 6000)}",
        "cold_start",
    )


async def collector(client: Client) -> None:
    """Collect garbage within a request, and send others meanwhile."""
    draw = client.chance
    others = [_later(draw.uniform(0.01, 0.03), client.ask("/predict?rows=2", "gc")) for _ in range(draw.randint(0, 1))]
    await asyncio.gather(client.ask(f"/predict?rows=2&collections={draw.randint(2, 4)}", "gc"), *others)


@asynccontextmanager
async def large_heap(client: Client) -> AsyncIterator[None]:
    """Create a heap that makes collections slow."""
    await client.ask(f"/heap?objects={client.chance.randint(700_000, 1_000_000)}", method="POST")
    yield


async def rivals(client: Client) -> None:
    """Let other threads compute in Python, and send requests that take long enough to meet them."""
    draw = client.chance
    await client.ask(f"/rivals?count={draw.randint(1, 3)}", method="POST")
    for _ in range(draw.randint(2, 4)):
        await client.ask(f"/predict?rows={draw.randint(24, 32)}", "lock_wait")
    await client.ask("/rivals?count=0", method="POST")


async def burners(client: Client) -> None:
    """Start processes that compute, and send requests that need a CPU for a while."""
    draw = client.chance
    argv = [sys.executable, "-c", BURNER]
    with ExitStack() as stack:
        for _ in range(draw.randint(2 * CORES, 4 * CORES)):
            burner = start(argv)
            stack.callback(burner.wait)
            stack.callback(burner.kill)
        await asyncio.sleep(0.1)
        for _ in range(draw.randint(4, 8)):
            await client.ask(f"/predict?rows={draw.randint(20, 32)}", "cpu_wait")


async def two_at_once(client: Client) -> None:
    """Produce two of these at once, one of them for at least 60 % of the time."""
    draw = client.chance
    which = draw.randrange(5)
    if which == 0:
        async with _slower(client, 5):
            await client.ask(f"/predict?rows=8&name=Ranker&wait_ms={draw.randint(150, 250)}", "downstream")
    elif which == 1:
        async with _slower(client, draw.uniform(10, 14)):
            await client.ask(f"/predict?rows=9&name=Ranker&wait_ms={draw.randint(30, 60)}", "compute")
    elif which == 2:
        await slow_upload(client, rows=draw.randint(20, 40))
    elif which == 3:
        await blocked_loop(client, also_ms=draw.randint(30, 80))
    else:
        await full_pool(client, also_ms=draw.randint(30, 80))


async def nothing(client: Client) -> None:
    """Send requests whose normal time exceeds their objective."""
    await client.ask(f"/control?rows={client.chance.randint(4, 6)}", NOTHING)
    await asyncio.sleep(0.01)


CASES: Final = (
    Case("blocked loop", blocked_loop, (PREDICT, ("GET", "/awaiting?rows=2"))),
    Case("busy worker (gunicorn)", busy_worker, server=GUNICORN),
    Case("41 calls on 40 tokens", full_pool),
    Case("5 calls on 4 workers (gRPC)", full_workers, (CALL,), (CALL,), server=GRPC),
    Case("slow batches", slow_batch, (("GET", "/batched?rows=2"),)),
    Case("burners on every core", burners, (("GET", "/predict?rows=25"),)),
    Case("rival threads", rivals, (("GET", "/predict?rows=25"),)),
    Case("slow collector", collector, around=large_heap),
    Case("trickling upload", slow_upload, (("POST", "/upload"),)),
    Case("reader that does not read", slow_download, (("GET", "/download"),)),
    Case("slow dependency", slow_dependency, (PREDICT, ("GET", "/awaiting?wait_ms=3"))),
    Case("waits that no patch records", uninstrumented),
    Case("first call of a model", first_call),
    Case("larger input", larger_input, needs_usual=True),
    Case("slower model", slower_model, (PREDICT, RANKER)),
    Case("two at once", two_at_once, (PREDICT, RANKER, ("POST", "/upload"))),
    Case("nothing", nothing, (("GET", "/control?rows=5"),), is_quiet=True),
)
