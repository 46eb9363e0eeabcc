"""A service with batchers in its own process, as people write them: nothing of tracing in it.

Each route has a queue and a consumer of its own. A header of the answer says what really happened.
"""

import asyncio
import json
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from sklearn.base import BaseEstimator

WINDOW_S = 0.1
MAX_SIZE = 4
WORK_S = 0.05


class Doubler(BaseEstimator):
    """Sleeps for as long as any of its rows asks for, and computes for as long as negative ones do."""

    def predict(self, rows: list[float]) -> list[dict[str, Any]]:
        started = time.time_ns()
        time.sleep(max(WORK_S, *rows))
        until = time.thread_time() - min(0.0, *rows)
        while time.thread_time() < until:
            sum(range(500))
        truth = {"started": started, "ended": time.time_ns(), "size": len(rows)}
        return [{"value": 2 * row, "truth": truth} for row in rows]


@dataclass(order=True)
class Job:
    row: float
    future: asyncio.Future[Any] = field(compare=False)


model = Doubler()
pool = ThreadPoolExecutor(2)


def answer(batch: list[Any], outputs: list[Any]) -> None:
    for (_, future), output in zip(batch, outputs, strict=True):
        if not future.done():
            future.set_result(output)


# --- consumers


async def collect(waiting: asyncio.Queue[Any], first: Any = None) -> list[Any]:
    batch = [first or await waiting.get()]
    ends = time.monotonic() + WINDOW_S
    with suppress(TimeoutError, asyncio.TimeoutError):
        while len(batch) < MAX_SIZE:
            batch.append(await asyncio.wait_for(waiting.get(), ends - time.monotonic()))
    return batch


async def consume(waiting: asyncio.Queue[Any]) -> None:
    while True:
        batch = await collect(waiting)
        answer(batch, model.predict([row for row, _ in batch]))


async def consume_with_timeouts(waiting: asyncio.Queue[Any]) -> None:
    """Never waits but with a timeout."""
    while True:
        with suppress(TimeoutError, asyncio.TimeoutError):
            first = await asyncio.wait_for(waiting.get(), 1)
            batch = await collect(waiting, first)
            answer(batch, model.predict([row for row, _ in batch]))


async def consume_what_lies_there(waiting: asyncio.Queue[Any]) -> None:
    while True:
        batch = [await waiting.get()]
        await asyncio.sleep(WINDOW_S)
        while not waiting.empty() and len(batch) < MAX_SIZE:
            batch.append(waiting.get_nowait())
        outputs = await asyncio.get_running_loop().run_in_executor(None, model.predict, [job.row for job in batch])
        answer([(job.row, job.future) for job in batch], outputs)


async def consume_in_thread(waiting: asyncio.Queue[Any]) -> None:
    while True:
        batch = await collect(waiting)
        answer(batch, await asyncio.to_thread(model.predict, [row for row, _ in batch]))


async def serve(batch: list[Any]) -> None:
    await asyncio.sleep(0.01)
    answer(batch, await asyncio.to_thread(model.predict, [row for row, _ in batch]))


