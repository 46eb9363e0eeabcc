"""Serve a model that computes for a given time, in one response or in chunks, at once or after pauses.

BENCH_CHUNKS: how many chunks the response has. BENCH_PAUSES: how often the handler lets others run. `busy` has more.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.busy import Busy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNKS = int(os.environ.get("BENCH_CHUNKS", "1"))
PAUSES = int(os.environ.get("BENCH_PAUSES", "0"))

app = FastAPI()
model = Busy()


@app.get("/health")
async def health() -> dict[str, str]:
    """Return that the service runs."""
    return {"status": "ok"}


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(CHUNKS):
        yield b"x"


@app.post("/predict")
async def predict() -> Any:
    """Return what the model predicts."""
    for _ in range(PAUSES):
        await asyncio.sleep(0)
    if CHUNKS > 1:
        return StreamingResponse(_chunks())
    return {"score": model.predict([[1.0]])[0]}
