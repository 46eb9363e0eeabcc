"""The wait in the socket is what the client's clock says, within one tick of the kernel's."""

from __future__ import annotations

import socket
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from stagetrace.sources import socket_wait

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("each_tcp_info"),
    pytest.mark.skipif(socket_wait.SOURCE.lacks is not None, reason=str(socket_wait.SOURCE.lacks)),
]
TICK_MS = socket_wait.TICK_NS / 1e6


@contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def bounds_ms(sent: tuple[float, float], read: tuple[float, float]) -> tuple[float, float]:
    """Return between what the wait must be, by the clock around the sending and that around the reading."""
    return (read[0] - sent[1]) * 1e3 - TICK_MS, (read[1] - sent[0]) * 1e3 + TICK_MS


@pytest.mark.parametrize("accepted", ["at once", "late"])
@pytest.mark.parametrize("wait_s", [0.05, 0.3])
def test_the_wait_is_that_of_the_last_data(accepted: str, wait_s: float) -> None:
    """On a connection that is open, and on a new one that lies in the accept backlog."""
    with listener() as server, socket.create_connection(server.getsockname()) as client:
        ours = server.accept()[0] if accepted == "at once" else None
        before = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sent = before, time.monotonic()
        time.sleep(wait_s)
        ours = ours or server.accept()[0]
        with closing(ours):
            before = time.monotonic()
            waited = socket_wait.waited_ms(ours)
            least, most = bounds_ms(sent, (before, time.monotonic()))
    assert least <= waited <= most


def test_too_short_a_wait_is_none() -> None:
    assert TICK_MS * 2 <= socket_wait.LEAST_MS < TICK_MS * 2 + 1
    with listener() as server, socket.create_connection(server.getsockname()) as client, server.accept()[0] as ours:
        for _ in range(100):  # a busy machine may come between the two
            client.sendall(b"x")
            ours.recv(1)
            if socket_wait.waited_ms(ours) == 0:
                return
    raise AssertionError("data that has just come is never said to have just come")


def test_a_unix_socket_cannot_tell() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(OSError, match=r"not supported|not available"):
        socket_wait.waited_ms(one)
