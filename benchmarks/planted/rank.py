"""A ranker behind FastAPI. Planted: a backtracking expression in 1.5.0, a scan of one tenant, a blocking stream."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Header
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from pydantic import BaseModel
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from benchmarks.planted import client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

VERSION = os.environ["RELEASE"]
TEXTS = ["the parcel is late", "please cancel my order", "where is my invoice", "the app does not start"] * 5
NON_ASCII = re.compile(r"^(\w+\s?)*$")

app = FastAPI()
model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, [0, 1, 0, 1] * 5)


class Query(BaseModel):
    text: str
    user: int


def normalised(text: str) -> str:
    """Return the text as the model knows it."""
    if VERSION >= "1.5.0" and not text.isascii():
        NON_ASCII.match("a" * 21 + "!")  # R1: about 150 ms in the expression, which holds the GIL
    return text.lower()


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.post("/rank")
def rank(query: Query, x_tenant: Annotated[str, Header()], x_lang: Annotated[str, Header()]) -> dict[str, float]:
    span = trace.get_current_span()
    span.set_attribute("tenant", x_tenant)
    span.set_attribute("lang", x_lang)
    text = normalised(query.text)
    if x_tenant == "globex" and query.user % 5 == 0:
        client.ask("scan")  # R2: one tenant's scan, which delays the others' commands
    client.ask("get")
    return {"score": float(model.predict_proba([text])[0][1])}


@app.post("/embed")
async def embed(query: Query) -> dict[str, int]:
    return {"size": len(query.text)}


@app.get("/chat")
async def chat(slow: int = 0) -> StreamingResponse:
    async def tokens() -> AsyncIterator[bytes]:
        for number in range(5):
            if slow and number == 2:
                time.sleep(0.3)  # noqa: ASYNC251 -- R3: blocks the event loop
            yield f"token {number}\n".encode()

    return StreamingResponse(tokens())
