# ruff: noqa: ARG002, ASYNC251, N802, T201, I001
"""A plain gRPC service with an asyncio server, as its author wrote it."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
from grpc.aio import server as make_server
import grpc_parts as parts
from google.protobuf.struct_pb2 import Struct

NAMES = {
    **dict.fromkeys(["Predict", "Raise", "Abort", "SetCode", "CodeAndRaise", "Sleep", "Block", "See"], "unary_unary"),
    **dict.fromkeys(["Count", "CountAndRaise", "CountAndAbort", "Write", "Large"], "unary_stream"),
    **dict.fromkeys(["Sum", "Upload"], "stream_unary"),
    **dict.fromkeys(["Double", "WriteDouble"], "stream_stream"),
    **dict.fromkeys(["Pooled", "PooledAbort", "PooledSetCode", "PooledRaise", "PooledSee"], "unary_unary"),
    "PooledCount": "unary_stream",
    "PooledSum": "stream_unary",
}


class Scorer:
    async def Predict(self, request: Struct, context: Any) -> Struct:
        await asyncio.sleep(parts.get(request, "preprocess_s"))
        context.set_trailing_metadata((("kept", "yes"),))
        return parts.result(request)

    async def Raise(self, request: Struct, context: Any) -> Struct:
        raise parts.OddError("the handler's own error")

    async def Abort(self, request: Struct, context: Any) -> Struct:
        code = getattr(grpc.StatusCode, parts.get(request, "code", "NOT_FOUND"))
        await context.abort(code, "no such thing", (("kept", "yes"),))
        raise AssertionError

    async def SetCode(self, request: Struct, context: Any) -> Struct:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details("come again")
        return parts.struct()

    async def CodeAndRaise(self, request: Struct, context: Any) -> Struct:
        context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
        raise parts.OddError("of the caller's making")

    async def Sleep(self, request: Struct, context: Any) -> Struct:
        print("sleeping", flush=True)
        await asyncio.sleep(parts.get(request, "seconds"))
        return parts.struct()

    async def Block(self, request: Struct, context: Any) -> Struct:
        time.sleep(parts.get(request, "seconds"))
        return parts.struct()

    async def See(self, request: Struct, context: Any) -> Struct:
        return parts.seen()

    async def Count(self, request: Struct, context: Any) -> AsyncIterator[Struct]:
        try:
            for number in range(int(parts.get(request, "to"))):
                await asyncio.sleep(parts.get(request, "step_s"))
                yield parts.struct(number=number)
        finally:
            print("count is closed", flush=True)

    async def CountAndRaise(self, request: Struct, context: Any) -> AsyncIterator[Struct]:
        yield parts.struct(number=0)
        raise parts.OddError("in the midst of it")

    async def CountAndAbort(self, request: Struct, context: Any) -> AsyncIterator[Struct]:
        yield parts.struct(number=0)
        await context.abort(grpc.StatusCode.DATA_LOSS, "lost the rest")

    async def Write(self, request: Struct, context: Any) -> None:
        for number in range(int(parts.get(request, "to"))):
            await context.write(parts.struct(number=number))

    async def Sum(self, requests: AsyncIterator[Struct], context: Any) -> Struct:
        total = 0.0
        async for request in requests:
            total += parts.get(request, "value")
        return parts.struct(value=total)

    async def Large(self, request: Struct, context: Any) -> AsyncIterator[Struct]:
        """Send `megabytes`; at the end say how long gRPC kept this waiting, in seconds."""
        took = 0.0
        for _ in range(int(parts.get(request, "megabytes"))):
            began = time.monotonic()
            yield parts.struct(text="x" * 1_000_000)
            took += time.monotonic() - began
        yield parts.struct(took_s=took)

    async def Upload(self, requests: AsyncIterator[Struct], context: Any) -> Struct:
        """Say how long the messages were waited for, in seconds, and how many there were."""
        began, waited, count = time.monotonic(), 0.0, 0
        async for _ in requests:
            waited, count = waited + time.monotonic() - began, count + 1
            await asyncio.sleep(0.02)
            began = time.monotonic()
        return parts.struct(waited_s=waited + time.monotonic() - began, count=count)

    async def Double(self, requests: AsyncIterator[Struct], context: Any) -> AsyncIterator[Struct]:
        async for request in requests:
            yield parts.struct(value=2 * parts.get(request, "value"))

    async def WriteDouble(self, requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(parts.struct(value=2 * parts.get(request, "value")))

    def Pooled(self, request: Struct, context: Any) -> Struct:
        time.sleep(parts.get(request, "preprocess_s"))
        return parts.result(request)

    def PooledAbort(self, request: Struct, context: Any) -> Struct:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
        raise AssertionError

    def PooledSetCode(self, request: Struct, context: Any) -> Struct:
        assert "ServicerContext" in context.__class__.__name__
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("too far")
        return parts.struct()

    def PooledRaise(self, request: Struct, context: Any) -> Struct:
        raise parts.OddError("in a thread")

    def PooledSee(self, request: Struct, context: Any) -> Struct:
        return parts.seen()

    def PooledCount(self, request: Struct, context: Any) -> Iterator[Struct]:
        for number in range(int(parts.get(request, "to"))):
            time.sleep(parts.get(request, "step_s"))
            yield parts.struct(number=number)

    def PooledSum(self, requests: Iterator[Struct], context: Any) -> Struct:
        return parts.struct(value=sum(parts.get(request, "value") for request in requests))

    async def Bytes(self, request: bytes, context: Any) -> bytes:
        return request[::-1]

    async def Count_left(self, request: bytes, context: Any) -> bytes:
        return parts.count_left()

    async def Break(self, request: bytes, context: Any) -> bytes:
        return parts.sabotage(request.decode())


class Other(grpc.aio.ServerInterceptor):
    """A person's own interceptor, which refuses some RPCs and trips over others."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        metadata = dict(details.invocation_metadata)
        if "trip" in metadata:
            raise RuntimeError("the interceptor tripped")
        if "refuse" in metadata:

            async def refuse(_request: Any, context: Any) -> None:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")

            return grpc.unary_unary_rpc_method_handler(refuse)
        return await continuation(details)


async def main() -> None:
    others = [*parts.telemetry_of_its_own("aio_server_interceptor"), Other()]
    if os.environ.get("POSITIONAL"):
        server = make_server(parts.pool(), parts.handlers(Scorer(), NAMES), others, None, parts.most())
    else:
        server = grpc.aio.server(parts.pool(), interceptors=tuple(others), maximum_concurrent_rpcs=parts.most())
        server.add_generic_rpc_handlers(parts.handlers(Scorer(), NAMES))
    parts.reflect(server)
    server.add_insecure_port(parts.address())
    await server.start()
    if os.environ.get("ON_SIGTERM"):
        grace = float(os.environ["ON_SIGTERM"])
        loop = asyncio.get_running_loop()
        stops = []
        loop.add_signal_handler(signal.SIGTERM, lambda: stops.append(loop.create_task(server.stop(grace))))
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(0)
    if os.environ.get("HARD_END"):
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
