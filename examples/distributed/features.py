"""Serve features of users. Its fault: users that are not in its cache take half a second."""

from __future__ import annotations

import random
import time

from fastapi import FastAPI

COLD = 7  # users whose number ends with this digit are never in the cache

app = FastAPI()


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.get("/features/{user}")
def features(user: int) -> dict[str, list[float]]:
    if user % 10 == COLD:
        time.sleep(0.5)
    return {"features": [random.Random(user * 8 + place).random() for place in range(8)]}
