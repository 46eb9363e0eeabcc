# ruff: noqa: ARG002, N802, T201, I001
"""A plain gRPC service with a server of threads, as its author wrote it."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
from grpc import server as make_server  # before anything could be swapped
import grpc_parts as parts
from google.protobuf.struct_pb2 import Struct

NAMES = {
    **dict.fromkeys(["Predict", "Raise", "Abort", "SetCode", "CodeAndRaise", "Sleep", "See"], "unary_unary"),
    **dict.fromkeys(["Count", "CountAndRaise", "CountAndAbort", "NoIterator", "Large"], "unary_stream"),
    **dict.fromkeys(["Sum", "Upload"], "stream_unary"),
    **dict.fromkeys(["Double", "ReadAfterEnd"], "stream_stream"),
}


class Scorer:
    def Predict(self, request: Struct, context: Any) -> Struct:
        time.sleep(parts.get(request, "preprocess_s"))
        context.set_trailing_metadata((("kept", "yes"),))
        return parts.result(request)

    def Raise(self, request: Struct, context: Any) -> Struct:
        raise parts.OddError("the handler's own error")

    def Abort(self, request: Struct, context: Any) -> Struct:
        context.set_trailing_metadata((("kept", "yes"),))
        context.abort(getattr(grpc.StatusCode, parts.get(request, "code", "NOT_FOUND")), "no such thing")
        raise AssertionError

    def SetCode(self, request: Struct, context: Any) -> Struct:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details("come again")
        return parts.struct()

    def CodeAndRaise(self, request: Struct, context: Any) -> Struct:
        context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
        raise parts.OddError("of the caller's making")

    def Sleep(self, request: Struct, context: Any) -> Struct:
        print("sleeping", flush=True)
        time.sleep(parts.get(request, "seconds"))
        return parts.struct()

    def See(self, request: Struct, context: Any) -> Struct:
        return parts.seen()

    def Count(self, request: Struct, context: Any) -> Iterator[Struct]:
        try:
            for number in range(int(parts.get(request, "to"))):
                time.sleep(parts.get(request, "step_s"))
                yield parts.struct(number=number)
        finally:
            print("count is closed", flush=True)

    def CountAndRaise(self, request: Struct, context: Any) -> Iterator[Struct]:
        yield parts.struct(number=0)
        raise parts.OddError("in the midst of it")

    def CountAndAbort(self, request: Struct, context: Any) -> Iterator[Struct]:
        yield parts.struct(number=0)
        context.abort(grpc.StatusCode.DATA_LOSS, "lost the rest")

    def NoIterator(self, request: Struct, context: Any) -> Any:
        return [parts.struct(number=0)]

    def Sum(self, requests: Iterator[Struct], context: Any) -> Struct:
        return parts.struct(value=sum(parts.get(request, "value") for request in requests))

    def Large(self, request: Struct, context: Any) -> Iterator[Struct]:
        """Send `megabytes`; at the end say how long gRPC kept this waiting, in seconds."""
        took = 0.0
        for _ in range(int(parts.get(request, "megabytes"))):
            began = time.monotonic()
            yield parts.struct(text="x" * 1_000_000)
            took += time.monotonic() - began
        yield parts.struct(took_s=took)

    def Upload(self, requests: Iterator[Struct], context: Any) -> Struct:
        """Say how long the messages were waited for, in seconds, and how many there were."""
        began, waited, count = time.monotonic(), 0.0, 0
        for _ in requests:
            waited, count = waited + time.monotonic() - began, count + 1
            time.sleep(0.02)
            began = time.monotonic()
        return parts.struct(waited_s=waited + time.monotonic() - began, count=count)

    def Double(self, requests: Iterator[Struct], context: Any) -> Iterator[Struct]:
        for request in requests:
            yield parts.struct(value=2 * parts.get(request, "value"))

    def ReadAfterEnd(self, requests: Any, context: Any) -> Iterator[Struct]:
        for _ in range(3):
            yield parts.struct(value=parts.get(requests.next(), "value"))

    def Bytes(self, request: bytes, context: Any) -> bytes:
        return request[::-1]

    def Count_left(self, request: bytes, context: Any) -> bytes:
        return parts.count_left()

    def Break(self, request: bytes, context: Any) -> bytes:
        return parts.sabotage(request.decode())


class Other(grpc.ServerInterceptor):
    """A person's own interceptor, which refuses some RPCs and trips over others."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        metadata = dict(details.invocation_metadata)
        if "trip" in metadata:
            raise RuntimeError("the interceptor tripped")
        if "refuse" in metadata:
            return grpc.unary_unary_rpc_method_handler(
                lambda _request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")
            )
        return continuation(details)


def main() -> None:
    others = [*parts.telemetry_of_its_own("server_interceptor"), Other()]
    if os.environ.get("POSITIONAL"):
        server = make_server(parts.pool(), parts.handlers(Scorer(), NAMES), tuple(others), None, parts.most())
    else:
        server = grpc.server(parts.pool(), interceptors=others, maximum_concurrent_rpcs=parts.most())
        server.add_generic_rpc_handlers(parts.handlers(Scorer(), NAMES))
    parts.reflect(server)
    server.add_insecure_port(parts.address())
    server.start()
    if os.environ.get("ON_SIGTERM"):
        signal.signal(signal.SIGTERM, lambda *_: server.stop(float(os.environ["ON_SIGTERM"])))
    try:
        server.wait_for_termination()
    except KeyboardInterrupt:
        server.stop(0)
    if os.environ.get("HARD_END"):
        os._exit(0)  # as multiprocessing ends its children: no exit handler runs


if __name__ == "__main__":
    main()
