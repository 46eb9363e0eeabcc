"""A gRPC server whose one thread sleeps while it is asked again; it asks itself, some times."""

import threading
import time
from concurrent import futures
from typing import Any

import grpc

ROUNDS = 2
SLEEPS_S = 0.4
has_begun = threading.Event()


def sleep(request: bytes, context: Any) -> bytes:
    has_begun.set()
    time.sleep(SLEEPS_S)
    return request


def respond(request: bytes, context: Any) -> bytes:
    return request


if __name__ == "__main__":
    behaviours = {"Sleep": sleep, "Respond": respond}
    methods = {name: grpc.unary_unary_rpc_method_handler(one) for name, one in behaviours.items()}
    handler = grpc.method_handlers_generic_handler("ml.Scorer", methods)
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(ROUNDS):
            has_begun.clear()
            first = channel.unary_unary("/ml.Scorer/Sleep").future(b"", timeout=60)
            has_begun.wait(60)
            channel.unary_unary("/ml.Scorer/Respond")(b"", timeout=60)
            first.result()
    server.stop(5).wait()
