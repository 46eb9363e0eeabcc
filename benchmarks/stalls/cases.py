"""List the servers and what is planted in each, one line each; and how requests are made late by it."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.ground_truth.client import RPC
from benchmarks.stalls.app_grpc import SERVICE
from benchmarks.stalls.planted import AWAITING, BLOCKING, POOL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from benchmarks.ground_truth.client import Client

    Episode = Callable[[Client, "Server"], Awaitable[None]]

MS: Final = 300  # of a stall
SHORTER_MS: Final = 150  # of one right after the other
SHORT_MS: Final = 2  # of an ordinary request
LATER_S: Final = (0.06, 0.12)  # when a request meets a stall that has begun
HEAP: Final = 4_000_000  # objects, for the collections
TESTS: Final = Path(__file__).resolve().parent.parent.parent / "tests"


def _model_servers() -> str:
    """Return the interpreter of the environment that has LitServe and MLServer."""
    sys.path.insert(1, str(TESTS))
    from servers import python  # type: ignore[import-not-found, unused-ignore]

    return str(python())


@dataclass(frozen=True)
class Server:
    """A server: its command line, the path of a stall, what is planted, and what is sent beside."""

    name: str
    argv: tuple[str, ...]
    stalls: tuple[str, ...]
    path: str = "/stall/{stall}?ms={ms}"
    method: str = "GET"
    body: Callable[[str, float], object] | None = None  # of a stall, where its path does not name it
    ready: str = "/health"
    python: Callable[[], str] = lambda: sys.executable

    @property
    def ordinary(self) -> tuple[str, str]:
        """Return the method and the path of requests that do not stall."""
        if self.body is not None:
            return "GET", self.ready
        return self.method, self.path.format(stall="ordinary", ms=SHORT_MS)

    async def ask(self, client: Client, stall: str, ms: float = MS, truth: str | None = None) -> None:
        """Send a request that stalls so; `truth` names the row of the table that it counts for."""
        path = self.path.format(stall=stall, ms=ms)
        trickle = None if self.body is None else _once(json.dumps(self.body(stall, ms)).encode())
        await client.ask(path, truth, self.method, trickle)

    async def fill_heap(self, client: Client, objects: int) -> None:
        """Let the service keep so many objects."""
        if self.method == RPC:
            await client.ask(f"/{SERVICE}/heap?objects={objects}", method=RPC)
        else:
            await client.ask(f"/heap?objects={objects}", method="POST")


def _tensor(stall: str, ms: float) -> object:
    return {"inputs": [{"name": "stall", "datatype": "BYTES", "shape": [2], "data": [stall, str(ms)]}]}


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _alone(client: Client, server: Server, stall: str) -> None:
    await server.ask(client, stall, truth=stall)


async def _meet(client: Client, server: Server, name: str) -> None:
    """Send a request while another blocks the event loop, or the only worker."""
    blocker = asyncio.create_task(server.ask(client, "sleep", 2 * MS))
    await asyncio.sleep(client.chance.uniform(*LATER_S))
    await server.ask(client, "ordinary", SHORT_MS, truth=name)
    await blocker


async def _overtake(client: Client, server: Server, name: str) -> None:
    """Block the event loop while a request awaits the one that blocks it."""
    victim = asyncio.create_task(server.ask(client, "await_blocker", 10 * MS, truth=name))
    await asyncio.sleep(0.03)
    await server.ask(client, "block_others")
    await victim


async def _fill_pool(client: Client, server: Server, name: str) -> None:
    """Occupy each thread of the pool, and send one more request."""
    occupied = [asyncio.create_task(server.ask(client, "sleep", 2 * MS)) for _ in range(POOL)]
    await asyncio.sleep(client.chance.uniform(*LATER_S) * 2)
    await server.ask(client, "ordinary", SHORT_MS, truth=name)
    await asyncio.gather(*occupied)


@dataclass(frozen=True)
class Stall:
    """A row of the table: what is planted, which is the right line, and how a request is made late by it."""

    name: str
    planted: str
    episode: Episode


SOCKET: Final = "socket of a blocked loop"
BLOCKED: Final = "await in a blocked loop"
BUSY: Final = "socket of a busy worker"
POOLED: Final = "full pool"
COLLECTIONS: Final = ("collect", "allocate")  # the last: their heap makes every collection slow
_NOT_ALONE: Final = ("ordinary", "block_others", "await_blocker", *COLLECTIONS)
BLOCKERS: Final = tuple(name for name in BLOCKING if name not in _NOT_ALONE)
AWAITS: Final = tuple(name for name in AWAITING if name not in _NOT_ALONE)
ALONE: Final = (*BLOCKERS, *AWAITS)
STALLS: Final = {
    **{name: Stall(name, name, partial(_alone, stall=name)) for name in (*BLOCKERS, *AWAITS, *COLLECTIONS)},
    SOCKET: Stall(SOCKET, "sleep", partial(_meet, name=SOCKET)),
    BLOCKED: Stall(BLOCKED, "block_others", partial(_overtake, name=BLOCKED)),
    BUSY: Stall(BUSY, "sleep", partial(_meet, name=BUSY)),
    POOLED: Stall(POOLED, "sleep", partial(_fill_pool, name=POOLED)),
}
UVICORN: Final = ("-m", "uvicorn", "--no-access-log")
GUNICORN: Final = ("-m", "gunicorn", "benchmarks.stalls.app_flask:app")
CALL: Final = f"/{SERVICE}/{{stall}}?ms={{ms}}"
IN_LOOP: Final = (*BLOCKERS, *AWAITS, SOCKET, BLOCKED, *COLLECTIONS)

SERVERS: Final = (
    Server(
        "FastAPI, def",
        (*UVICORN, "benchmarks.stalls.app_fastapi:app", "--port"),
        (*BLOCKERS, POOLED, *COLLECTIONS),
        path="/thread/{stall}?ms={ms}",
    ),
    Server(
        "FastAPI, async def",
        (*UVICORN, "benchmarks.stalls.app_fastapi:app", "--port"),
        IN_LOOP,
        path="/loop/{stall}?ms={ms}",
    ),
    Server(
        "plain ASGI",
        (*UVICORN, "benchmarks.stalls.app_asgi:app", "--port"),
        ("lock", "sleep", "loop", "regex", "await_deep", "await_task", "executor", SOCKET, BLOCKED, "collect"),
    ),
    Server("Flask, gunicorn sync", (*GUNICORN, "--bind"), (*BLOCKERS, BUSY, *COLLECTIONS)),
    Server(
        "Flask, gunicorn gthread",
        (*GUNICORN, "--worker-class", "gthread", "--threads", str(POOL), "--bind"),
        (*BLOCKERS, POOLED, *COLLECTIONS),
    ),
    Server(
        "Flask, gunicorn gevent",
        (*GUNICORN, "--worker-class", "gevent", "--bind"),
        ("lock", "sleep", "recv", "numpy", "loop", "regex"),
    ),
    Server(
        "grpc.server",
        ("-m", "benchmarks.stalls.app_grpc", "--port"),
        (*BLOCKERS, POOLED, *COLLECTIONS),
        path=CALL,
        method=RPC,
    ),
    Server(  # an RPC that waits until the loop takes it is no breach: its record begins after that
        "grpc.aio",
        ("-m", "benchmarks.stalls.app_grpc_aio", "--port"),
        tuple(name for name in IN_LOOP if name != SOCKET),
        path=CALL,
        method=RPC,
    ),
    Server("aiohttp.web", ("-m", "benchmarks.stalls.app_aiohttp", "--port"), IN_LOOP),
    Server(
        "LitServe, worker process",
        ("-m", "benchmarks.stalls.app_litserve", "--port"),
        BLOCKERS,
        path="/stall",
        method="POST",
        body=lambda stall, ms: {"stall": stall, "ms": ms},
        python=_model_servers,
    ),
    Server(
        "MLServer, worker process",
        ("-m", "benchmarks.stalls.app_mlserver", "--port"),
        (*BLOCKERS, *AWAITS),
        path="/v2/models/stalls/infer",
        method="POST",
        body=_tensor,
        ready="/v2/health/ready",
        python=_model_servers,
    ),
)
