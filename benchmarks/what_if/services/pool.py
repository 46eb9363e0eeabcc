"""What the services have in common whose handlers run in AnyIO's thread pool: its size, and what requests ask for."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI


class Query(BaseModel):
    """How much a request asks for."""

    size: int


@asynccontextmanager
async def sized_pool(app: FastAPI) -> AsyncIterator[None]:
    """Give the pool THREADS threads, and say that a worker is ready where /health answers."""

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"ok": True}

    anyio.to_thread.current_default_thread_limiter().total_tokens = int(os.environ["THREADS"])
    yield
