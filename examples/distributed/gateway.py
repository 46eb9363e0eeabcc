"""Serve recommendations: call the feature service over HTTP, the scorer over gRPC. Plain FastAPI, httpx and gRPC."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
from fastapi import FastAPI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# The feature service: on this machine, or behind a slow connection.
FEATURES = {"near": os.environ["FEATURES_URL"], "far": os.environ.get("FEATURES_FAR_URL", "")}
SCORER = os.environ["SCORER_TARGET"]


def encoded(message: Any) -> bytes:
    return json.dumps(message).encode()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(timeout=10) as client, grpc.aio.insecure_channel(SCORER) as channel:
        app.state.client = client
        app.state.score = channel.unary_unary("/shop.Scorer/Score", encoded, json.loads)
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.get("/recommend/{user}")
async def recommend(user: int, items: int = 20, line: str = "near") -> dict[str, Any]:
    found = await app.state.client.get(f"{FEATURES[line]}/features/{user}")
    scores = await app.state.score({"features": found.json()["features"], "items": items}, timeout=10)
    return {"user": user, "best": scores["best"]}
