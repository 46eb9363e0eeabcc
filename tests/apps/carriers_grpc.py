"""As carriers.py, for gRPC: two servers, one of threads and one of asyncio, ask themselves; each method is late once."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio

SLEEPS_S = 0.25


def unary(request: bytes, context: Any) -> bytes:
    time.sleep(SLEEPS_S)  # late: Unary
    return request


def stream(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    time.sleep(SLEEPS_S)  # late: Stream
    yield request


async def awaits(request: bytes, context: Any) -> bytes:
    await asyncio.gather(asyncio.sleep(0), deeper())
    return request


async def deeper() -> None:
    await asyncio.sleep(SLEEPS_S)  # late: Awaits


async def chunks(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    await asyncio.sleep(SLEEPS_S)  # late: Chunks
    yield request


THREADS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Stream": grpc.unary_stream_rpc_method_handler(stream),
}
AIO = {
    "Awaits": grpc.unary_unary_rpc_method_handler(awaits),
    "Chunks": grpc.unary_stream_rpc_method_handler(chunks),
    # In a thread of the pool.
    **{f"Pooled{name}": handler for name, handler in THREADS.items()},
}


def ask(port: int, handlers: dict[str, Any]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name, handler in handlers.items():
            method = f"/ml.Scorer/{name}"
            if handler.response_streaming:
                list(channel.unary_stream(method)(b"", timeout=60))
            else:
                channel.unary_unary(method)(b"", timeout=60)


def run_threads() -> None:
    handler = grpc.method_handlers_generic_handler("ml.Scorer", THREADS)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ask(port, THREADS)
    server.stop(5).wait()


async def run_aio() -> None:
    handler = grpc.method_handlers_generic_handler("ml.Scorer", AIO)
    server = grpc.aio.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(ask, port, AIO)
    await server.stop(5)


if __name__ == "__main__":
    run_threads()
    asyncio.run(run_aio())
