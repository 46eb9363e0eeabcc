"""A service that is slow for one reason at a time."""

import asyncio
import gc
import sqlite3
import subprocess
import threading
import time
from contextlib import closing

import computing
from anyio import to_thread
from fastapi import FastAPI
from sklearn.base import BaseEstimator
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

app = FastAPI()


class ComputingModel(BaseEstimator):
    """As long as its input."""

    def predict(self, rows: list[int]) -> list[int]:
        computing.compute(0.002 * len(rows))
        return rows


model = ComputingModel()
heap: list[list[int]] = []
competing = threading.Event()


@app.get("/health")
async def health() -> None: ...


@app.get("/predict")
def predict(rows: int) -> int:
    return len(model.predict([0] * rows))


@app.get("/slow")
def slow(rows: int) -> int:
    return len(model.predict([0] * rows))


@app.get("/sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@app.get("/awaiting")
async def awaiting(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.get("/asking")
async def asking(port: int) -> int:
    """Call a server by a socket, which no patch records, and read its response to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = await reader.read()
    writer.close()
    return len(answer)


@app.get("/write")
def write(file: str) -> None:
    """Write to a database, once whoever has locked it is done."""
    with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
        connection.execute("INSERT INTO scores VALUES (1)")


@app.get("/run")
def run(seconds: float) -> None:
    subprocess.run(["sleep", str(seconds)], check=True)


@app.get("/rival")
def rival(cpu_s: float = 0, sleep_s: float = 0, rivals: int = 1) -> None:
    """Compute while other threads do, or sleep."""
    stop = threading.Event()

    def compete() -> None:
        while not stop.is_set():
            sum(range(10_000))

    others = [threading.Thread(target=compete) for _ in range(rivals)]
    for other in others:
        other.start()
    try:
        computing.compute(cpu_s)
        time.sleep(sleep_s)
    finally:
        stop.set()
        for other in others:
            other.join()


@app.get("/collect")
def collect() -> None:
    if not heap:
        heap.extend([number] for number in range(600_000))
    gc.collect()
    gc.collect()


@app.get("/hold")
async def hold(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 -- the fault


@app.get("/one-thread")
async def one_thread() -> None:
    to_thread.current_default_thread_limiter().total_tokens = 1


@app.post("/compete")
async def compete(count: int) -> None:
    """Let so many threads compute in Python for good, none to let them end."""
    competing.set()
    if count:
        competing.clear()
    for _ in range(count):
        threading.Thread(target=computing.compete, args=(competing,), daemon=True).start()


@app.post("/echo")
async def echo(request: Request) -> Response:
    """Return fifteen bytes."""
    await request.body()
    return Response(b"x" * 15)


@app.post("/upload")
async def upload(request: Request) -> int:
    return len(await request.body())


@app.post("/scored-upload")
async def scored_upload(request: Request, rows: int) -> int:
    """Score rows once the body is there."""
    return len(await request.body()) + len(await to_thread.run_sync(model.predict, [0] * rows))


@app.get("/asked-and-scored")
def asked_and_scored(rows: int, seconds: float) -> int:
    """Wait, then score rows."""
    time.sleep(seconds)
    return len(model.predict([0] * rows))


@app.get("/download")
async def download() -> StreamingResponse:
    async def parts():  # noqa: ANN202
        for _ in range(400):
            yield b"x" * 65536

    return StreamingResponse(parts())
