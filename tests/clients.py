"""Run clients in closed loops: each sends its next request when it has the response to the one before."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_END = b"\r\n\r\n"


def step(port: int, path: str, clients: Sequence[int], each_s: float) -> list[float]:
    """Run each number of clients at once on a service, one after the other; return the requests per second of each."""
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    rates = []
    for count in clients:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        for one in sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sendall(request)
        rates.append(_until(time.monotonic() + each_s, sockets, request) / each_s)
        for one in sockets:
            one.close()
    return rates


def _until(end: float, sockets: list[socket.socket], request: bytes) -> int:
    """Send requests until `end`, then wait for the responses that are due; return the number received before it."""
    waiting, done = set(sockets), 0
    received = dict.fromkeys(sockets, b"")
    while waiting:
        for one in select.select(list(waiting), [], [], 30)[0]:
            received[one] += one.recv(65536)
            head, found, body = received[one].partition(_END)
            if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
                continue
            assert head.startswith(b"HTTP/1.1 200"), head
            received[one] = b""
            if time.monotonic() < end:
                done += 1
                one.sendall(request)
            else:
                waiting.remove(one)
    return done
