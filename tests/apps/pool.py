"""A service with a known capacity: four workers, and 20 ms in one of them for each request, so 200 requests a second."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI

WORKERS = 4
app = FastAPI()
pool = ThreadPoolExecutor(WORKERS)
takes_s = float(os.environ.get("POOL_TAKES_S", "0.02"))


@app.get("/health")
async def health() -> str:
    return "ok"


@app.get("/work")
async def work() -> str:
    await asyncio.get_running_loop().run_in_executor(pool, time.sleep, takes_s)
    return "done"
