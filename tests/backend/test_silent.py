"""Connections whose clients have sent nothing yet."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from functools import partial
from typing import Final

import pytest

from backends import LOOPBACK
from stagetrace.backend import silent
from stagetrace.backend.http_limits import Place
from stagetrace.backend.ports import listen

MANY: Final = 40  # more than begin before others are served


async def turns(count: int) -> None:
    """Let the event loop look at its sockets so often."""
    for _ in range(count):
        await asyncio.sleep(0.001)


class Waiting:
    """Connections that wait for their first byte, the clients' ends, and what came of each."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        self.begun: list[int] = []
        self.dropped: list[int] = []
        self.silent = silent.Silent(lambda _, accepted: self.begun.append(self._numbers[accepted]))
        self.clients, self._accepted = [], []
        self._numbers: dict[socket.socket, int] = {}
        for number in range(count):
            client, accepted = (stack.enter_context(one) for one in socket.socketpair())
            self.clients.append(client)
            self._accepted.append(accepted)
            self._numbers[accepted] = number
            self.silent.add(Place(partial(self._drop, number)), accepted)

    def _drop(self, number: int) -> None:
        self.silent.discard(self._accepted[number])
        self.dropped.append(number)


def test_of_those_that_begin_together_the_newest_is_first() -> None:
    async def run() -> Waiting:
        with ExitStack() as stack:
            waiting = Waiting(stack, MANY)
            for client in waiting.clients[:-1]:
                client.send(b"G")
            await turns(20)
            waiting.silent.close()
            return waiting

    waiting = asyncio.run(run())
    assert waiting.begun == list(reversed(range(MANY - 1)))
    assert waiting.dropped == [MANY - 1]


def test_one_that_hangs_up_has_begun_where_it_has_sent_something() -> None:
    async def run() -> Waiting:
        with ExitStack() as stack:
            waiting = Waiting(stack, 3)
            waiting.clients[0].send(b"G")
            for client in waiting.clients[:2]:
                client.close()
            await turns(5)
            seen = waiting.begun.copy(), waiting.dropped.copy()
            waiting.silent.close()
            assert seen == ([0], [1])
            return waiting

    assert asyncio.run(run()).dropped == [1, 2]


def test_accepting_says_what_is_wrong_as_python_does() -> None:
    with listen(LOOPBACK, 0, "--http-port") as listening:
        with pytest.raises(BlockingIOError):
            silent.accept(listening)
        with socket.create_connection(listening.getsockname()) as client, silent.accept(listening) as accepted:
            assert accepted.getpeername() == client.getsockname()
            assert not accepted.get_inheritable()
    with pytest.raises(OSError, match="Bad file descriptor"):
        silent.accept(listening)
