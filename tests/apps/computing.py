"""Handlers that compute and call no model, behind WSGI and, as a program that asks itself once, behind gRPC."""

import asyncio
import sys
import threading
import time
from concurrent import futures
from typing import Any

COMPUTING_S = 0.04
LONG = 50_000_000  # bytes, more than a socket's buffers have


def compute(cpu_s: float = COMPUTING_S) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(500))


def compete(stop: threading.Event) -> None:
    """Compute in Python, for no request."""
    while not stop.is_set():
        sum(range(1_000))


def app(environ: Any, start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/read":
        environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/compete":
        for _ in range(3):
            threading.Thread(target=compete, args=(threading.Event(),), daemon=True).start()
    if environ["PATH_INFO"] == "/download":
        start_response("200 OK", [("content-type", "text/plain"), ("content-length", str(LONG))])
        return [b"x" * LONG]
    compute()
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", "2")])
    return [b"ok"]


def in_a_thread(request: bytes, context: Any) -> bytes:
    compute()
    return request


async def in_the_loop(request: bytes, context: Any) -> bytes:
    return in_a_thread(request, context)


def handlers(behaviour: Any) -> Any:
    import grpc

    methods = {"Compute": grpc.unary_unary_rpc_method_handler(behaviour)}
    return [grpc.method_handlers_generic_handler("ml.Scorer", methods)]


async def serve_by_asyncio(behaviour: Any) -> None:
    """Serve one call by a coroutine function, or by a plain one in the server's pool."""
    import grpc.aio

    server = grpc.aio.server(futures.ThreadPoolExecutor(2), handlers=handlers(behaviour))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await channel.unary_unary("/ml.Scorer/Compute")(b"asked", timeout=30) == b"asked"
    await server.stop(5)


def serve_by_threads() -> None:
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=handlers(in_a_thread))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary("/ml.Scorer/Compute")(b"asked", timeout=30) == b"asked"
    server.stop(5).wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(serve_by_asyncio({"coroutine": in_the_loop, "pool": in_a_thread}[sys.argv[1]]))
    else:
        serve_by_threads()
