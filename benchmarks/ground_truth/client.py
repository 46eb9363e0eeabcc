"""Send the requests of a benchmark over sockets of their own, each in a trace that only the benchmark knows."""

from __future__ import annotations

import asyncio
import random  # noqa: TC003 -- a field's type
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

BUFFER = 65_536
RPC: Final = "RPC"


@dataclass
class Asked:
    """One request and what makes it slow, which only the benchmark knows; None for a normal one.

    `withheld_ms` is for how long threads of the service were without a CPU meanwhile, by the kernel's counts.
    """

    trace_id: str
    truth: str | None
    took_ms: float = 0.0
    withheld_ms: float = 0.0


@dataclass
class Client:
    """Send requests to the service at `port`, with processes `pids` and that database file."""

    port: int
    pids: tuple[int, ...]
    chance: random.Random
    database: str = ""
    asked: list[Asked] = field(default_factory=list)

    async def ask(
        self,
        path: str,
        truth: str | None = None,
        method: str = "GET",
        trickle: AsyncIterator[bytes] | None = None,
        read_after_s: float = 0.0,
    ) -> Asked:
        """Send one request over a connection of its own, and read the response to its end.

        `trickle` sends the body in chunks, as JSON; `method` RPC is gRPC, with the part after `?` as its request.
        """
        one = Asked(f"{self.chance.getrandbits(128) or 1:032x}", truth)
        self.asked.append(one)
        withheld, began = withheld_ms(self.pids), time.monotonic()
        parent = f"00-{one.trace_id}-{'b' * 16}-01"
        if method == RPC:
            await self._call(path, parent)
        else:
            await self._request(path, method, parent, trickle, read_after_s)
        one.took_ms = (time.monotonic() - began) * 1e3
        one.withheld_ms = withheld_ms(self.pids) - withheld
        return one

    async def _call(self, path: str, parent: str) -> None:
        name, _, request = path.partition("?")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            call = channel.unary_unary(name, request_serializer=None, response_deserializer=None)
            await call(request.encode(), metadata=(("traceparent", parent),))

    async def _request(
        self, path: str, method: str, parent: str, trickle: AsyncIterator[bytes] | None, read_after_s: float
    ) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            if read_after_s:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            connection.setblocking(False)  # noqa: FBT003
            await loop.sock_connect(connection, ("127.0.0.1", self.port))
            chunked = "content-type: application/json\r\ntransfer-encoding: chunked\r\n"
            body = chunked if trickle else "content-length: 0\r\n"
            head = f"{method} {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n{body}"
            head += f"traceparent: {parent}\r\n\r\n"
            await loop.sock_sendall(connection, head.encode())
            if trickle is not None:
                async for piece in trickle:
                    await loop.sock_sendall(connection, b"%x\r\n%b\r\n" % (len(piece), piece))
                await loop.sock_sendall(connection, b"0\r\n\r\n")
            await asyncio.sleep(read_after_s)
            first = await loop.sock_recv(connection, BUFFER)
            if not first.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                raise SystemExit(f"{method} {path}: the service answered {first[:200]!r}")
            while await loop.sock_recv(connection, 16 * BUFFER):
                pass

    async def steadily(self, requests: Sequence[tuple[str, str]], rate: float) -> None:
        """Send one of these (method, path) at random times, `rate` a second, until cancelled."""
        under_way: set[asyncio.Task[Asked]] = set()
        try:
            while True:
                await asyncio.sleep(self.chance.expovariate(rate))
                method, path = self.chance.choice(requests)
                task = asyncio.create_task(self.ask(path, method=method))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        finally:
            await asyncio.gather(*under_way)


def withheld_ms(pids: tuple[int, ...]) -> float:
    """Return for how long the threads of these processes have been runnable without a CPU, in ms."""
    whole = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended
                whole += int((thread / "schedstat").read_text().split()[1])
    return whole / 1e6
