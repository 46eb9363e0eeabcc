"""The adapter of ASGI: what an application receives and sends becomes marks and attributes of the request's record.

The entry span ends when the last byte of the response is handed over: what runs in the background afterwards is no
latency.
"""

from __future__ import annotations

import asyncio
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Status, StatusCode

from stagetrace.guard import guarded, guarded_end
from stagetrace.policy.objective import WEBSOCKET
from stagetrace.protocols import http, http_headers
from stagetrace.protocols.connection import add_asgi, unacked, waited_ns
from stagetrace.protocols.http_headers import time_in_queue_ms
from stagetrace.protocols.http_request import HttpRequest, announced, disconnect_flag, is_written
from stagetrace.protocols.scope import CANCELLED, CLIENT, PROPAGATORS, below
from stagetrace.protocols.starlette_routes import template_of
from stagetrace.request import limits
from stagetrace.request.chunk_times import Stream
from stagetrace.request.context import SdkSpan, attach, get_current, with_span
from stagetrace.request.current import SCOPE_KEY, current
from stagetrace.request.own_span import OwnSpan
from stagetrace.request.record import RequestRecord
from stagetrace.semconv import (
    HTTP_REQUEST_BODY_SIZE,
    HTTP_RESPONSE_BODY_SIZE,
    NETWORK_MESSAGES_RECEIVED,
    NETWORK_MESSAGES_SENT,
    NETWORK_RECEIVE,
    NETWORK_SEND,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from opentelemetry.context import Context

    from stagetrace.sla.entry_recorder import EntryRecorder

TIMING = http_headers.HEADER.encode()


class AsgiRequest(HttpRequest):
    """One request and its response, from the server's first sight of it to the last byte handed over."""

    # The class's until something happens: each request makes an adapter.
    received_bytes = 0
    _size = 0  # of a response in one chunk
    _announced: int | None = None  # bytes of a response in several chunks
    _is_delivered = False  # the kernel has all of them
    _has_left = False  # the client, which has all of the response
    _raised = False
    handler: Any = None  # the route or mount that had it last
    _has_looked = False  # for the route, where none has served it
    _caller: bytes | None = None  # the value of the header by which our clients show themselves
    _came: Any = None  # the scope as it came, where headers or the query are asked for
    messages: Messages | None = None  # of a websocket

    def __init__(self, scope: Any, send: Any, started: int, recorder: EntryRecorder | None) -> None:
        parent_context = self._come_in(scope, send)
        self.record = record = RequestRecord(start=started)
        record.exchange = self
        record.peer_waits = ()  # each send and receive notes its own
        if recorder is None:
            self.span = SdkSpan(record, self, self._span_name, parent_context, late=True)
            seen = self.span.seen
        else:
            self.span = seen = own = OwnSpan(record, self, self._span_name, recorder, parent_context)
            own.may_give_way = True
        self._before: Any = get_current()
        current.set(record)
        attach(with_span(seen, parent_context))
        if recorder is not None and recorder.has_others:
            recorder.begin(self.span, parent_context)  # type: ignore[arg-type]  # it is ours

    def hides(self) -> bool:
        """Return whether the entry span can be hidden from somebody who is about to start one for this request."""
        return self.span.hides()

    @guarded
    def reference(self) -> str | None:
        """Return a text that names this request and the stage that it is in."""
        self.span.seen.get_span_context()
        return super().reference()

    def fits_buffer(self, activity: str) -> bool:  # noqa: ARG002 -- each send and receive notes whether it waits
        """Return False: what waits for the client is noted."""
        return False

    def _come_in(self, scope: Any, send: Any) -> Context:
        """Note what came in; return the context that the headers carry."""
        self._scope = scope
        self._connection = getattr(send, "__self__", None)
        self._headers = scope["headers"]
        agent, context, starts, self._caller = http.read_headers(self._headers)
        if SCOPE_KEY in scope:
            context = below(scope[SCOPE_KEY], context)
        if starts is not None:
            self._in_front_ms = time_in_queue_ms(starts, time_ns())
        # As they came: middleware may rewrite the scope that it hands on.
        self._method = scope.get("method", "")
        self._path = scope.get("path")
        self._block, self._client, self._span_name = http.known(scope, self._short_agent(agent))
        if http.asked_for() is not None:
            self._came = {**scope}
        scope[SCOPE_KEY] = self
        return context

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if there is no such header."""
        wanted = name.encode("latin-1")
        return ", ".join(http.decoded(value) for key, value in self._headers if key == wanted) or None

    def method_and_route(self) -> tuple[str | None, str]:
        """Return method and route as the policy names them, as far as they are known by now."""
        return WEBSOCKET if self.messages is not None else self._method, self._route or self.mount

    def _requested(self, asked_for: http.AskedFor) -> dict[str, Any]:
        return asked_for.attributes(self._came, self._response_headers)

    def enter_mount(self, template: str) -> None:
        """Note a mount that the request goes through, which may serve it without a route: files, a 404."""
        self.mount += template
        self._rename(self.mount)

    def _template(self) -> str:
        """Return the route; where middleware answered before it was reached, the one that would have served."""
        if not self._route and not self.mount and not self._has_looked:
            self._has_looked = True
            self._route = template_of(self._scope) or ""
            if self._route:
                self.span.rename(http.span_name(self._method, self._route))
        return self._route or self.mount

    def accept(self, message: Any) -> None:
        """Note the response to the handshake of a websocket, before it is sent."""
        self._response_headers = message.get("headers")
        if PROPAGATORS in sys.modules and not self.span.gave_way and not self.is_announced:
            http.announce(message, self.span.entry)  # else the maker of the entry span announces it

    def begin_response(self, message: Any) -> Any:
        """Note the status line and headers of the response before it is sent; return them with the stages if wanted."""
        self._status = message["status"]
        self.accept(message)
        if self._is_disconnected():
            self.record.disconnect = self.record.disconnect or CLIENT  # without even a head
        if http_headers.is_for(self._caller) or http_headers.has_received:
            return self._with_timing(message)
        return None

    @guarded
    def _with_timing(self, message: Any) -> Any:
        given = message.get("headers", ())
        if iter(given) is given:  # can be gone through once, by the server
            return None
        headers = http_headers.with_timing(given, self._caller, self.record, TIMING)
        # Not in the application's own message, which it may send again.
        return None if headers is None else {**message, "headers": headers}

    def add_received(self, message: Any) -> None:
        """Note what was received, if that is a part of the body or says that the client has gone."""
        if message["type"] == "http.disconnect":
            self.note_disconnect()
        else:
            self.received_bytes += len(message.get("body", b""))

    def add_chunk(self, now: int, message: Any) -> None:
        """Note a chunk of a response in several, handed over at `now`, in nanoseconds since the epoch."""
        self.add_bytes(now, len(message.get("body", b"")))

    def add_bytes(self, now: int, size: int) -> None:
        """Note a chunk of this size, as `add_chunk`."""
        is_gone = self._is_disconnected()
        if is_gone:
            self.note_disconnect()
        if self.record.stream is None:
            self.record.stream = Stream()
            self._announced = announced(self._method, self._status, self._response_headers)
        if size:
            self.record.add_chunk_on_loop(self.record.stream, now, size)
            if self._announced is not None and self.record.stream.size >= self._announced and not is_gone:
                self._is_delivered = self._is_delivered or is_written(self._connection, self._announced)

    def time_in_kernel_ns(self) -> int:
        """Return for how long the data that the request has received last lay in the kernel, 0 if that is unknown."""
        return waited_ns(self._connection)

    def has_unacked(self) -> bool:
        """Return whether the other side has bytes of a response left to acknowledge; so where that is unknown."""
        return unacked(self._connection) != 0

    def _is_disconnected(self) -> bool:
        """Return whether the server says that the client has gone: some swallow what is sent then."""
        flag = disconnect_flag(type(self._connection).__module__)
        return flag is not None and getattr(self._connection, flag, False) is True

    @guarded_end
    def note_disconnect(self) -> None:
        """Note that the client has gone, if that was before the end of the response."""
        if self._ended_at is None and self.record.disconnect is None and self.messages is None:
            if self._has_all():
                self._has_left = True
            else:
                self.record.disconnect = CLIENT

    def _has_all(self) -> bool:
        """Return whether the client lacks nothing of what the status line and headers of the response has announced."""
        known = not self._is_delivered and self._status is not None
        return self._is_delivered or (known and announced(self._method, self._status, self._response_headers) == 0)

    @guarded_end
    def note_incomplete(self) -> None:
        """Note that the application was stopped in its work."""
        if self._ended_at is None and self.record.disconnect is None and not self._end_delivered():
            self.record.disconnect = CANCELLED

    def _end_delivered(self) -> bool:
        """End with the last byte that was announced, if the client has it; return whether it has."""
        if self._is_delivered and self.record.stream is not None:
            self._ended_at = self.record.stream.last
        return self._is_delivered

    def end_response(self, now: int, message: Any) -> None:
        """Note when the last byte of the response was handed over, with this message; end the entry span then."""
        self.end_bytes(now, len(message.get("body", b"")))

    def end_bytes(self, now: int, size: int) -> None:
        """Note a last chunk of this size, as `end_response`."""
        if self._ended_at is None:
            record = self.record
            if record.stream is None:
                self._size = size
            elif size:
                record.add_chunk_on_loop(record.stream, now, size)
            if getattr(self._connection, "disconnected", False) is True:  # uvicorn's, while it waited for the client
                self.note_disconnect()
            self._ended_at = now
            if record.step is not None:
                record.divide(record.step)  # it ends after the request
            if self._failed():
                record.freeze()  # the exception that this response is about comes through next
            else:
                self._finish()

    def transfer_attributes(self, start: int) -> dict[str, Any]:
        """Return what the entry span, which begins at `start`, carries of how request and response passed."""
        record = self.record
        attributes = record.response(start) if record.disconnect is not None or record.stream is not None else {}
        if self.received_bytes:
            attributes[HTTP_REQUEST_BODY_SIZE] = self.received_bytes
        if self._size:
            attributes[HTTP_RESPONSE_BODY_SIZE] = self._size
        if self.messages is not None:
            attributes.update(self.messages.counts())
        return attributes

    def connection_attributes(self) -> dict[str, Any]:
        """Return what the kernel reports of the connection now, as the request ends."""
        attributes: dict[str, Any] = {}
        if self.record.disconnect is None:
            is_now = self._ended_at is not None and not self._failed() and self.record.adopted is None
            add_asgi(self._connection, attributes, is_now)
        return attributes

    @guarded_end
    def fail(self, error: Exception) -> None:
        """Note an exception that the application let through."""
        self._raised = True
        if self.span.gave_way:
            return
        span = self.span.entry
        limits.record(span, error, self._ended_at)
        if not self._failed():  # else the response says it
            span.set_status(limits.status_of(error))
        if self._status is None and self.record.disconnect is None and self.messages is None:
            self._status = http.SERVER_ERROR  # which is what the server sends

    @guarded_end
    def _note_unfinished(self) -> None:
        """Note why the application returned before its response was complete, if nothing has told yet."""
        if self._raised or self.record.disconnect is not None or self.messages is not None:
            return
        is_gone = self._has_left or self._is_disconnected()
        if is_gone and not self._end_delivered():
            self.note_disconnect()
        if not is_gone:
            self.span.entry.set_status(Status(StatusCode.ERROR, "the response was not completed"))

    def finish(self) -> None:
        """End with the application's call, if the response has not ended it."""
        attach(self._before)
        current.set(None)
        if not self._finished:
            self._finish()
        # The server's `send` holds the scope, and that held this: no work for the collector.
        self._scope.pop(SCOPE_KEY, None)
        self._scope = self._before = self._came = self.messages = None
        self.span.release()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            if self.record.adopted is not None and self.span.gave_way:
                self._uncount()
                return
            if self._ended_at is None:
                self._note_unfinished()
            ended_at = self._ended_at or time_ns()
            self._end(ended_at, WEBSOCKET if self.messages is not None else self._method)

    def exclude(self) -> None:
        """Record nothing of this request, if nobody has seen its entry span."""
        if self._finished or not self.hides():
            return
        self._finished = True
        self.span.discard()
        attach(self._before)
        current.set(None)
        self._uncount()


# --- A websocket: its messages are counted, and the time in which the application waits for them is marked.


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
