"""Serve the stalls by FastAPI: in threads below `/thread`, in the event loop below `/loop`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from anyio import to_thread
from fastapi import FastAPI

from benchmarks.stalls.planted import BLOCKING, POOL, plant, resize_heap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Let the pool have few threads."""
    to_thread.current_default_thread_limiter().total_tokens = POOL
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> None:
    """Report that the service is up."""


@app.post("/heap")
async def heap(objects: int) -> None:
    """Keep so many objects."""
    resize_heap(objects)


@app.get("/thread/{stall}")
def in_thread(stall: str, ms: float) -> str:
    """Stall in a thread of the pool."""
    BLOCKING[stall](ms)
    return "ok"


@app.get("/loop/{stall}")
async def in_loop(stall: str, ms: float) -> str:
    """Stall in the event loop."""
    await plant(stall, ms)
    return "ok"
