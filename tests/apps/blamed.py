"""A service whose requests spend their time in several stages, each for a reason of its own."""

import gc
import threading
import time

import computing
from anyio import to_thread
from fastapi import FastAPI
from sklearn.base import BaseEstimator

import stagetrace

app = FastAPI()
heap: list[list[int]] = []
ended = threading.Event()


class Ranker(BaseEstimator):
    """As long as its input."""

    def predict(self, rows: list[int]) -> list[int]:
        computing.compute(0.002 * len(rows))
        return rows


class Lazy(Ranker):
    """Another model, which is loaded by the first request that needs it."""


ranker = Ranker()
loaded: list[Lazy] = []


@app.get("/health")
async def health() -> None: ...


@app.get("/rank")
def rank(rows: int, seconds: float) -> int:
    """Ask somebody for features, then rank."""
    time.sleep(seconds)
    return len(ranker.predict([0] * rows))


@app.get("/tokens")
def tokens(cpu_s: float, seconds: float) -> None:
    """Clean a text, and ask somebody for its tokens."""
    computing.compute(cpu_s)
    with stagetrace.stage("tokenize"):
        time.sleep(seconds)


@app.get("/lazy")
def lazy(seconds: float) -> int:
    """Load the model where it is not there yet, which takes computing and other modules."""
    if not loaded:
        import xml.dom.minidom
        import xml.sax.expatreader  # noqa: F401

        import sklearn.cluster
        import sklearn.gaussian_process  # noqa: F401

        computing.compute(seconds)
        loaded.append(Lazy())
    return len(loaded[0].predict([0]))


@app.get("/sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@app.post("/threads")
async def threads(count: int) -> None:
    to_thread.current_default_thread_limiter().total_tokens = count


@app.post("/collecting")
async def collecting(on: int) -> None:
    """Let a thread collect garbage most of the time, or end it."""
    ended.set()
    if on:
        heap.extend([number] for number in range(200_000))
        ended.clear()
        threading.Thread(target=collect, daemon=True).start()


def collect() -> None:
    while not ended.wait(0.01):
        gc.collect()
