"""The wire behind a connection is as the kernel's own queue and the client's slowness say."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from sources.test_tcp import listener
from stagetrace.sources import socket_wait, tcp_info

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.native,
    pytest.mark.usefixtures("each_tcp_info"),
    pytest.mark.skipif(tcp_info.SOURCE.lacks is not None, reason=str(tcp_info.SOURCE.lacks)),
]


def queued(connection: socket.socket) -> int:
    """Return the bytes that a client has not acknowledged, as the kernel says by another way."""
    (found,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(found)


def steady(ask: Callable[[], int]) -> int:
    """Return a reading that does not change any more."""
    last, deadline = ask(), time.monotonic() + 20
    while True:
        time.sleep(0.2)
        found = ask()
        if found == last:
            return found
        assert time.monotonic() < deadline
        last = found


def test_what_a_client_has_read_is_acknowledged() -> None:
    with listener() as server, socket.create_connection(server.getsockname()) as client, server.accept()[0] as ours:
        ours.sendall(b"x" * 1000)
        assert len(client.recv(1000, socket.MSG_WAITALL)) == 1000
        assert steady(lambda: queued(ours)) == 0
        rtt_us, retransmits, unacked = tcp_info.read_connection(ours)
    assert 0 < rtt_us < 10_000_000
    assert (retransmits, unacked) == (0, 0)


def test_what_a_client_does_not_read_is_not() -> None:
    with listener() as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.getsockname())
        ours = server.accept()[0]
        with ours:
            ours.settimeout(0)
            sent = 0
            with suppress(BlockingIOError):
                while True:
                    sent += ours.send(b"x" * 65536)
            left = steady(lambda: queued(ours))
            assert tcp_info.read_connection(ours)[2] == left
            assert 0 < left <= sent
            client.settimeout(20)
            while sent:  # and then it reads all
                sent -= len(client.recv(1 << 20))
            assert steady(lambda: queued(ours)) == 0
            assert tcp_info.read_connection(ours)[2] == 0


def test_an_older_kernel_tells_less(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        """Whose struct ends with the retransmissions."""

        def getsockopt(self, *_asked: int) -> bytes:
            return struct.pack("=68xI28xI", 1234, 5)

    monkeypatch.setattr(tcp_info, "tcp_info", socket_wait._tcp_info)
    assert tcp_info.read_connection(Older()) == (1234, 5, None)


def test_a_unix_socket_or_a_closed_one_is_an_error_of_the_system() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(OSError, match=os.strerror(95)):
        tcp_info.read_connection(one)
    with pytest.raises(OSError, match="Bad file descriptor"):
        tcp_info.read_connection(one)
