"""The passing of body and response between an ASGI server and an application, marked on the record of the request."""

from __future__ import annotations

import types
from time import time_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol

from stagetrace.guard import report
from stagetrace.request.context import NO_CONTEXT, attach, get_current
from stagetrace.request.current import current
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from stagetrace.request.record import RequestRecord

WHERE = "stagetrace.protocols.asgi_request"
HEAD = "http.response.start"
BODY = "http.response.body"
DISCONNECT = "http.disconnect"
TRAILERS = "http.response.trailers"
WHOLE_ANSWERS = (BODY, "http.response.zerocopysend")
WHOLE_FILE = "http.response.pathsend"


class Observer(Protocol):
    """The adapter of the request, which looks at what passes."""

    @property
    def record(self) -> RequestRecord:
        """The record of the request."""

    def begin_response(self, message: Any) -> Any:
        """Look at the status line and headers, before they are sent; return what to send instead, None: nothing."""

    def add_chunk(self, now: int, message: Any) -> None:
        """Look at a chunk that is not the last, handed over at `now`, in nanoseconds since the epoch."""

    def end_response(self, now: int, message: Any) -> None:
        """Look at the last chunk, handed over at `now`."""

    def add_received(self, message: Any) -> None:
        """Look at what was received: a part of the request's body, or that the client has gone."""

    def note_disconnect(self) -> None:
        """Note that the server found nobody to send to."""


class Receive:
    """Receives from the server, marked as `network.receive` until the body is complete.

    After that, it only listens for the client going away and is no stage.
    """

    __slots__ = ("_complete", "_receive", "_record", "_request")

    def __init__(self, request: Observer, receive: Callable[[], Awaitable[Any]]) -> None:
        self._request = request
        self._record = request.record
        self._receive = receive
        self._complete = False

    async def __call__(self) -> Any:
        """Receive one message."""
        if self._complete:
            message = await self._receive()
            self._look_at(message)
            return message
        record = self._record
        try:
            record.enter(NETWORK_RECEIVE)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
            report(WHERE, error)
        message = None
        try:
            work, message = begin_work(self._receive())
            if work is not None:
                message = await watched(work, message, record, NETWORK_RECEIVE)
        except BaseException:
            message = None  # the exception of a future would refer to itself by this frame
            leave(record, NETWORK_RECEIVE)
            raise
        try:
            record.leave(NETWORK_RECEIVE)
            self._complete = not message.get("more_body", False)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        self._look_at(message)
        return message

    def _look_at(self, message: Any) -> None:
        try:
            if message.get("body") or message.get("type") == DISCONNECT:
                self._request.add_received(message)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)


class Send:
    """Sends by the server, marked as `network.send`, in which it lets a slow client hold us back.

    All but the status line and headers is sent outside the request's context: timers that a server starts then, such as
    uvicorn's for a connection kept alive, would keep the request alive after its end (docs/decisions/009).
    """

    __slots__ = ("_has_trailers", "_record", "_request", "_send")

    def __init__(self, request: Observer, send: Callable[[Any], Awaitable[None]]) -> None:
        self._request = request
        self._record = request.record
        self._send = send
        self._has_trailers = False

    async def __call__(self, message: Any) -> None:
        """Send one message."""
        record, is_head = self._record, False
        try:
            is_head = message["type"] == HEAD
            if is_head:
                self._has_trailers = bool(message.get("trailers"))
                message = self._request.begin_response(message) or message
            record.enter(NETWORK_SEND)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        if not is_head:
            before, context = current.get(), get_current()
            current.set(None)
            attach(NO_CONTEXT)
        awaited = None
        try:
            work, awaited = begin_work(self._send(message))
            if work is not None:
                await watched(work, awaited, record, NETWORK_SEND)
        except BaseException as error:
            awaited = None  # the exception of a future would refer to itself by this frame
            leave(record, NETWORK_SEND)
            if isinstance(error, OSError):  # as a server is to say it
                self._request.note_disconnect()  # which is guarded
            raise
        finally:
            if not is_head:
                current.set(before)
                attach(context)
        try:
            now = time_ns()
            record.leave(NETWORK_SEND, now)
            if not is_head:
                self._sent(now, message)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)

    def _sent(self, now: int, message: Any) -> None:
        kind = message["type"]
        if self._has_trailers:
            whole = kind == TRAILERS and not message.get("more_trailers", False)
        else:
            whole = (kind in WHOLE_ANSWERS and not message.get("more_body", False)) or kind == WHOLE_FILE
        if whole:
            self._request.end_response(now, message)
        elif kind == BODY:
            self._request.add_chunk(now, message)


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
def watched(work: Any, awaited: Any, record: RequestRecord, activity: str) -> Generator[Any, Any, Any]:
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
        record.waited_for_peer(activity, since)


def leave(record: RequestRecord, activity: str) -> None:
    """Note that an activity ends."""
    try:
        record.leave(activity)
    except Exception as error:  # noqa: BLE001
        report(WHERE, error)
