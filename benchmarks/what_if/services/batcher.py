"""Gather requests into batches by a queue, a task and an executor of one thread, as a user writes it."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from sklearn.ensemble import RandomForestClassifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TREES: Final = 168 if os.environ.get("FASTER") else 240
SIZE: Final = int(os.environ["BATCH_SIZE"])
WAIT_S: Final = float(os.environ["BATCH_WAIT_MS"]) / 1e3

random = np.random.default_rng(0)
samples = random.random((4000, 16))
model = RandomForestClassifier(TREES, max_depth=8, random_state=0).fit(
    samples[:500], samples[:500, 0] > samples[:500, 1]
)
executor = ThreadPoolExecutor(1)
waiting: asyncio.Queue[tuple[Any, asyncio.Future[float]]] = asyncio.Queue()


async def gathered() -> list[tuple[Any, asyncio.Future[float]]]:
    """Return what came until the batch was full, or had waited for long enough."""
    batch = [await waiting.get()]
    deadline = asyncio.get_running_loop().time() + WAIT_S
    while len(batch) < SIZE:
        if not waiting.empty():
            batch.append(waiting.get_nowait())
            continue
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            break
        with suppress(asyncio.TimeoutError):
            batch.append(await asyncio.wait_for(waiting.get(), left_s))
    return batch


async def serve_batches() -> None:
    while True:
        batch = await gathered()
        rows = np.concatenate([rows for rows, _ in batch])
        scores = await asyncio.get_running_loop().run_in_executor(executor, model.predict_proba, rows)
        ends = np.cumsum([len(rows) for rows, _ in batch])
        for (_, future), part in zip(batch, np.split(scores, ends[:-1]), strict=True):
            if not future.done():
                future.set_result(float(part[:, 1].mean()))


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(serve_batches())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


class Query(BaseModel):
    size: int


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.post("/predict")
async def predict(query: Query) -> dict[str, float]:
    future = asyncio.get_running_loop().create_future()
    await waiting.put((samples[: query.size], future))
    return {"score": await future}


print("ready", flush=True)
