"""The adapter of ASGI: what an application receives and sends becomes marks and attributes of the request.

The entry span ends when the last byte of the response is handed over: what runs in the background afterwards is no
latency.
"""

from __future__ import annotations

import sys
from time import time_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report
from stagetrace.policy.objective import WEBSOCKET
from stagetrace.protocols import http, http_headers
from stagetrace.protocols.asgi_channels import (
    BODY,
    DISCONNECT,
    HEAD,
    TRAILERS,
    WHERE,
    WHOLE_ANSWERS,
    WHOLE_FILE,
    Messages,
    begin_work,
    leave,
    watched,
)
from stagetrace.protocols.connection import add_asgi, unacked, waited_ns
from stagetrace.protocols.http_headers import time_in_queue_ms
from stagetrace.protocols.http_request import HttpRequest, announced, disconnect_flag, is_written
from stagetrace.protocols.scope import CANCELLED, CLIENT, PROPAGATORS, below
from stagetrace.protocols.starlette_routes import template_of
from stagetrace.request import limits
from stagetrace.request.chunk_times import Stream
from stagetrace.request.context import here, open_entry
from stagetrace.request.current import SCOPE_KEY, current
from stagetrace.semconv import HTTP_REQUEST_BODY_SIZE, HTTP_RESPONSE_BODY_SIZE, NETWORK_RECEIVE, NETWORK_SEND
from stagetrace.sources.thread_cpu import AT, DIVIDED_NS
from stagetrace.tracing.propagation import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stagetrace.request.own_span import Recorder


TIMING = http_headers.HEADER.encode()


