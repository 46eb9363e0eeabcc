"""An HTTP port of the back end in this process, with limits of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from backends import LOOPBACK
from stagetrace.backend.ports import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.http_limits import Closed
    from stagetrace.backend.http_port import HttpServer


@dataclass
class Door:
    """An HTTP port in this process, with limits of its own."""

    server: HttpServer
    address: tuple[str, int]
    counters: Counters

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    def closed(self, why: Closed) -> int:
        return self.counters.value("closed_connections", why.value)

    def post(self, body: bytes) -> httpx.Response:
        headers = {"content-type": "application/x-protobuf"}
        return httpx.post(f"{self.url}/v1/traces", content=body, headers=headers, timeout=30)

    def is_healthy(self) -> bool:
        return httpx.get(f"{self.url}/health", timeout=30).status_code == 200


@contextmanager
def running(server: HttpServer, counters: Counters) -> Iterator[Door]:
    """Run a port in a thread."""
    bound = listen(LOOPBACK, 0, "--http-port")
    ready = threading.Event()

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        await server.up.wait()
        ready.set()
        await serving

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield Door(server, bound.getsockname(), counters)
    finally:
        server.should_exit = True
        thread.join()
