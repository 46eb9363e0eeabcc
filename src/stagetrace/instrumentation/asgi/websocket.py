"""A websocket: its messages are counted, and the time in which the application waits for them is marked."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.semconv import (
    NETWORK_MESSAGES_RECEIVED,
    NETWORK_MESSAGES_SENT,
    NETWORK_RECEIVE,
    NETWORK_SEND,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stagetrace.recording.record import RequestRecord


def current_task() -> Any:
    """Return the task that runs, asyncio's or trio's."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # its loop is not asyncio's: hypercorn has workers of trio's
        return sys.modules["trio"].lowlevel.current_task()


class Messages:
    """The passing of a websocket's messages between server and application, marked on the request's record."""

    def __init__(
        self,
        record: RequestRecord,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
        accept: Callable[[Any], None],
    ) -> None:
        """Begin in the task in which the application is called; `accept` looks at the response to the handshake."""
        self._record = record
        self._accept = accept
        self._receive = receive
        self._send = send
        self._received = self._sent = 0
        self._task = _task_or_none()

    async def receive(self) -> Any:
        """Receive from the server, marked as `network.receive` unless another task does nothing but listen."""
        waits = self._begin_waiting()
        try:
            message = await self._receive()
        finally:
            if waits:
                self._end(NETWORK_RECEIVE)
        if message["type"] == "websocket.receive":
            self._received += 1
        return message

    async def send(self, message: Any) -> None:
        """Send by the server, marked as `network.send`."""
        kind = message["type"]
        self._begin_sending(message)
        try:
            await self._send(message)
        finally:
            self._end(NETWORK_SEND)
        if kind == "websocket.send":
            self._sent += 1

    @guarded
    def _begin_waiting(self) -> bool:
        if current_task() is not self._task:
            return False
        self._record.enter(NETWORK_RECEIVE)
        return True

    @guarded
    def _begin_sending(self, message: Any) -> None:
        self._record.enter(NETWORK_SEND)
        if message["type"] == "websocket.accept":
            self._accept(message)

    @guarded_end
    def _end(self, activity: str) -> None:
        self._record.leave(activity)

    def counts(self) -> dict[str, int]:
        """Return the attributes that count the messages."""
        return {NETWORK_MESSAGES_RECEIVED: self._received, NETWORK_MESSAGES_SENT: self._sent}


@guarded
def _task_or_none() -> Any:
    return current_task()
