"""Handlers that give work to pools, threads, queues and processes, as people write them."""

import asyncio
import concurrent.futures as futures_module
import contextvars
import gc
import json
import os
import pickle
import queue
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from multiprocessing import get_context
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace
from sleepy import SleepyModel

import stagetrace

mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nobody's")


app = FastAPI()
model = SleepyModel()
pool = ThreadPoolExecutor(4)
single = ThreadPoolExecutor(1)
processes: list[ProcessPoolExecutor] = []


@app.get("/health")
async def health() -> dict[str, int]:
    return {"pid": os.getpid()}


def work(seconds: float = 0.03) -> str:
    with trace.get_tracer("app").start_as_current_span("in thread"):
        model.predict([seconds])
    return mine.get()


@app.get("/give/{how}")
async def give(how: str) -> list[str]:
    mine.set("the handler's")
    loop = asyncio.get_running_loop()
    if how == "run_in_executor":
        return [await loop.run_in_executor(None, work)]
    if how == "to_thread":
        return [await asyncio.to_thread(work)]
    if how == "create_task":
        return [await asyncio.create_task(asyncio.to_thread(work))]
    if how == "gather":
        return list(await asyncio.gather(*(loop.run_in_executor(pool, work) for _ in range(2))))
    return [await asyncio.wrap_future(pool.submit(work))]


@app.get("/give-sync/{how}")
def give_sync(how: str) -> list[str]:
    mine.set("the handler's")
    if how == "submit":
        return [pool.submit(work).result()]
    if how == "map":
        return list(pool.map(work, [0.03, 0.03]))
    futures = [pool.submit(work) for _ in range(2)]
    if how == "wait":
        return [one.result() for one in wait(futures).done]
    return [one.result() for one in as_completed(futures)]


class InterpreterPoolExecutor(ThreadPoolExecutor):
    """As Python 3.14's: it pickles what `submit` puts into its queue."""

    def __init__(self) -> None:
        super().__init__(1)
        self._work_queue = PicklingQueue()  # type: ignore[assignment]


class PicklingQueue(queue.SimpleQueue):  # type: ignore[type-arg]
    def put(self, item: Any, *args: Any, **kwargs: Any) -> None:
        if item is not None:
            pickle.dumps((item.fn, item.args))
        super().put(item, *args, **kwargs)


@app.get("/interpreters")
async def interpreters() -> int:
    with InterpreterPoolExecutor() as workers:
        return await asyncio.get_running_loop().run_in_executor(workers, int, "7")


@app.get("/raise")
async def fail() -> str:
    try:
        await asyncio.get_running_loop().run_in_executor(pool, int, "x")
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def busy(seconds: float = 0.2) -> threading.Event:
    """Keep the one thread busy, for no request, until the seconds are over or the event is set that this returns."""
    begun, released = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        released.wait(seconds)

    contextvars.Context().run(single.submit, hold)
    begun.wait(10)
    return released


@app.get("/full/{how}")
async def full(how: str) -> bool:
    """Wait for a pool whose one thread is busy."""
    loop = asyncio.get_running_loop()
    released = busy(0.2 if how in ("await", "gather") else 30)
    contextvars.Context().run(single.submit, int)  # another one, before ours
    if how == "await":
        await loop.run_in_executor(single, int)
    elif how == "cancelled":
        try:
            await asyncio.wait_for(loop.run_in_executor(single, int), 0.1)
        except asyncio.TimeoutError:
            await asyncio.sleep(0.2)
        released.set()
    elif how == "nobody":
        loop.run_in_executor(single, int)
        await asyncio.sleep(0.1)
        released.set()
    else:
        await asyncio.gather(loop.run_in_executor(single, int), loop.run_in_executor(pool, int))
    return True


@app.get("/full-sync/{how}")
def full_sync(how: str) -> bool:
    released = busy(30 if how == "partly" else 0.2)
    if how == "map":
        return list(single.map(int, [1])) == [1]
    future = single.submit(int)
    if how == "result":
        future.result()
    elif how == "exception":
        future.exception()
    elif how == "wait":
        wait([future], return_when=FIRST_COMPLETED)
    elif how == "as_completed":
        list(as_completed([future]))
    else:
        time.sleep(0.1)  # its own time, whatever the pool does meanwhile
        try:
            future.result(timeout=0.05)
        except futures_module.TimeoutError:
            time.sleep(0.15)
        released.set()
    return True


@app.get("/outlives")
async def outlives() -> bool:
    pool.submit(work, 0.3)
    return True


@app.get("/live")
async def live() -> int:
    """Tell how many requests are alive, this one left out."""
    from stagetrace.request.own_span import OwnSpan

    return sum(issubclass(type(one), OwnSpan) for one in gc.get_objects()) - 1


@app.get("/collect")
async def collect() -> None:
    gc.collect()
    gc.disable()


# --- by a carrier

requests: "queue.Queue[tuple[str, queue.Queue[Any]]]" = queue.Queue()


def serve_queue() -> None:
    while True:
        text, answers = requests.get()
        with stagetrace.resume(json.loads(text)):
            work()
            answers.put(trace.get_current_span().is_recording())
        answers.put(trace.get_current_span().is_recording())


threading.Thread(target=serve_queue, daemon=True).start()


@app.get("/own-queue")
def own_queue() -> list[bool]:
    answers: queue.Queue[Any] = queue.Queue()
    requests.put((json.dumps(stagetrace.carry()), answers))
    return [answers.get(), answers.get()]


@app.get("/own-queue-late")
def own_queue_late() -> bool:
    carrier = stagetrace.carry()

    def later() -> None:
        time.sleep(0.2)
        with stagetrace.resume(carrier):
            work()

    threading.Thread(target=later).start()
    return True


def in_another_process(carrier: dict[str, str], seconds: float) -> int:
    with stagetrace.resume(carrier):
        with trace.get_tracer("app").start_as_current_span("before"):
            time.sleep(0.01)
        if seconds < 0:
            raise ValueError("the worker's own error")
        model.predict([seconds])
    return os.getpid()


@app.get("/process/{start}")
async def process(start: str, seconds: float = 0.02) -> dict[str, Any]:
    """Give work to a process of its own, which ends at once."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, get_context(start)) as workers:
        try:
            pid = await loop.run_in_executor(workers, in_another_process, stagetrace.carry(), seconds)
        except ValueError as error:
            return {"error": str(error)}
    return {"is_another": pid != os.getpid()}
