"""A service as its author wrote it, in which embedding blocks the event loop while predictions wait."""

import time

from fastapi import FastAPI

app = FastAPI()


@app.get("/health")
async def health() -> None: ...


@app.post("/embed")
async def embed(texts: list[str]) -> int:
    time.sleep(0.4)  # noqa: ASYNC251 -- the fault
    return len(texts)


@app.post("/predict")
async def predict(features: list[float]) -> float:
    return sum(features)


@app.post("/rank")
async def rank(features: list[float]) -> float:
    return max(features)
