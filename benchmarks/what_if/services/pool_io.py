"""Wait for input and output in FastAPI's thread pool, whose size is the limit."""

from __future__ import annotations

import os
import time
from typing import Final

from fastapi import FastAPI

from benchmarks.what_if.services.pool import Query, sized_pool

FACTOR: Final = 0.7 if os.environ.get("FASTER") else 1.0


app = FastAPI(lifespan=sized_pool)


@app.post("/fetch")
def fetch(query: Query) -> dict[str, int]:
    time.sleep(query.size / 1e6 * FACTOR)
    return {"value": sum(step * step % 7 for step in range(15_000))}


print("ready", flush=True)
