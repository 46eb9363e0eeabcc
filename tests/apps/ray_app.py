"""Ray Serve: a plain deployment, FastAPI's, batches, a composition of two, streams; `python ray_app.py` on PORT."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ray
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from ray import serve
from sklearn.linear_model import LinearRegression
from starlette.requests import Request

api = FastAPI()


@serve.deployment
class Plain:
    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        if b"broken" in body:
            raise ValueError("broken")
        return {"path": request.url.path, "asked": dict(request.query_params), "bytes": len(body)}


@serve.deployment
def function(request: Request) -> str:
    return "of a function"


@serve.deployment
@serve.ingress(api)
class Api:
    def __init__(self) -> None:
        self.model = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])

    @api.get("/items/{item}")
    def item(self, item: int) -> dict[str, int]:
        return {"item": item}

    @api.post("/predict")
    async def predict(self, rows: list[list[float]]) -> list[float]:
        time.sleep(0.01)  # noqa: ASYNC251
        answers = [float(answer) for answer in self.model.predict(rows)]
        time.sleep(0.01)  # noqa: ASYNC251
        return answers

    @api.get("/broken")
    def broken(self) -> None:
        raise ValueError("broken")

    @api.get("/refused")
    def refused(self) -> None:
        raise HTTPException(418, "no coffee")

    @api.get("/stream")
    def stream(self) -> StreamingResponse:
        def pieces() -> Iterator[str]:
            for piece in range(3):
                time.sleep(0.02)
                yield f"{piece}\n"

        return StreamingResponse(pieces(), media_type="text/plain")

    @api.websocket("/talk")
    async def talk(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()


@serve.deployment
class Batching:
    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.2)
    async def infer(self, rows: list[int]) -> list[int]:
        with trace.get_tracer("app").start_as_current_span("forward"):
            await asyncio.sleep(0.02)
        if -1 in rows:
            raise ValueError("broken")
        return [row * 2 for row in rows]

    async def __call__(self, request: Request) -> int:
        return int(await self.infer(int(request.query_params["row"])))


@serve.deployment
class Talking:
    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.2)
    async def words(self, counts: list[int]) -> AsyncIterator[list[Any]]:
        for step in range(max(counts)):
            await asyncio.sleep(0.02)
            yield [f"{step} " if step < count else StopIteration for count in counts]

    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self.words(int(request.query_params["count"])), media_type="text/plain")


@serve.deployment
class Doubler:
    async def __call__(self, number: int) -> int:
        await asyncio.sleep(0.02)
        if number < 0:
            raise ValueError("negative")
        return number * 2

    def steps(self, number: int) -> Iterator[int]:
        yield from range(number)


@serve.deployment
class Composed:
    def __init__(self, doubler: Any) -> None:
        self.doubler = doubler

    async def __call__(self, request: Request) -> Any:
        number = int(request.query_params["number"])
        if "steps" in request.query_params:
            return [step async for step in self.doubler.options(stream=True, method_name="steps").remote(number)]
        return await self.doubler.remote(number) + 1


APPLICATIONS = {
    "plain": Plain.bind(),
    "function": function.bind(),
    "api": Api.bind(),
    "batching": Batching.bind(),
    "talking": Talking.bind(),
    "composed": Composed.bind(Doubler.bind()),
}


def main() -> None:
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=True, _temp_dir=os.environ.get("RAY_FOLDER"))
    serve.start(http_options={"port": int(os.environ["PORT"])})
    serve.run_many([serve.RunTarget(one, name=name, route_prefix=f"/{name}") for name, one in APPLICATIONS.items()])
    serve.run(function.options(name="health").bind(), name="health", route_prefix="/health")  # it is ready last
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
