"""One HTTP port: accepts connections as far as there is room, receives bodies, and serves requests by uvicorn."""

from __future__ import annotations

import asyncio
import http
import logging
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stagetrace import log
from stagetrace.backend.counters import ThrottledLog
from stagetrace.backend.http_limits import DEADLINES, Awaited, Closed, Connections, Deadlines, Place
from stagetrace.backend.intake import STALLED, too_large
from stagetrace.backend.refusal import ABANDONED, BUSY, SLOW, Refused
from stagetrace.backend.silent import Silent, accept
from stagetrace.system.access import is_of_user

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp
    from uvicorn.server import ServerState

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.intake import Intake, RequestLimits
    from stagetrace.backend.options import Listening

# --- Receives the body of a request over HTTP, as fast as its client may be slow.

STEP: Final = 64 << 10  # bytes that count as progress


@dataclass(frozen=True)
class BodyDeadlines:
    """Seconds that a client may take for a body as a whole, and for each `STEP` of it."""

    whole: float = 60
    step: float = 30


BODY_DEADLINES: Final = BodyDeadlines()


async def receive_body(request: Request, intake: Intake, limits: RequestLimits, deadlines: BodyDeadlines) -> bytes:
    """Return the body as received. Raise Refused at the limit, before more of it is held, and at a deadline."""
    most = intake.limits.request
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large(most)
    end = anyio.current_time() + deadlines.whole
    scope = anyio.CancelScope(deadline=min(end, anyio.current_time() + deadlines.step))
    stop_receiving = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)
    with limits.receiving(stop_receiving), scope:
        chunks: list[bytes] = []
        fresh = 0
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise Refused(ABANDONED, "the client disconnected before the end of the body")
            chunk = message.get("body", b"")
            intake.counters.add("received_bytes", "http", len(chunk))
            limits.grow(len(chunk))
            if limits.held > most:
                raise too_large(most)
            chunks.append(chunk)
            fresh += len(chunk)
            if fresh >= STEP:
                fresh = 0
                limits.progress()
                scope.deadline = min(end, anyio.current_time() + deadlines.step)
            more = message.get("more_body", False)
        return b"".join(chunks)
    if limits.was_stopped:
        raise Refused(BUSY, STALLED)
    raise Refused(
        SLOW,
        f"the body was not received within {deadlines.whole} s, or {STEP} bytes of it not within {deadlines.step} s",
    )


# --- HTTP/1.1 on one connection: uvicorn's protocol on h11, which keeps its place among the connections of its port.

HEADERS: Final = 16 << 10  # bytes of a request's headers, its URL included
# Tiny chunks cost much more work than their bytes do: beyond so many chunks a body must have so many bytes in each,
# on average.
_CHUNKS: Final = 4096
_CHUNK: Final = 128


class Parser(h11.Connection):
    """h11's server side. Its limit on headers holds however they are received; chunks may not be many and tiny."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, HEADERS)
        self._chunks = 0
        self._bytes = 0

    def next_event(self) -> Any:
        """Return h11's next event. Raise RemoteProtocolError at a limit."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            size = len(event.target) + sum(len(name) + len(value) for name, value in event.headers)
            if size > HEADERS:
                raise h11.RemoteProtocolError("headers too large", error_status_hint=431)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > _CHUNKS and self._bytes < self._chunks * _CHUNK:
                raise h11.RemoteProtocolError("many tiny chunks")
        return event


# The key of a request's scope under which its application marks a response that has no end of its own.
ENDLESS: Final = "stagetrace.endless"