class AsgiRequest(HttpRequest):
    """One request and its response, from the server's first sight of it to the last byte handed over."""

    # The class's until something happens: each request makes one.
    protocol = "asgi"
    received_bytes = 0
    _size = 0  # of a response in one chunk
    _announced: int | None = None  # bytes of a response in several chunks
    _is_delivered = False  # the kernel has all of them
    _has_left = False  # the client, which has all of the response
    _raised = False
    _has_body = False  # the request's body was received
    _has_trailers = False
    handler: Any = None  # the route or mount that had it last
    _has_looked = False  # for the route, where none has served it
    _caller: bytes | None = None  # the value of the header by which our clients show themselves
    _came: Any = None  # the scope as it came, where headers or the query are asked for
    messages: Messages | None = None  # of a websocket

    def __init__(self, scope: Any, connection: Any, started: int, recorder: Recorder | None) -> None:
        """Begin; `connection` is the server's object that has the transport."""
        super().__init__(start=started)
        self._scope = scope
        self._connection = connection
        self._headers = headers = scope["headers"]
        agent, parent_context, starts, caller = http.read_headers(headers)
        if caller is not None:
            self._caller = caller
        if agent is not None and (len(agent) > http.MAX_CACHED_KEY or len(agent) > limits.longest()):
            agent, self._long_agent = None, agent
        if SCOPE_KEY in scope:
            parent_context = below(scope[SCOPE_KEY], parent_context)
        if starts is not None:
            self._in_front_ms = time_in_queue_ms(starts, time_ns())
        # As they came: middleware may rewrite the scope that it hands on.
        self.method = scope.get("method", "")
        self.path = scope.get("path")
        self.block, self.client, name = http.known(scope, agent)
        if http.asked_for() is not None:
            self._came = {**scope}
        scope[SCOPE_KEY] = self
        self.peer_waits = ()  # each send and receive notes its own
        self.may_give_way = True
        open_entry(self, name, parent_context, recorder, late=True)
        self._before: Any = here.get_current()
        current.set(self)
        if here.has_otel:
            here.attach(here.around(self, parent_context))
        if recorder is not None and recorder.processor.has_others:
            recorder.begin(self)

    async def receive(self, receive: Callable[[], Awaitable[Any]]) -> Any:
        """Receive one message by the server's own `receive`, marked as `network.receive` until the body is complete.

        After that, the application only listens for the client going away, which is no stage. It gets a partial call
        of this: code that receives after the end does so, too, and the request holds nothing of the server's.
        """
        if self._has_body:
            message = await receive()
            self._look_at(message)
            return message
        try:
            self.enter(NETWORK_RECEIVE)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
            report(WHERE, error)
        message = None
        try:
            work: Any = receive()
            if type(work) is CoroutineType:
                try:  # as a rule it waits for nothing
                    message = work.send(None)
                except StopIteration as stop:
                    work, message = None, stop.value
            else:
                work, message = begin_work(work)
            if work is not None:
                message = await watched(work, message, self, NETWORK_RECEIVE)
        except BaseException:
            message = work = None  # the exception of a future would refer to itself by this frame
            leave(self, NETWORK_RECEIVE)
            raise
        try:
            self.leave(NETWORK_RECEIVE)
            if not message.get("more_body", False):
                self._has_body = True
            if message.get("body") or message.get("type") == DISCONNECT:
                self.add_received(message)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        return message

    @guarded_end
    def _look_at(self, message: Any) -> None:
        if message.get("body") or message.get("type") == DISCONNECT:
            self.add_received(message)

    async def send(  # noqa: C901, PLR0912 -- a call costs a request a microsecond
        self, send: Callable[[Any], Awaitable[None]], message: Any
    ) -> None:
        """Send one message by the server's own `send`, marked as `network.send`: a slow client may hold us back in it.

        All but the status line and headers is sent outside the request's context: timers that a server starts then,
        such as uvicorn's for a connection kept alive, would keep the request alive after its end (decision 009).
        """
        is_head = False
        try:
            is_head = message["type"] == HEAD
            if is_head:
                message = self.begin_response(message) or message
            self.enter(NETWORK_SEND)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        if not is_head:
            before, context = current.get(), here.get_current()
            current.set(None)
            here.attach(NO_CONTEXT)
        awaited = None
        try:
            work: Any = send(message)
            if type(work) is CoroutineType:
                try:
                    awaited = work.send(None)
                except StopIteration:
                    work = None
            else:
                work, awaited = begin_work(work)
            if work is not None:
                await watched(work, awaited, self, NETWORK_SEND)
        except BaseException as error:
            awaited = work = None  # the exception of a future would refer to itself by this frame
            leave(self, NETWORK_SEND)
            if isinstance(error, OSError):  # as a server is to say it
                self.note_disconnect()  # which is guarded
            raise
        finally:
            if not is_head:
                current.set(before)
                here.attach(context)
        try:
            now = time_ns()
            self.leave(NETWORK_SEND, now)
            if is_head:
                return
            if message.get("more_body") and message["type"] == BODY:
                self.add_bytes(now, len(message.get("body", b"")))
            else:
                self._sent(now, message)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)

    def _sent(self, now: int, message: Any) -> None:
        kind = message["type"]
        if self._has_trailers:
            is_whole = kind == TRAILERS and not message.get("more_trailers", False)
        else:
            is_whole = (kind in WHOLE_ANSWERS and not message.get("more_body", False)) or kind == WHOLE_FILE
        if is_whole:
            self.end_bytes(now, len(message.get("body", b"")))
        elif kind == BODY:
            self.add_bytes(now, len(message.get("body", b"")))

    def hides(self) -> bool:
        """Return whether the entry span can be hidden from somebody who is about to start one for this request."""
        return self.is_unseen if self.backend is None else self.adopted is None

    @guarded
    def reference(self) -> str | None:
        """Return a text that names this request and the stage that it is in."""
        self.entry_span.get_span_context()
        return super().reference()

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if there is no such header."""
        wanted = name.encode("latin-1")
        return ", ".join(http.decoded(value) for key, value in self._headers if key == wanted) or None

    def method_and_route(self) -> tuple[str | None, str]:
        """Return method and route as the policy names them, as far as they are known by now."""
        return WEBSOCKET if self.messages is not None else self.method, self.route

    def _requested(self, asked_for: http.AskedFor) -> dict[str, Any]:
        return asked_for.attributes(self._came, self._response_headers)

    def enter_mount(self, template: str) -> None:
        """Note a mount that the request goes through, which may serve it without a route: files, a 404."""
        self.mount += template
        self.route = self.mount
        self._rename(self.mount)

    def _template(self) -> str:
        """Return the route; where middleware answered before it was reached, the one that would have served."""
        if not self.route and not self._has_looked:
            self._has_looked = True
            self.route = template_of(self._scope) or ""
            if self.route:
                self.rename(http.span_name(self.method, self.route))
        return self.route

    def accept(self, message: Any) -> None:
        """Note the response to the handshake of a websocket, before it is sent."""
        self._response_headers = message.get("headers")
        if PROPAGATORS in sys.modules and not self.gave_way and not self.is_announced:
            http.announce(message, self.entry_span)  # else the maker of the entry span announces it

    def begin_response(self, message: Any) -> Any:
        """Note the status line and headers of the response before it is sent; return them with the stages if wanted."""
        self.status_code = message["status"]
        self._response_headers = message.get("headers")
        if message.get("trailers"):
            self._has_trailers = True
        if PROPAGATORS in sys.modules:
            self.accept(message)
        if self._is_disconnected():
            self.disconnect = self.disconnect or CLIENT  # without even a head
        wanted = http_headers.wanted()
        if (self._caller is not None if wanted is None else wanted) or http_headers.has_received:
            return self._with_timing(message)
        return None

    @guarded
    def _with_timing(self, message: Any) -> Any:
        given = message.get("headers", ())
        if iter(given) is given:  # can be gone through once, by the server
            return None
        headers = http_headers.with_timing(given, self._caller, self, TIMING)
        # Not in the application's own message, which it may send again.
        return None if headers is None else {**message, "headers": headers}

    def add_received(self, message: Any) -> None:
        """Note what was received, if that is a part of the body or says that the client has gone."""
        if message["type"] == "http.disconnect":
            self.note_disconnect()
        else:
            self.received_bytes += len(message.get("body", b""))

    def add_bytes(self, now: int, size: int) -> None:
        """Note a chunk of a response in several, of this size, handed over at `now`, in nanoseconds since the epoch."""
        is_gone = self._is_disconnected()
        if is_gone:
            self.note_disconnect()
        if self.stream is None:
            self.stream = Stream()
            self._announced = announced(self.method, self.status_code, self._response_headers)
        if size:
            self.add_chunk_on_loop(self.stream, now, size)
            if self._announced is not None and self.stream.size >= self._announced and not is_gone:
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
        if self._ended_at is None and self.disconnect is None and self.messages is None:
            if self._has_all():
                self._has_left = True
            else:
                self.disconnect = CLIENT

    def _has_all(self) -> bool:
        """Return whether the client lacks nothing of what the status line and headers of the response has announced."""
        known = not self._is_delivered and self.status_code is not None
        return self._is_delivered or (known and announced(self.method, self.status_code, self._response_headers) == 0)

    @guarded_end
    def note_incomplete(self) -> None:
        """Note that the application was stopped in its work."""
        if self._ended_at is None and self.disconnect is None and not self._end_delivered():
            self.disconnect = CANCELLED

    def _end_delivered(self) -> bool:
        """End with the last byte that was announced, if the client has it; return whether it has."""
        if self._is_delivered and self.stream is not None:
            self._ended_at = self.stream.last
        return self._is_delivered

    def end_bytes(self, now: int, size: int) -> None:
        """Note when the last byte of the response was handed over, in a chunk of this size; end the entry span then."""
        if self._ended_at is not None:
            return
        if self.stream is None:
            self._size = size
        elif size:
            self.add_chunk_on_loop(self.stream, now, size)
        if getattr(self._connection, "disconnected", False) is True:  # uvicorn's, while it waited for the client
            self.note_disconnect()
        self._ended_at = now
        step = self.step
        if step is not None and now - step[AT] >= DIVIDED_NS:
            self.divide(step)  # it ends after the request
        if (self.status_code or 0) >= http.SERVER_ERROR:
            self.freeze()  # the exception that this response is about comes through next
        else:
            self._finish()

    def transfer_attributes(self, start: int) -> dict[str, Any]:
        """Return what the entry span, which begins at `start`, carries of how request and response passed."""
        attributes = self.response(start) if self.disconnect is not None or self.stream is not None else {}
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
        if self.disconnect is None:
            is_now = self._ended_at is not None and not self._failed() and self.adopted is None
            add_asgi(self._connection, attributes, is_now)
        return attributes

    @guarded_end
    def fail(self, error: Exception) -> None:
        """Note an exception that the application let through."""
        self._raised = True
        if self.gave_way:
            return
        self.record_error(error, self._ended_at, fails=not self._failed())  # else the response says it
        if self.status_code is None and self.disconnect is None and self.messages is None:
            self.status_code = http.SERVER_ERROR  # which is what the server sends

    @guarded_end
    def _note_unfinished(self) -> None:
        """Note why the application returned before its response was complete, if nothing has told yet."""
        if self._raised or self.disconnect is not None or self.messages is not None:
            return
        is_gone = self._has_left or self._is_disconnected()
        if is_gone and not self._end_delivered():
            self.note_disconnect()
        if not is_gone:
            here.set_error(self.entry_span, "the response was not completed")

    def finish(self) -> None:
        """End with the application's call, if the response has not ended it."""
        here.attach(self._before)
        current.set(None)
        if not self._finished:
            self._finish()
        # The server's `send` holds the scope, and that held this: no work for the collector.
        self._scope.pop(SCOPE_KEY, None)
        self._scope = self._before = self._connection = self._headers = self._response_headers = None
        self._came = self.messages = None
        self.release()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            if self.adopted is not None and self.gave_way:
                self._uncount()
                return
            if self._ended_at is None:
                self._note_unfinished()
            if self.messages is not None:
                self.method = WEBSOCKET
            self._end(self._ended_at or time_ns())

    def exclude(self) -> None:
        """Record nothing of this request, if nobody has seen its entry span."""
        if self._finished or not self.hides():
            return
        self._finished = True
        self.discard()
        here.attach(self._before)
        current.set(None)
        self._uncount()
