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

    _received = 0
    _sent_messages = 0
    record: RequestRecord
    task: Any = None  # in which the application was called

    @guarded
    def note_task(self) -> None:
        """Note in which task the application is called."""
        self.task = current_task()

    async def receive_message(self, receive: Callable[[], Awaitable[Any]]) -> Any:
        """Receive from the server, marked as `network.receive` unless another task does nothing but listen."""
        waits = self._begin_waiting()
        try:
            message = await receive()
        finally:
            if waits:
                self._end(NETWORK_RECEIVE)
        if message["type"] == "websocket.receive":
            self._received += 1
        return message

    async def send_message(self, send: Callable[[Any], Awaitable[None]], message: Any) -> None:
        """Send by the server, marked as `network.send`."""
        kind = message["type"]
        if kind == "websocket.accept":
            self._accept(message)
        self._begin(NETWORK_SEND)
        try:
            await send(message)
        finally:
            self._end(NETWORK_SEND)
        if kind == "websocket.send":
            self._sent_messages += 1

    @guarded
    def _begin_waiting(self) -> bool:
        if current_task() is not self.task:
            return False
        self.record.enter(NETWORK_RECEIVE)
        return True

    @guarded
    def _begin(self, activity: str) -> None:
        self.record.enter(activity)

    @guarded_end
    def _end(self, activity: str) -> None:
        self.record.leave(activity)

    @guarded
    def _accept(self, message: Any) -> None:
        self._accepting(message)

    def _accepting(self, message: Any) -> None:
        """Look at the response to the handshake."""
        raise NotImplementedError

    def counted_messages(self) -> dict[str, int]:
        """Return the attributes that count the messages."""
        return {NETWORK_MESSAGES_RECEIVED: self._received, NETWORK_MESSAGES_SENT: self._sent_messages}
