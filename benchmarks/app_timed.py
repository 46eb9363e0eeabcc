"""Serve a model that computes for a given time, in one response or in chunks, at once or after pauses.

BENCH_SERVICE_MS: the CPU time of the model's call, 0.75 by default. BENCH_CHUNKS: how many chunks the response has.
BENCH_PAUSES: how often the handler lets others run.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sklearn.base import BaseEstimator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICE_S = float(os.environ.get("BENCH_SERVICE_MS", "0.75")) / 1e3
CHUNKS = int(os.environ.get("BENCH_CHUNKS", "1"))
PAUSES = int(os.environ.get("BENCH_PAUSES", "0"))


class Busy(BaseEstimator):  # type: ignore[misc]
    """Computes for SERVICE_S of CPU time."""

    def predict(self, rows: list[list[float]]) -> list[float]:
        """Return a number for each row."""
        until = time.thread_time() + SERVICE_S
        while time.thread_time() < until:
            pass
        return [0.5] * len(rows)


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
