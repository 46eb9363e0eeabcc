"""A service that is slow for one reason at a time."""

import gc
import threading
import time

from anyio import to_thread
from fastapi import FastAPI
from sklearn.base import BaseEstimator
from starlette.requests import Request
from starlette.responses import StreamingResponse

app = FastAPI()


def compute(cpu_s: float) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(500))


class ComputingModel(BaseEstimator):
    """As long as its input."""

    def predict(self, rows: list[int]) -> list[int]:
        compute(0.002 * len(rows))
        return rows


model = ComputingModel()
heap: list[list[int]] = []


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
        compute(cpu_s)
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


@app.post("/upload")
async def upload(request: Request) -> int:
    return len(await request.body())


@app.get("/download")
async def download() -> StreamingResponse:
    async def parts():  # noqa: ANN202
        for _ in range(400):
            yield b"x" * 65536

    return StreamingResponse(parts())
