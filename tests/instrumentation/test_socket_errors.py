"""The wait in the socket, for connections that have no reading of it, that fail or that hang."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import guard
from stagetrace.protocols import connection as connection_wait
from stagetrace.sources import socket_wait
from stagetrace.sources.base import SLOW_READINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(socket_wait.SOURCE.lacks is not None, reason=str(socket_wait.SOURCE.lacks))


class Cycle:
    """Like a server's object for one request, which has the `send` that the application gets."""

    def __init__(self, connection: Any, *, closing: bool = False) -> None:
        self.transport = self
        self.connection = connection
        self.closing = closing

    def get_extra_info(self, _name: str) -> Any:
        return self.connection

    def is_closing(self) -> bool:
        return self.closing

    async def send(self, _message: Any) -> None: ...


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    guard.failures.pop(socket_wait.__name__, None)
    connection_wait._source.off = False
    socket_wait.SOURCE._slow.clear()


def test_data_that_waited_has_its_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        time.sleep(0.05)
        with server.accept()[0] as ours:
            assert connection_wait.waited_ns(Cycle(ours)) >= 40_000_000


def test_a_connection_without_a_reading_has_not_failed() -> None:
    """A Unix socket, a client that has disconnected, an application that no server calls."""
    one, other = socket.socketpair()
    with one, other:
        assert connection_wait.waited_ns(Cycle(one)) == 0
    assert connection_wait.waited_ns(Cycle(one, closing=True)) == 0
    assert connection_wait.waited_ns(Cycle(None, closing=True)) == 0
    assert connection_wait.waited_ns(None) == 0
    assert socket_wait.__name__ not in guard.failures


def test_a_reading_that_fails_is_switched_off() -> None:
    reads = []

    class Failing:
        def fileno(self, *_: int) -> int:
            reads.append(1)
            raise RuntimeError("injected fault")

        getsockopt = fileno

    for _ in range(guard.LIMIT + 5):
        assert connection_wait.waited_ns(Cycle(Failing())) == 0
    assert len(reads) == guard.LIMIT


def test_a_reading_that_hangs_pauses_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    class Hanging:
        def getsockopt(self, *_: int) -> bytes:
            reads.append(1)
            time.sleep(0.03)
            return bytes(socket_wait._END_AT)

    class Interrupted(Hanging):
        def getsockopt(self, *arguments: int) -> bytes:
            if len(reads) % 2:  # the second time it is read at once
                reads.append(1)
                return bytes(socket_wait._END_AT)
            return super().getsockopt(*arguments)

    source = socket_wait.SOURCE
    monkeypatch.setattr(socket_wait, "tcp_info", socket_wait._tcp_info)
    monkeypatch.setattr(source, "_slow", [])
    monkeypatch.setattr(source, "pauses", 0)
    monkeypatch.setattr(source, "paused_until", 0.0)
    for _ in range(SLOW_READINGS + 1):
        assert connection_wait.waited_ns(Cycle(Interrupted())) == 0
    assert source.pauses == 0
    reads.clear()
    for _ in range(SLOW_READINGS + 5):
        assert connection_wait.waited_ns(Cycle(Hanging())) == 0
    assert (len(reads), source.pauses) == (2 * SLOW_READINGS, 1)
    source.paused_until = time.monotonic()
    connection_wait.waited_ns(Cycle(Hanging()))
    assert (len(reads), source.pauses) == (2 * SLOW_READINGS + 2, 2)
