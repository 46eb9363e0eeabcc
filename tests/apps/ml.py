"""A plain FastAPI + scikit-learn service, as its author wrote it: nothing of tracing in it but a look at the API."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sleepy import SleepyModel, fitted_pipeline


class Input(BaseModel):
    preprocess_s: float = 0
    inference_s: float = 0
    postprocess_s: float = 0


app = FastAPI()
model = SleepyModel()
finished_background = threading.Event()


@app.get("/health")
async def health() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.post("/predict")
def predict(data: Input) -> list[float]:
    time.sleep(data.preprocess_s)
    result = model.predict([data.inference_s])
    time.sleep(data.postprocess_s)
    return result


@app.post("/async-predict")
async def async_predict(data: Input) -> list[float]:
    await asyncio.sleep(data.preprocess_s)
    result = model.predict([data.inference_s])
    await asyncio.sleep(data.postprocess_s)
    return result


@app.post("/pipeline")
def with_pipeline(data: list[str]) -> list[int]:
    return [int(label) for label in fitted_pipeline().predict(data)]


@app.post("/transform")
def transform_only(data: list[str]) -> list[int]:
    return list(fitted_pipeline()[0].transform(data).shape)


@app.get("/plain")
def plain() -> dict[str, bool]:
    return {"ok": True}


@app.get("/two-calls")
def two_calls() -> dict[str, bool]:
    model.predict([0.02])
    time.sleep(0.02)
    model.predict([0.02])
    return {"ok": True}


@app.get("/overlap")
async def overlap() -> dict[str, bool]:
    await asyncio.gather(*(asyncio.to_thread(model.predict, [seconds]) for seconds in (0.08, 0.16)))
    return {"ok": True}


@app.get("/raise")
def raise_after() -> None:
    model.predict([0.01])
    raise ValueError("the app's own error")


@app.get("/refuse")
async def refuse() -> None:
    raise HTTPException(409, "not now")


@app.get("/stream")
async def stream(chunks: int = 3, pause_s: float = 0.02) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for number in range(chunks):
            await asyncio.sleep(pause_s)
            yield f"chunk {number}\n".encode()

    return StreamingResponse(body())


@app.get("/stream-inference")
def stream_inference() -> StreamingResponse:
    def body() -> Iterator[bytes]:
        for number in range(3):
            model.predict([0.02])
            yield f"token {number}\n".encode()

    return StreamingResponse(body())


@app.get("/background")
async def background(tasks: BackgroundTasks) -> dict[str, bool]:
    def work() -> None:
        model.predict([0.3])
        finished_background.set()

    tasks.add_task(work)
    return {"ok": True}


@app.get("/background-done")
async def background_done() -> dict[str, bool]:
    return {"done": finished_background.is_set()}


@app.post("/echo-length")
async def echo_length(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@app.get("/current-span")
async def current_span() -> dict[str, Any]:
    from opentelemetry import trace

    span = trace.get_current_span()
    span.set_attribute("user.note", "set by the handler")
    with trace.get_tracer("app").start_as_current_span("in preprocess"):
        await asyncio.sleep(0.01)
    model.predict([0.01])
    with trace.get_tracer("app").start_as_current_span("in postprocess"):
        await asyncio.sleep(0.01)
    return {"recording": span.is_recording(), "name": getattr(span, "name", None)}


@app.get("/child-span")
async def child_span() -> dict[str, bool]:
    from opentelemetry import trace

    with trace.get_tracer("app").start_as_current_span("child"):
        return {"ok": True}


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ["PORT"]))
