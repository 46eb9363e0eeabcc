"""As streams.py for gRPC: two servers, one of threads and one of asyncio, ask themselves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import computing
import grpc
import grpc.aio

LATE_S = 0.3
ROUNDS = 5  # on a busy machine one may be late for another reason


def computes(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    computing.compute(LATE_S)
    yield request


def sleeps(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    time.sleep(LATE_S)
    yield request


async def blocks(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    time.sleep(LATE_S)  # noqa: ASYNC251 -- the fault
    yield request


async def awaits(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    await asyncio.sleep(LATE_S)
    yield request


async def ticks(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(25):
        yield request
        await asyncio.sleep(0.02)


def handlers(functions: list[Any]) -> list[Any]:
    methods = {one.__name__: grpc.unary_stream_rpc_method_handler(one) for one in functions}
    return [grpc.method_handlers_generic_handler("ml.Streams", methods)]


def ask(port: int, *names: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in names:
            list(channel.unary_stream(f"/ml.Streams/{name}")(b"1", timeout=60))


def run_threads() -> None:
    server = grpc.server(ThreadPoolExecutor(2), handlers=handlers([computes, sleeps]))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    for _ in range(ROUNDS):
        ask(port, "computes", "sleeps")
    server.stop(5).wait()


async def run_aio() -> None:
    server = grpc.aio.server(handlers=handlers([blocks, awaits, ticks]))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def block() -> None:
        await asyncio.sleep(0.1)
        await asyncio.to_thread(ask, port, "blocks")

    for _ in range(ROUNDS):
        await asyncio.to_thread(ask, port, "awaits")
        await asyncio.gather(asyncio.to_thread(ask, port, "ticks"), block())
    await server.stop(5)


if __name__ == "__main__":
    run_threads()
    asyncio.run(run_aio())