class Connection(H11Protocol):
    """One connection whose client has begun to send, and its place among those of its port."""

    def __init__(self, config: uvicorn.Config, state: ServerState, connections: Connections, place: Place) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self.conn = Parser()
        self.opening: asyncio.Task[None] | None = None
        self.place = place
        place.drop, place.unread = self._drop, self._unread
        self._connections = connections
        self._progress = 0  # bytes

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def _unread(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._connections.discard(self.place)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle what was received; then set what is awaited next."""
        super().data_received(data)
        self._progress += len(data)
        if not self.transport.is_closing() and not self.flow.write_paused:
            self._wait_or_work()

    def _wait_or_work(self) -> None:
        awaited = self.place.awaited
        if self._is_between_requests():
            if awaited is Awaited.REST and self.conn.their_state is h11.IDLE:
                self._connections.wait(self.place, Awaited.NEXT_REQUEST)
            elif awaited is Awaited.NEXT_REQUEST:
                self._connections.wait(self.place, Awaited.HEADERS)
        elif not self.cycle.more_body:
            self._connections.work(self.place)
        elif awaited is not Awaited.BODY or self._progress >= STEP:
            self._progress = 0
            self._connections.wait(self.place, Awaited.BODY)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def on_response_complete(self) -> None:
        """Await the next request, after the rest of this one where it was refused before its end."""
        if self.flow.write_paused:
            self._connections.wait(self.place, Awaited.READING)
        else:
            self._connections.wait(self.place, Awaited.REST if self.cycle.more_body else Awaited.NEXT_REQUEST)
        super().on_response_complete()  # which begins with the next request where that was received before
        if not self._is_between_requests() and not self.flow.write_paused:
            self._wait_or_work()

    def shutdown(self) -> None:
        """Complete the response at the server's end; cut one off that has no end."""
        super().shutdown()
        if not self._is_between_requests() and self.cycle.scope.get(ENDLESS):
            self.transport.abort()

    def pause_writing(self) -> None:
        """Await that the client reads what was written."""
        super().pause_writing()
        self._connections.wait(self.place, Awaited.READING)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        if self._is_between_requests():
            self._connections.wait(self.place, Awaited.NEXT_REQUEST)
        else:
            self._connections.work(self.place)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or beyond a limit, and close; uvicorn calls it while it handles h11's error."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._connections.closed(Closed.MALFORMED)
        self._connections.wait(self.place, Awaited.REST)
        if not self._is_between_requests():
            self.cycle.disconnected = True  # its application could send no response any more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_refusal(status, msg))  # not by h11, which may be in a state without a body
            self.transport.close()
        else:
            self.transport.abort()


def _refusal(status: int, message: str) -> bytes:
    if status == http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        message = f"The headers have more than {HEADERS} bytes."
    headers = f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(message)}\r\nconnection: close"
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n{headers}\r\n\r\n{message}".encode()


# --- One HTTP port: accepts connections up to its limit, and serves each by uvicorn.

_GRACE_S: Final = 3
_BATCH: Final = 1024  # connections that are accepted before others are served
_PAUSE_S: Final = 0.1  # without accepting, where descriptors are short
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_TICKS: Final = 5  # uvicorn's, of 0.1 s, between two looks at the deadlines


class HttpServer(uvicorn.Server):
    """A uvicorn that leaves the signals to us: two of them in one process would each take them from the other."""

    def __init__(
        self,
        app: ASGIApp,
        options: Listening,
        port: str,
        counters: Counters,
        *,
        most: int,
        deadlines: Deadlines = DEADLINES,
        grace_s: float = _GRACE_S,
    ) -> None:
        """Serve `app`; requests in work may take `grace_s` at the end."""
        super().__init__(_config(app, options, deadlines, grace_s))
        self.up = asyncio.Event()
        self._port = port
        self._counters = counters
        self._log = ThrottledLog()
        self.connections = Connections(most, deadlines, self._closed)
        self._handshake_s = deadlines.headers
        counters.gauges[f"{port}_connections"] = lambda: len(self.connections)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on the one socket, and set `up`."""
        bound = (sockets or [])[0]
        context = self.config.ssl if self.config.is_ssl else None
        listener = _Listener(self, bound, context, self._handshake_s)
        listener.accept_connections()
        self.servers: list[Any] = [listener]  # uvicorn closes them
        self.started = True
        self.up.set()

    async def on_tick(self, counter: int) -> bool:
        """Close connections whose clients are late, beside what uvicorn does regularly."""
        if counter % _TICKS == 0:
            self.connections.expire()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Change no handler."""
        yield

    def add(self, place: Place) -> None:
        """Take a new connection."""
        self._counters.add("connections", self._port)
        self.connections.add(place)

    def connection(self, place: Place) -> Connection:
        """Return the protocol of a connection whose client has begun to send."""
        return Connection(self.config, self.server_state, self.connections, place)

    def _closed(self, why: Closed) -> None:
        self._counters.add("closed_connections", why.value)
        self._log.warning(why.value, f"a connection to the port {self._port} was closed: {_WHY[why]}")


