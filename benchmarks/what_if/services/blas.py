"""Multiply matrices in FastAPI's thread pool: BLAS releases the GIL, and has threads of its own."""

from __future__ import annotations

import os
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio.to_thread
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAYERS: Final = 7 if os.environ.get("FASTER") else 10

warnings.simplefilter("ignore", ConvergenceWarning)
random = np.random.default_rng(0)
samples = random.random((1000, 32))
network = MLPRegressor(hidden_layer_sizes=(512,) * LAYERS, max_iter=1, solver="sgd", random_state=0)
network.fit(samples[:50], samples[:50, 0])


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


@app.post("/predict")
def predict(query: Query) -> dict[str, float]:
    return {"score": float(network.predict(samples[: query.size]).mean())}


print("ready", flush=True)
