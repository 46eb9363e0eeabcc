"""A service with batchers of its own: `/thread` in its process, `/process` in another. Answers say what really happened."""

import asyncio
import multiprocessing
import os
import queue
import threading
import time
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, HTTPException
from opentelemetry import trace

import stagetrace

WORK_S = 0.15
STALL_S = 0.8


def infer(items: list[Any]) -> dict[str, Any]:
    """Run one batch, as a model would, and say when that was."""
    if items[0][1] == "resume":
        with stagetrace.resume(items[0][0]):
            time.sleep(STALL_S)  # resumed
        return {}
    with stagetrace.batch([carrier for carrier, _ in items]):
        started = time.time_ns()
        with trace.get_tracer("app").start_as_current_span("forward"):
            time.sleep(WORK_S)
        if any(value == "stall" for _, value in items):
            time.sleep(STALL_S)  # in a batch
        if any(value == "exit" for _, value in items):
            os._exit(3)
        return {"started": started, "ended": time.time_ns(), "size": len(items)}


def in_batches(requests: Any, answer: Any) -> None:
    """Take what lies in a queue, at most 4, and answer it."""
    while True:
        taken = [requests.get()]
        with suppress(queue.Empty):
            while len(taken) < 4:
                taken.append(requests.get(timeout=0.02))
        if None in taken:
            return
        done = infer([(carrier, value) for _, carrier, value in taken])
        for number, _, _ in taken:
            answer(number, done)


def serve_queue(requests: Any, answers: Any) -> None:
    in_batches(requests, lambda number, done: answers.put((number, done)))


class Batcher:
    """Hands requests over a queue, and finds whom an answer is for."""

    def __init__(self, requests: Any) -> None:
        self.requests = requests
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.count = 0

    def answered(self, number: int, done: Any) -> None:
        loop = self.waiting[number].get_loop()
        loop.call_soon_threadsafe(self._resolve, number, done)

    def _resolve(self, number: int, done: Any) -> None:
        waiting = self.waiting.pop(number)
        if not waiting.done():
            waiting.set_result(done)

    async def infer(self, value: str) -> Any:
        self.count += 1
        number = self.count
        future = self.waiting[number] = asyncio.get_running_loop().create_future()
        self.requests.put((number, stagetrace.carry(), value))
        async with asyncio.timeout(5):
            return await future


def listen(answers: Any, batcher: Batcher) -> None:
    while True:
        batcher.answered(*answers.get())


@asynccontextmanager
async def lifespan(app: FastAPI) -> Any:
    here: queue.Queue[Any] = queue.Queue()
    app.state.thread = Batcher(here)
    threading.Thread(target=in_batches, args=(here, app.state.thread.answered), daemon=True).start()
    context = multiprocessing.get_context("spawn")
    there, answers = context.Queue(), context.Queue()
    app.state.process = Batcher(there)
    worker = context.Process(target=serve_queue, args=(there, answers), daemon=True)
    worker.start()
    threading.Thread(target=listen, args=(answers, app.state.process), daemon=True).start()
    yield
    there.put(None)
    worker.join(10)


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> None:
    await app.state.process.infer("health")


@app.post("/late/{where}/{value}")
@app.post("/{where}/{value}")
async def handle(where: str, value: str) -> Any:
    await asyncio.sleep(0.002)
    try:
        done = await getattr(app.state, where).infer(value)
    except TimeoutError:
        raise HTTPException(504) from None
    with stagetrace.stage("render"):
        return done
