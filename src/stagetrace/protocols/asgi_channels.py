"""The passing of messages between an ASGI server and an application, as far as it waits; and a websocket's messages."""

from __future__ import annotations

import asyncio
import sys
import types
from time import time_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report
from stagetrace.semconv import NETWORK_MESSAGES_RECEIVED, NETWORK_MESSAGES_SENT, NETWORK_RECEIVE, NETWORK_SEND

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from stagetrace.request.request import Request

WHERE = "stagetrace.protocols.asgi_request"
HEAD = "http.response.start"
BODY = "http.response.body"
DISCONNECT = "http.disconnect"
TRAILERS = "http.response.trailers"
WHOLE_ANSWERS = (BODY, "http.response.zerocopysend")
WHOLE_FILE = "http.response.pathsend"


def begin_work(work: Any) -> tuple[Any, Any]:
    """Begin to await the server's own send or receive, which as a rule waits for nothing.

    Return what goes on with it, and what it waits for; None and its result if it has ended.
    """
    try:
        if type(work) is CoroutineType:
            return work, work.send(None)
        inner = work.__await__()
        return inner, next(inner)
    except StopIteration as stop:
        return None, stop.value


@types.coroutine
def watched(work: Any, awaited: Any, request: Request, activity: str) -> Generator[Any, Any, Any]:
    """Await the rest of `work`, which waits for `awaited`, and note since when it waits."""
    send = getattr(work, "send", None) or (lambda _: next(work))
    step: Any = send
    value, since = None, time_ns()
    try:
        while True:
            try:
                value = yield awaited
                step = send
            except GeneratorExit:
                if hasattr(work, "close"):
                    work.close()
                raise
            except BaseException as error:
                if not hasattr(work, "throw"):
                    raise
                step, value = work.throw, error
            try:
                awaited = step(value)
            except StopIteration as stop:
                return stop.value
    finally:
        del step, value, awaited  # an exception that was thrown in would refer to itself by this frame
        request.waited_for_peer(activity, since)


def leave(request: Request, activity: str) -> None:
    """Note that an activity ends."""
    try:
        request.leave(activity)
    except Exception as error:  # noqa: BLE001
        report(WHERE, error)


# --- A websocket: its messages are counted, and the time in which the application waits for them is marked.


def current_task() -> Any:
    """Return the task that runs, asyncio's or trio's."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # its loop is not asyncio's: hypercorn has workers of trio's
        return sys.modules["trio"].lowlevel.current_task()


class Messages:
    """The passing of a websocket's messages between server and application, marked on the request."""

    def __init__(
        self, request: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Begin in the task in which the application is called, for this request by ASGI."""
        self._request = request
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
        self._request.enter(NETWORK_RECEIVE)
        return True

    @guarded
    def _begin_sending(self, message: Any) -> None:
        self._request.enter(NETWORK_SEND)
        if message["type"] == "websocket.accept":
            self._request.accept(message)

    @guarded_end
    def _end(self, activity: str) -> None:
        self._request.leave(activity)

    def counts(self) -> dict[str, int]:
        """Return the attributes that count the messages."""
        return {NETWORK_MESSAGES_RECEIVED: self._received, NETWORK_MESSAGES_SENT: self._sent}


@guarded
def _task_or_none() -> Any:
    return current_task()
