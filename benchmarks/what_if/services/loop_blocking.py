"""Compute on the event loop, which blocks all other requests, those of a cheap route among them."""

from __future__ import annotations

import os
from typing import Final

from fastapi import FastAPI
from pydantic import BaseModel

FACTOR: Final = 0.7 if os.environ.get("FASTER") else 1.0

app = FastAPI()


class Query(BaseModel):
    size: int


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.post("/predict")
async def predict(query: Query) -> dict[str, int]:
    value = 0
    for step in range(int(query.size * FACTOR)):
        value = (value * 31 + step) % 1_000_003
    return {"value": value}


@app.post("/light")
async def light(query: Query) -> dict[str, int]:
    return {"size": query.size}


print("ready", flush=True)
