"""Wait for input and output in FastAPI's thread pool, whose size is the limit."""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio.to_thread
from fastapi import FastAPI
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FACTOR: Final = 0.7 if os.environ.get("FASTER") else 1.0


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = int(os.environ["THREADS"])
    yield


app = FastAPI(lifespan=lifespan)


class Query(BaseModel):
    size: int


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.post("/fetch")
def fetch(query: Query) -> dict[str, int]:
    time.sleep(query.size / 1e6 * FACTOR)
    return {"value": sum(step * step % 7 for step in range(15_000))}


print("ready", flush=True)
