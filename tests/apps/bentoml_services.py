"""Two BentoML services as their author wrote them, of which one asks the other."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator

import bentoml
import numpy as np
from opentelemetry import trace
from pydantic import BaseModel
from sklearn.linear_model import LinearRegression

if "BREAK" in os.environ:
    from breaking import make_broken

    for part in os.environ["BREAK"].split(","):
        make_broken(part)

ROOM = {"batchable": True, "max_latency_ms": 20_000}


class Row(BaseModel):
    a: float
    b: float = 1.0


@bentoml.service(workers=2, traffic={"timeout": 30})
class Scorer:
    def __init__(self) -> None:
        self.model = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        predicted: np.ndarray = self.model.predict(rows)
        return predicted

    @bentoml.api(max_batch_size=8, **ROOM)
    def together(self, rows: np.ndarray) -> np.ndarray:
        predicted: np.ndarray = self.model.predict(rows)
        return predicted


@bentoml.service(traffic={"timeout": 30})
class Front:
    scorer = bentoml.depends(Scorer)

    @bentoml.api
    def plain(self, row: Row) -> float:
        time.sleep(0.01)
        return row.a + row.b

    @bentoml.api
    async def in_loop(self, row: Row) -> float:
        await asyncio.sleep(0.01)
        return row.a + row.b

    @bentoml.api
    def table(self, rows: np.ndarray) -> np.ndarray:
        return rows * 2

    @bentoml.api
    def fails(self, row: Row) -> float:
        raise ValueError(row.a)

    @bentoml.api
    def refuses(self, row: Row) -> float:
        raise bentoml.exceptions.InvalidArgument(f"{row.a} is too much")

    @bentoml.api
    def tokens(self, count: int) -> Iterator[str]:
        for number in range(count):
            yield f"{number}\n"

    @bentoml.api
    async def tokens_in_loop(self, count: int) -> AsyncIterator[str]:
        for number in range(count):
            yield f"{number}\n"

    @bentoml.api
    def ask(self, a: float) -> list[float]:
        return self.scorer.predict(np.array([[a]])).tolist()

    @bentoml.api
    async def ask_in_loop(self, a: float) -> list[float]:
        return (await self.scorer.to_async.together(np.array([[a], [a]]))).tolist()

    @bentoml.api(max_batch_size=8, **ROOM)
    def together(self, rows: list[float]) -> list[float]:
        with trace.get_tracer("own").start_as_current_span("forward"):
            time.sleep(0.1)
        return [len(rows)] * len(rows)

    @bentoml.api(max_batch_size=8, **ROOM)
    async def together_in_loop(self, rows: list[float]) -> list[float]:
        with trace.get_tracer("own").start_as_current_span("forward"):
            await asyncio.sleep(0.1)
        return [len(rows)] * len(rows)

    @bentoml.api(max_batch_size=4, **ROOM)
    def parts(self, rows: list[float]) -> list[float]:
        time.sleep(0.05)
        return [row * 2 for row in rows]

    @bentoml.api(batchable=True, max_batch_size=2, max_latency_ms=100)
    def overloaded(self, rows: list[float]) -> list[float]:
        time.sleep(0.4)
        return rows

    @bentoml.api(max_batch_size=8, **ROOM)
    def fails_together(self, rows: list[float]) -> list[float]:
        raise ValueError(len(rows))
