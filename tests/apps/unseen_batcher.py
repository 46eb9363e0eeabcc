"""A service whose batcher stagetrace cannot see: rows go through a list, and results come by futures beside it."""

import asyncio
import threading
import time
from typing import Any

from fastapi import FastAPI
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import make_pipeline


class SlowClassifier(DummyClassifier):  # type: ignore[misc]
    def predict(self, rows: Any) -> Any:
        time.sleep(0.05)
        return super().predict(rows)


app = FastAPI()
model = make_pipeline(SlowClassifier()).fit([[0.0], [1.0]], [0, 1])
waiting: list[tuple[int, float]] = []
futures: dict[int, asyncio.Future[int]] = {}
loops: list[asyncio.AbstractEventLoop] = []


def serve() -> None:
    while True:
        time.sleep(0.005)
        while waiting:
            number, row = waiting.pop(0)
            result = int(model.predict([[row]])[0])
            loops[0].call_soon_threadsafe(futures.pop(number).set_result, result)


@app.get("/health")
async def health() -> None:
    if not loops:
        loops.append(asyncio.get_running_loop())
        model.predict([[0.0]])  # a warm-up before any other request is none of theirs
        threading.Thread(target=serve, daemon=True).start()


@app.post("/predict/{row}")
async def predict(row: float) -> int:
    future: asyncio.Future[int] = loops[0].create_future()
    futures[id(future)] = future
    waiting.append((id(future), row))
    return await future
