"""The ml app and some more of what handlers do; `/break/NAME` makes one part of stagetrace raise until `/mend`.

`/failures` tells how often it has.
"""

import asyncio
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import breaking
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ml import app, model
from opentelemetry import trace
from starlette.responses import Response

import stagetrace

hidden = {"include_in_schema": False}


@app.get("/break/{name}", **hidden)
async def make_broken(name: str) -> None:
    breaking.make_broken(name)


@app.get("/mend", **hidden)
async def mend() -> None:
    breaking.mend()


@app.get("/failures", **hidden)
async def failures() -> int:
    return len(breaking.raised)


@app.get("/annotate", **hidden)
async def annotate() -> dict[str, bool]:
    span = trace.get_current_span()
    span.set_attribute("k", "v")
    span.set_attributes({"http.route": "/mine"})
    span.add_event("event")
    span.add_link(trace.INVALID_SPAN_CONTEXT)
    span.set_status(trace.StatusCode.OK)
    span.update_name("another")
    span.record_exception(ValueError("noticed"))
    with stagetrace.stage("preprocess", k="v"), trace.get_tracer("app").start_as_current_span("child"):
        return {"known": span.get_span_context() is not None}


@app.get("/many-stages", **hidden)
def many_stages() -> dict[str, bool]:
    for number in range(1200):
        with stagetrace.stage(f"stage {number % 50}"):
            pass
    return {"ok": True}


single = ThreadPoolExecutor(1)


@app.get("/give-away", **hidden)
async def give_away() -> list[Any]:
    """Give work to threads, and wait for one."""

    def waited_for() -> list[Any]:
        single.submit(time.sleep, 0.003)
        futures = [single.submit(int, "7"), single.submit(int, "x")]
        wait(futures)
        return [futures[0].result(), type(futures[1].exception()).__name__]

    with stagetrace.resume(stagetrace.carry()):
        answers = await asyncio.to_thread(waited_for)
    single.submit(time.sleep, 0.003)
    return [*answers, await asyncio.get_running_loop().run_in_executor(single, int, "8")]


batches: asyncio.Queue[Any] = asyncio.Queue()
threaded: queue.Queue[Any] = queue.Queue()
consumers: list[Any] = []


async def consume() -> None:
    while True:
        row, future = await batches.get()
        future.set_result(await asyncio.to_thread(model.predict, [row]))


def consume_in_thread() -> None:
    while True:
        row, future = threaded.get()
        future.set_result(model.predict([row]))


@app.get("/batched", **hidden)
async def batched() -> list[Any]:
    """Have a batcher of one's own ask the model, in a task that the first request starts, and in a thread."""
    if not consumers:
        consumers.append(asyncio.create_task(consume()))
        consumers.append(threading.Thread(target=consume_in_thread, daemon=True))
        consumers[1].start()
    awaited: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    await batches.put((0.002, awaited))
    answers = await awaited
    future: Future[Any] = Future()
    threaded.put((0.003, future))
    return [*answers, *await asyncio.wrap_future(future)]


class OwnError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@app.exception_handler(OwnError)
async def on_own(_: Request, error: OwnError) -> Response:
    import traceback

    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
    return JSONResponse({"type": type(error).__name__, "code": error.code, "frames": frames}, 418)


@app.get("/own-error", **hidden)
async def own_error() -> None:
    raise OwnError(7)


sub = FastAPI()


@sub.get("/items/{item}")
async def item(item: int) -> dict[str, int]:
    return {"item": item}


app.mount("/sub", sub)
