"""What a hostile client does to a gRPC port, in frames of HTTP/2 that no gRPC library would send.

Each probe is a context manager: it attacks while its block runs, and yields its connections, which it does not read.
"""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from backend.hostile.probes_http import open_connections

if TYPE_CHECKING:
    from collections.abc import Iterator

Address = tuple[str, int]
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
NO_WINDOW: Final = struct.pack(">HI", 4, 0)  # the setting that forbids the peer to send any DATA
STREAMS: Final = 64  # more than a connection may have
GARBAGE: Final = (
    b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 4096,
    PREFACE + b"\xff" * 4096,
    PREFACE[:-4],
)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


OPENING: Final = PREFACE + frame(SETTINGS)
GARBAGE_FRAMES: Final = (
    OPENING + frame(DATA, END_STREAM, 1, b"x"),  # of no stream
    OPENING + frame(HEADERS, END_HEADERS, 1, b"\xff" * 100),  # no HPACK
    OPENING + frame(SETTINGS, 0, 0, b"\0"),
    OPENING + frame(PING, 0, 0, b"x"),
)


def headers(stream: int, path: str, *, flags: int = END_HEADERS, **more: str) -> bytes:
    """Return the frame that begins a call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in {**fields, "content-type": "application/grpc", **more}.items()
    )
    return frame(HEADERS, flags, stream, block)


def message(stream: int, body: bytes, *, length: int | None = None, flags: int = 0) -> bytes:
    """Return a message of a call; it declares `length` and has `body`, which may be less."""
    declared = len(body) if length is None else length
    return frame(DATA, flags, stream, b"\0" + declared.to_bytes(4, "big") + body)


def streams(count: int = STREAMS) -> range:
    """Return the numbers of the first streams of a client."""
    return range(1, 2 * count, 2)


@contextmanager
def begun_calls(
    address: Address, path: str, connections: int, part: bytes | None = None, *, length: int = 1 << 20
) -> Iterator[list[socket.socket]]:
    """Begin as many calls as connections can have. With `part` each sends that much of a message of `length`."""
    sent = OPENING
    for number in streams():
        sent += headers(number, path) + (b"" if part is None else message(number, part, length=length))
    with open_connections(address, connections, sent) as opened:
        yield opened


@contextmanager
def unread_responses(address: Address, path: str, request: bytes, connections: int) -> Iterator[list[socket.socket]]:
    """Make as many whole calls as connections can have, and leave no room for a response."""
    sent = PREFACE + frame(SETTINGS, 0, 0, NO_WINDOW)
    for number in streams():
        sent += headers(number, path) + message(number, request, flags=END_STREAM)
    with open_connections(address, connections, sent) as opened:
        yield opened


def reset_calls(address: Address, path: str, count: int) -> None:
    """Begin calls and cancel each at once, as far as the server allows on one connection."""
    with socket.create_connection(address, timeout=30) as one, suppress(ConnectionError, TimeoutError):
        one.sendall(OPENING)
        for number in streams(count):
            one.sendall(headers(number, path) + frame(RST_STREAM, 0, number, struct.pack(">I", 8)))


def send_garbage(address: Address) -> None:
    """Send what is no gRPC, each on a connection of its own."""
    for garbage in (*GARBAGE, *GARBAGE_FRAMES):
        with socket.create_connection(address, timeout=30) as one, suppress(ConnectionError):
            one.sendall(garbage)
            one.shutdown(socket.SHUT_WR)
            while one.recv(1 << 16):
                pass
