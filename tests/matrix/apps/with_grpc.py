"""A gRPC server whose messages are bytes, so that it needs no protobuf."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from work import WORK


def handler(path: str) -> Any:
    """Return what answers an RPC as `WORK` does, with the request behind it."""
    return grpc.unary_unary_rpc_method_handler(lambda request, _context: WORK[path]() + request)


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(4))
    methods = {path[1:]: handler(path) for path in WORK}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("matrix.Work", methods),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    server.start()
    server.wait_for_termination()