async def consume_at_once(waiting: asyncio.Queue[Any]) -> None:
    """Serve each batch in a task of its own, while the next one is collected."""
    tasks = set()
    while True:
        task = asyncio.create_task(serve(await collect(waiting)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def consume_in_parts(waiting: asyncio.Queue[Any]) -> None:
    """Take three, and call the model for two of them and for one."""
    while True:
        batch = [await waiting.get() for _ in range(3)]
        for now in (batch[:2], batch[2:]):
            answer(now, model.predict([row for row, _ in now]))


async def consume_singly(waiting: asyncio.Queue[Any]) -> None:
    """Take two, and call the model for each of them before either is answered."""
    while True:
        batch = [await waiting.get() for _ in range(2)]
        answer(batch, [model.predict([row])[0] for row, _ in batch])


async def consume_as_they_come(waiting: asyncio.Queue[Any]) -> None:
    """Work on one, step by step, until another one has joined, and then on both."""
    while True:
        batch = [await waiting.get()]
        while len(batch) < 2:
            await asyncio.to_thread(model.predict, [row for row, _ in batch])
            if not waiting.empty():
                batch.append(waiting.get_nowait())
        answer(batch, await asyncio.to_thread(model.predict, [row for row, _ in batch]))


async def consume_without_model(waiting: asyncio.Queue[Any]) -> None:
    while True:
        batch = await collect(waiting)
        await asyncio.sleep(WORK_S)
        answer(batch, [{"value": 2 * row, "truth": {}} for row, _ in batch])


async def consume_unasked(waiting: asyncio.Queue[Any]) -> None:
    """Serve what nobody waits for."""
    while True:
        row, *_ = await waiting.get()
        await asyncio.to_thread(model.predict, [row])


def taken_by_thread(waiting: queue.Queue[Any]) -> list[Any]:
    batch = [waiting.get()]
    ends = time.monotonic() + WINDOW_S
    with suppress(queue.Empty):
        while len(batch) < MAX_SIZE:
            batch.append(waiting.get(timeout=max(ends - time.monotonic(), 0)))
    return batch


def consume_by_thread(waiting: queue.Queue[Any]) -> None:
    while True:
        batch = taken_by_thread(waiting)
        outputs = model.predict([row for row, _ in batch])
        if isinstance(batch[0][1], Future):
            answer(batch, outputs)
        else:
            loop = batch[0][1].get_loop()
            loop.call_soon_threadsafe(answer, batch, outputs)


def serve_by_thread(batch: list[Any]) -> None:
    answer(batch, model.predict([row for row, _ in batch]))


def consume_by_pool(waiting: queue.Queue[Any]) -> None:
    while True:
        pool.submit(serve_by_thread, taken_by_thread(waiting))


# --- the service

CONSUMERS = {
    "direct": consume,
    "timeouts": consume_with_timeouts,
    "executor": consume_what_lies_there,
    "to-thread": consume_in_thread,
    "tasks": consume_at_once,
    "parts": consume_in_parts,
    "singly": consume_singly,
    "steps": consume_as_they_come,
    "no-model": consume_without_model,
    "unasked": consume_unasked,
}
THREADS = {
    "thread": consume_by_thread,
    "threads": consume_by_thread,
    "sync": consume_by_thread,
    "pool": consume_by_pool,
}
queues: dict[str, Any] = {}
lazy: list[Any] = []


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    queues["lazy"] = asyncio.Queue()
    queues["two"] = asyncio.Queue()
    tasks = [asyncio.create_task(consume_in_thread(queues["two"])) for _ in range(2)]
    for name, consumer in CONSUMERS.items():
        queues[name] = asyncio.PriorityQueue() if name == "executor" else asyncio.Queue()
        tasks.append(asyncio.create_task(consumer(queues[name])))
    for name, consumer_ in THREADS.items():
        queues[name] = queue.Queue()
        for _ in range(2 if name == "threads" else 1):
            threading.Thread(target=consumer_, args=(queues[name],), daemon=True).start()
    yield
    for task in tasks:
        task.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> None:
    pass


def result(output: dict[str, Any], response: Response) -> float:
    response.headers["x-truth"] = json.dumps(output["truth"])
    value: float = output["value"]
    return value


@app.post("/sync/{row}")
def handle_in_thread(row: float, response: Response) -> float:
    future: Future[Any] = Future()
    queues["sync"].put((row, future))
    return result(future.result(10), response)


@app.post("/pool/{row}")
async def handle_wrapped(row: float, response: Response) -> float:
    future: Future[Any] = Future()
    queues["pool"].put((row, future))
    return result(await asyncio.wrap_future(future), response)


@app.post("/unasked/{row}")
async def handle_unasked(row: float) -> float:
    queues["unasked"].put_nowait((row,))
    await asyncio.sleep(3 * WORK_S)
    future = asyncio.get_running_loop().create_future()
    queues["unasked"].put_nowait((row, future))
    await asyncio.sleep(3 * WORK_S)
    return row


@app.post("/given-up/{name}/{row}")
async def handle_given_up(name: str, row: float) -> float:
    future = asyncio.get_running_loop().create_future()
    await queues[name].put((row, future))
    try:
        await asyncio.wait_for(future, 3 * WINDOW_S)
    except (TimeoutError, asyncio.TimeoutError):
        raise HTTPException(504) from None
    return row


@app.post("/{name}/{row}")
async def handle(name: str, row: float, response: Response) -> float:
    if name == "lazy" and not lazy:
        lazy.append(asyncio.create_task(consume(queues["lazy"])))
    future = asyncio.get_running_loop().create_future()
    job: Any = Job(row, future) if name == "executor" else (row, future)
    if name in THREADS:
        queues[name].put(job)
    else:
        await queues[name].put(job)
    return result(await future, response)
