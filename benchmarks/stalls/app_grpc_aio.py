"""Serve the stalls by an asyncio server of gRPC; a request is a query such as `ms=300`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks.stalls.app_grpc import SERVICE, asked
from benchmarks.stalls.planted import AWAITING, BLOCKING, plant, resize_heap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def method(stall: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """Return the method that stalls so."""

    async def handle(request: bytes, _: Any) -> bytes:
        await plant(stall, asked(request)["ms"])
        return b"ok"

    return handle


async def heap(request: bytes, _: Any) -> bytes:
    """Keep so many objects."""
    resize_heap(int(asked(request)["objects"]))
    return b"ok"


async def main() -> None:
    """Serve at the port that is the last argument."""
    methods = {"heap": heap, **{name: method(name) for name in (*BLOCKING, *AWAITING)}}
    handlers = {name: grpc.unary_unary_rpc_method_handler(one) for name, one in methods.items()}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[-1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
