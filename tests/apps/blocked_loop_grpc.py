"""A gRPC server of asyncio whose handler blocks the event loop; it asks itself, two RPCs at a time."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio

ROUNDS = 6
SLEEPS_S = 0.1


class Together(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets two RPCs begin at the same time."""

    def __init__(self) -> None:
        self.barrier = asyncio.Barrier(2)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        await self.barrier.wait()
        return await continuation(details)


async def block(request: bytes, context: Any) -> bytes:
    time.sleep(SLEEPS_S)  # noqa: ASYNC251 -- the fault
    return request


def ask(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary("/ml.Scorer/Block")
        for _ in range(ROUNDS):
            for one in [method.future(b"", timeout=60) for _ in range(2)]:
                one.result()


async def main() -> None:
    handlers = {"Block": grpc.unary_unary_rpc_method_handler(block)}
    generic = grpc.method_handlers_generic_handler("ml.Scorer", handlers)
    server = grpc.aio.server(handlers=[generic], interceptors=[Together()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(ask, port)
    await server.stop(5)


if __name__ == "__main__":
    asyncio.run(main())
