"""The passing of body and response between an ASGI server and an application, marked on a request's timeline."""

from __future__ import annotations

import types
from time import time_ns
from typing import TYPE_CHECKING, Any, Protocol

from stagetrace.guard import report
from stagetrace.recording.context import NO_CONTEXT, attach, get_current
from stagetrace.recording.current_record import current
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

WHERE = "stagetrace.instrumentation.asgi.request"
HEAD = "http.response.start"
BODY = "http.response.body"
DISCONNECT = "http.disconnect"
TRAILERS = "http.response.trailers"
WHOLE_ANSWERS = (BODY, "http.response.zerocopysend")
WHOLE_FILE = "http.response.pathsend"


class Observer(Protocol):
    """Who wants to know of a response."""

    def begin_response(self, message: Any) -> None:
        """Look at its head, before it is sent."""

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

    __slots__ = ("_complete", "_observer", "_receive", "_timeline")

    def __init__(self, timeline: Any, receive: Callable[[], Awaitable[Any]], observer: Observer | None = None) -> None:
        self._timeline = timeline
        self._receive = receive
        self._observer = observer
        self._complete = False

    async def __call__(self) -> Any:
        """Receive one message."""
        if self._complete:
            message = await self._receive()
            try:
                self._look_at(message)
            except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
                report(WHERE, error)
            return message
        try:
            self._timeline.enter(NETWORK_RECEIVE)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        try:
            message = await _watched(self._receive(), self._timeline, NETWORK_RECEIVE)
        except BaseException:
            _leave(self._timeline, NETWORK_RECEIVE)
            raise
        try:
            self._timeline.leave(NETWORK_RECEIVE)
            self._complete = not message.get("more_body", False)
            self._look_at(message)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        return message

    def _look_at(self, message: Any) -> None:
        if self._observer is not None and (message.get("body") or message["type"] == DISCONNECT):
            self._observer.add_received(message)


class Send:
    """Sends by the server, marked as `network.send`, in which it lets a slow client hold us back.

    All but the status line and headers is sent outside the request's context: timers that a server starts then, such as
    uvicorn's for a connection kept alive, would keep the request alive after its end (docs/decisions/009).
    """

    __slots__ = ("_has_trailers", "_observer", "_send", "_timeline")

    def __init__(self, timeline: Any, send: Callable[[Any], Awaitable[None]], observer: Observer | None = None) -> None:
        self._timeline = timeline
        self._send = send
        self._observer = observer
        self._has_trailers = False

    async def __call__(self, message: Any) -> None:
        """Send one message."""
        is_head = False
        try:
            is_head = message["type"] == HEAD
            if is_head and self._observer is not None:
                self._has_trailers = bool(message.get("trailers"))
                self._observer.begin_response(message)
            self._timeline.enter(NETWORK_SEND)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        if not is_head:
            timeline, context = current.get(), get_current()
            current.set(None)
            attach(NO_CONTEXT)
        try:
            await _watched(self._send(message), self._timeline, NETWORK_SEND)
        except BaseException as error:
            _leave(self._timeline, NETWORK_SEND)
            if self._observer is not None and isinstance(error, OSError):  # as a server is to say it
                self._observer.note_disconnect()  # which is guarded
            raise
        finally:
            if not is_head:
                current.set(timeline)
                attach(context)
        try:
            self._sent(message)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)

    def _sent(self, message: Any) -> None:
        now = time_ns()
        self._timeline.leave(NETWORK_SEND, now)
        kind = message["type"]
        if self._has_trailers:
            whole = kind == TRAILERS and not message.get("more_trailers", False)
        else:
            whole = (kind in WHOLE_ANSWERS and not message.get("more_body", False)) or kind == WHOLE_FILE
        if self._observer is None:
            return
        if whole:
            self._observer.end_response(now, message)
        elif kind == BODY:
            self._observer.add_chunk(now, message)


@types.coroutine
def _watched(work: Any, timeline: Any, activity: str) -> Generator[Any, Any, Any]:
    """Await the server's own send or receive, and note since when it waits, if it does."""
    inner: Any = work if isinstance(work, types.CoroutineType) else work.__await__()
    send = getattr(inner, "send", None) or (lambda _: next(inner))
    step, value, since = send, None, 0
    try:
        while True:
            try:
                awaited = step(value)
            except StopIteration as stop:
                return stop.value
            since = since or time_ns()
            try:
                value = yield awaited
                step = send
            except GeneratorExit:
                if hasattr(inner, "close"):
                    inner.close()
                raise
            except BaseException as error:
                if not hasattr(inner, "throw"):
                    raise
                step, value = inner.throw, error
    finally:
        del step, value  # an exception that was thrown in would refer to itself by this frame
        if since:
            timeline.waited_for_peer(activity, since)


def _leave(timeline: Any, activity: str) -> None:
    try:
        timeline.leave(activity)
    except Exception as error:  # noqa: BLE001
        report(WHERE, error)
