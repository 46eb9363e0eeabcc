"""Serve the stalls over gRPC, on few threads; a request is a query such as `ms=300`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import grpc

from benchmarks.stalls.planted import BLOCKING, POOL, resize_heap

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "bench.Stalls"


def asked(request: bytes) -> dict[str, float]:
    """Return the numbers of a request."""
    return {name: float(value) for name, value in parse_qsl(request.decode())}


def stall(plant: Callable[[float], object], request: bytes, _: Any) -> bytes:
    """Stall in a thread of the pool."""
    plant(asked(request)["ms"])
    return b"ok"


def heap(request: bytes, _: Any) -> bytes:
    """Keep so many objects."""
    resize_heap(int(asked(request)["objects"]))
    return b"ok"


def main() -> None:
    """Serve at the port that is the last argument."""
    methods: dict[str, Callable[[bytes, Any], bytes]] = {"heap": heap}
    methods |= {name: partial(stall, plant) for name, plant in BLOCKING.items()}
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server = grpc.server(ThreadPoolExecutor(POOL))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[-1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
