"""Serve the same model over gRPC, on few threads; a request is a query such as `rows=2`."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import grpc

from benchmarks.causes.app import Model

WORKERS = 4

model = Model()


def predict(request: bytes, _: Any) -> bytes:
    """Score rows."""
    model.predict([0] * int(_first(request, "rows")))
    return b"ok"


def occupy(request: bytes, _: Any) -> bytes:
    """Occupy a thread of the pool."""
    time.sleep(int(_first(request, "ms")) / 1e3)
    return b"ok"


def _first(request: bytes, key: str) -> str:
    return parse_qs(request.decode())[key][0]


def main() -> None:
    """Serve at the port that is the last argument."""
    methods = {"Predict": predict, "Occupy": occupy}
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server = grpc.server(ThreadPoolExecutor(WORKERS))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Scorer", handlers),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[-1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