_WHY: Final = {
    Closed.CROWDED: "the port has as many as it may, and a new one took its place",
    Closed.REFUSED: "all connections that the port may have are in work",
    Closed.SLOW: "its client took too long to send a request or to read a response",
    Closed.UNREAD: "too much of all responses is unread",
    Closed.MALFORMED: "its client sent something else than HTTP, or headers or chunks beyond the limits",
    Closed.HANDSHAKE: "TLS could not be established",
    Closed.DESCRIPTORS: "the process has as many open files as `ulimit -n` allows",
}


class _Listener:
    """The listening socket, in the role of asyncio's server: this one knows a connection before TLS is established."""

    def __init__(
        self, server: HttpServer, bound: socket.socket, tls: ssl.SSLContext | None, handshake_s: float
    ) -> None:
        self._server = server
        self._socket = bound
        self._tls = tls
        self._handshake_s = handshake_s
        self._loop = asyncio.get_running_loop()
        self._silent = Silent(self._open)
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False

    def accept_connections(self) -> None:
        """Accept from now on."""
        if not self._closed:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and end what is not established."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._silent.close()
        for task in self._opening:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return at once: uvicorn itself waits for the connections."""

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                accepted = accept(self._socket)
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # descriptors are short: one that gives way is closed before the next attempt
                if not self._server.connections.give_way(Closed.DESCRIPTORS):
                    self._loop.remove_reader(self._socket.fileno())
                    self._loop.call_later(_PAUSE_S, self.accept_connections)
                return
            if accepted.family == socket.AF_UNIX and not is_of_user(accepted, 0, os.geteuid()):
                log.once("control", "a process of another user connected to the socket of commands, and was not served")
                accepted.close()
            elif self._server.connections.has_room():
                self._add(accepted)
            else:
                self._refuse(accepted)

    def _add(self, accepted: socket.socket) -> None:
        place = Place(lambda: self._hang_up(place, accepted))
        self._server.add(place)
        try:
            self._silent.add(place, accepted)
        except OSError:  # the kernel watches no more connections
            place.drop()

    def _hang_up(self, place: Place, accepted: socket.socket) -> None:
        self._silent.discard(accepted)
        self._server.connections.discard(place)
        accepted.close()

    def _open(self, place: Place, accepted: socket.socket) -> None:
        connection = self._server.connection(place)
        task = self._loop.create_task(self._establish(connection, accepted))

        def established(_task: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            if connection.transport is None:
                self._server.connections.discard(connection.place)
                accepted.close()

        connection.opening = task
        self._opening.add(task)
        task.add_done_callback(established)

    async def _establish(self, connection: Connection, accepted: socket.socket) -> None:
        tls: dict[str, Any] = {"ssl": self._tls, "ssl_handshake_timeout": self._handshake_s} if self._tls else {}
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted, **tls)
        except OSError:  # TLS' errors and timeouts are such, too
            if self._tls is not None:
                self._server.connections.closed(Closed.HANDSHAKE)

    def _refuse(self, accepted: socket.socket) -> None:
        self._server.connections.closed(Closed.REFUSED)
        with accepted, suppress(OSError):
            if self._tls is None:
                accepted.setblocking(False)  # noqa: FBT003 -- takes no name
                accepted.send(_REFUSAL)


def _config(app: ASGIApp, options: Listening, deadlines: Deadlines, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=deadlines.keep_alive,  # type: ignore[arg-type] # works with fractions
        timeout_graceful_shutdown=grace_s,  # type: ignore[arg-type] # likewise
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )


def limit_logs_of_libraries() -> None:
    """Let each library log an error in ten seconds, and no warning: clients can cause as many as they like."""
    throttled = ThrottledLog()

    def is_due(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR and not _is_end(record) and throttled.due(record.name) is not None

    for name in ("uvicorn.error", "asyncio", "grpc._server", "grpc._common"):
        logging.getLogger(name).addFilter(is_due)


def _is_end(record: logging.LogRecord) -> bool:
    """Return whether uvicorn logs that it cancels requests at its end: nothing is wrong, a stream may never end."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is asyncio.CancelledError or str(record.msg).startswith("Cancel %s running task(s)")
