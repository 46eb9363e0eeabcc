"""A service that others call, by HTTP and, where GRPC_PORT says so, by gRPC."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import breaking
import grpc
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

import stagetrace

app = FastAPI()


@app.get("/break/{name}")
async def make_broken(name: str) -> None:
    breaking.make_broken(name)


@app.get("/mend")
async def mend() -> None:
    breaking.mend()


@app.get("/health")
async def health() -> bool:
    return True


@app.api_route("/echo", methods=["GET", "POST"])
async def echo(request: Request, seconds: float = 0) -> dict[str, Any]:
    await asyncio.sleep(seconds)
    headers = [(name, value) for name, value in request.headers.items() if name in ("traceparent", "x-mine")]
    return {"headers": headers, "body": (await request.body()).decode()}


@app.get("/timed")
async def timed(queue_s: float = 0, inference_s: float = 0, own: str = "") -> JSONResponse:
    with stagetrace.stage("queue"):
        await asyncio.sleep(queue_s)
    with stagetrace.stage("inference"):
        await asyncio.sleep(inference_s)
    return JSONResponse({}, headers={"Server-Timing": own} if own else None)


@app.get("/asked")
async def asked(request: Request) -> bool:
    """Tell whether the caller has shown itself as stagetrace."""
    return "stagetrace-caller" in request.headers


@app.get("/slow-body")
async def slow_body(chunks: int = 3, pause_s: float = 0.05) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(chunks):
            yield b"x" * 1000
            await asyncio.sleep(pause_s)

    return StreamingResponse(body())


@app.get("/status/{code}")
async def status(code: int) -> JSONResponse:
    return JSONResponse({}, code)


@app.get("/redirect")
async def redirect() -> RedirectResponse:
    return RedirectResponse("/echo")


def seen(context: Any) -> bytes:
    return str([list(item) for item in context.invocation_metadata() if item[0] in ("traceparent", "x-mine")]).encode()


class Servicer(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return {
            "/test.Down/UnaryUnary": grpc.unary_unary_rpc_method_handler(self.one),
            "/test.Down/UnaryStream": grpc.unary_stream_rpc_method_handler(self.many),
            "/test.Down/StreamUnary": grpc.stream_unary_rpc_method_handler(self.one),
            "/test.Down/StreamStream": grpc.stream_stream_rpc_method_handler(self.many),
            "/test.Down/Abort": grpc.unary_unary_rpc_method_handler(self.abort),
            "/test.Down/Quiet": grpc.unary_unary_rpc_method_handler(self.quiet),
            "/test.Down/Sleep": grpc.unary_unary_rpc_method_handler(self.sleep),
            "/test.Down/Timed": grpc.unary_unary_rpc_method_handler(self.timed),
        }.get(details.method)

    def one(self, request: Any, context: Any) -> bytes:
        if not isinstance(request, bytes):
            list(request)
        return seen(context)

    def many(self, _: Any, context: Any) -> Iterator[bytes]:
        yield seen(context)
        time.sleep(0.03)
        yield b"last"

    def abort(self, _: Any, context: Any) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    def quiet(self, request: Any, _: Any) -> bytes:
        return request

    def timed(self, request: Any, context: Any) -> bytes:
        context.set_trailing_metadata((("x-own", "1"),))
        with stagetrace.stage("inference"):
            time.sleep(float(request))
        return request

    def sleep(self, request: Any, _: Any) -> bytes:
        time.sleep(float(request))
        return b""


if os.environ.get("GRPC_PORT"):
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Servicer(),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['GRPC_PORT']}")
    server.start()
