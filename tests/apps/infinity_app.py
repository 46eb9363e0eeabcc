"""A service of embeddings around infinity-emb's batches, with a model that takes 20 ms a text."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, HTTPException
from opentelemetry import trace

sys.path.insert(0, str(Path(__file__).parent / "stand_ins"))
from infinity_emb.inference.batch_handler import BatchHandler


class Model:
    engine_args = SimpleNamespace(served_model_name="tiny/bert", engine=SimpleNamespace(value="torch"))

    def encode_pre(self, texts: list[str]) -> list[str]:
        time.sleep(0.002)
        return texts

    def encode_core(self, texts: list[str]) -> list[int]:
        if "fail" in texts:
            raise ValueError("no such text")
        with trace.get_tracer("app").start_as_current_span("forward"):
            time.sleep(0.02 * len(texts))
        return [len(text) for text in texts]

    def encode_post(self, lengths: list[int]) -> list[list[int]]:
        return [[length] for length in lengths]


handler = BatchHandler([Model()], max_batch_size=4)


@asynccontextmanager
async def running(_: FastAPI) -> AsyncIterator[None]:
    await handler.spawn()
    yield
    await handler.shutdown()


app = FastAPI(lifespan=running)


@app.get("/health")
def health() -> str:
    return "up"


@app.post("/embeddings")
async def embeddings(asked: dict[str, list[str]]) -> list[Any]:
    return await handler.embed(asked["input"])


@app.post("/impatient")
async def impatient(asked: dict[str, list[str]]) -> list[Any]:
    try:
        return await asyncio.wait_for(handler.embed(asked["input"]), 0.05)
    except asyncio.TimeoutError as error:
        raise HTTPException(503) from error
