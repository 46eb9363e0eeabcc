"""A service whose handlers hold its event loop, each in its way."""

import asyncio
import time
from pathlib import Path

from fastapi import FastAPI, Response
from ml import SleepyModel

app = FastAPI()
model = SleepyModel()


@app.get("/health")
async def health() -> None: ...


@app.get("/quick")
async def quick() -> dict[str, int]:
    return {"at": time.time_ns()}


@app.get("/hold/{how}")
async def hold(how: str, seconds: float, sign: str = "") -> dict[str, int]:
    """Hold the loop; make the file `sign` first."""
    await asyncio.sleep(0)
    if sign:
        Path(sign).touch()  # noqa: ASYNC240
    if how == "model":
        model.predict([seconds])
    else:
        time.sleep(seconds)  # noqa: ASYNC251 -- the fault
    return {"until": time.time_ns()}


@app.get("/bytes")
async def some(count: int) -> Response:
    return Response(b"x" * count)


@app.get("/wait")
async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)
