"""What a hostile client does to an HTTP port: connections that cost it nothing, and requests that never end.

Each probe is a context manager: it attacks while its block runs, and yields its connections.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Address = tuple[str, int]
Connected = AbstractContextManager[list[socket.socket]]
BEGUN: Final = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: "
GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a port without, and the reverse
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00" * 64,
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000,
    b"HEAD / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\nmore",
)


def post_headers(length: int | None, kind: str = "application/x-protobuf") -> bytes:
    """Return the headers of an export; without a length its body is chunked."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n{framing}\r\n\r\n".encode()


LEGAL: Final = (
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\n",
    b"HEAD /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n",
    b"GET http://localhost/api/v3/services?%ff%00 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nab",
    post_headers(2, "application/json\r\nexpect: 100-continue") + b"{}",
    post_headers(None, "application/json") + b"2\r\n{}\r\n0\r\n\r\n",
)
_INSERTED: Final = (b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b": ", b"\0", b"x" * 300)


@contextmanager
def open_connections(address: Address, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connect so often, send `first` on each connection, and no more."""
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(address, timeout=30)))
            with suppress(ConnectionError):  # this one gave way meanwhile
                opened[-1].sendall(first)
        yield opened


def silent(address: Address, count: int) -> Connected:
    """Connect and send nothing."""
    return open_connections(address, count)


@contextmanager
def trickling(address: Address, count: int, first: bytes, every_s: float = 0.5) -> Iterator[list[socket.socket]]:
    """Send `first` on each connection, and one more byte from time to time."""
    with open_connections(address, count, first) as opened, _repeated(lambda: _send_each(opened, b"a"), every_s):
        yield opened


def slow_headers(address: Address, count: int, every_s: float = 0.5) -> Connected:
    """Send headers that never end."""
    return trickling(address, count, BEGUN, every_s)


def slow_bodies(address: Address, count: int, every_s: float = 0.5) -> Connected:
    """Send bodies that never end, a byte at a time."""
    return trickling(address, count, post_headers(1 << 20), every_s)


def stopped_bodies(address: Address, count: int, size: int) -> Connected:
    """Send bodies without their last byte."""
    return open_connections(address, count, post_headers(size) + bytes(size - 1))


def kept_alive(address: Address, count: int) -> Connected:
    """Send one legal request on each connection, and keep the connection."""
    return open_connections(address, count, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")


def send_garbage(address: Address, count: int) -> None:
    """Connect so often; send something else than HTTP, and disconnect."""
    for number in range(count):
        with suppress(ConnectionError), socket.create_connection(address, timeout=30) as one:
            one.sendall(GARBAGE[number % len(GARBAGE)])


def send_mutated(address: Address, count: int, seed: int) -> None:
    """Connect so often; send legal requests with a few random changes, in two parts, and read some responses."""
    random = Random(seed)
    for _ in range(count):
        content = _mutated(random)
        split = random.randrange(len(content))
        with suppress(OSError), socket.create_connection(address, timeout=30) as one:
            one.settimeout(0.01)
            one.sendall(content[:split])
            if random.random() < 0.5:
                one.recv(65536)
            one.sendall(content[split:])
            one.recv(65536)


def _mutated(random: Random) -> bytes:
    content = bytearray(b"".join(random.choices(LEGAL, k=random.choice((1, 1, 2, 5)))))
    for _ in range(random.choice((0, 1, 1, 3))):
        at = random.randrange(len(content))
        change = random.randrange(3)
        if change == 0:
            content[at] = random.randrange(256)
        elif change == 1:
            content[at:at] = random.choice(_INSERTED)
        elif len(content) > 40:
            del content[at : at + random.randrange(1, 20)]
    return bytes(content)


def received(connection: socket.socket, end: bytes | None = None, within_s: float = 30) -> bytes:
    """Return what the server sends, up to `end` or until it closes the connection. Raise TimeoutError."""
    connection.settimeout(within_s)
    content = b""
    with suppress(ConnectionError):
        while (end is None or end not in content) and (chunk := connection.recv(65536)):
            content += chunk
    return content


def status_of(connection: socket.socket) -> int:
    """Return the status of the response that the server sends."""
    return int(received(connection, b"\r\n").split(b" ", 2)[1])


def readable(connections: Iterable[socket.socket], within_s: float = 0) -> list[socket.socket]:
    """Return the connections on which the server has sent something, or which it has closed."""
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one, selectors.EVENT_READ, one)
        return [key.data for key, _ in selector.select(within_s)]


def count_closed(connections: Iterable[socket.socket]) -> int:
    """Return how many connections the server has closed."""
    return sum(map(_is_closed, readable(connections)))


def _is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except ConnectionError:
        return True


def _send_each(connections: Iterable[socket.socket], data: bytes) -> None:
    for one in connections:
        with suppress(OSError):
            one.send(data, socket.MSG_DONTWAIT)


@contextmanager
def _repeated(action: Callable[[], None], every_s: float) -> Iterator[None]:
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
