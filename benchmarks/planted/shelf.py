"""A recommender behind FastAPI. Planted: a cache refreshed under a lock, a tenant's long inputs, a slower model."""

from __future__ import annotations

import os
import threading
import time
from typing import Annotated

from fastapi import FastAPI, Header
from opentelemetry import trace
from pydantic import BaseModel

import stagetrace
from benchmarks.planted import client

VERSION = os.environ["RELEASE"]
FRESH_S = 4
PER_WORD_S = 0.0001
SLOWER = 1.2 if VERSION >= "2.1.0" else 1.0  # S3: the model of the new release takes 20 % more

app = FastAPI()
loading = threading.Lock()
loaded: dict[str, float] = {}


class Query(BaseModel):
    text: str


def features() -> None:
    """Have features that are fresh."""
    with loading:  # S1: the other requests wait here while one loads
        if time.monotonic() - loaded.get("at", 0.0) > FRESH_S:
            client.ask("scan")
            loaded["at"] = time.monotonic()


@stagetrace.stage("inference", model="shelf")
def recommend(words: list[str]) -> int:
    """Compute for as long as the input is large."""
    until = time.thread_time() + (0.015 + PER_WORD_S * len(words)) * SLOWER
    while time.thread_time() < until:
        sum(range(200))
    return len(words)


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.post("/recommend")
def recommended(query: Query, x_tenant: Annotated[str, Header()]) -> dict[str, int]:
    trace.get_current_span().set_attribute("tenant", x_tenant)
    features()
    return {"count": recommend(query.text.split())}
