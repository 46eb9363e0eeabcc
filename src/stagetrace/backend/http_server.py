"""One HTTP port: accepts connections up to its limit, and serves each by uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from stagetrace.backend.http_connections import DEADLINES, Closed, Connections, Deadlines
from stagetrace.backend.http_protocol import Connection
from stagetrace.backend.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.options import Listening

_GRACE_S: Final = 3
_BATCH: Final = 64  # connections that are accepted before others are served
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

    def connection(self) -> Connection:
        """Return the protocol of a new connection."""
        self._counters.add("connections", self._port)
        return Connection(self.config, self.server_state, self.connections)

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
        for task in self._opening:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return at once: uvicorn itself waits for the connections."""

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # descriptors are short: one that gives way is closed before the next attempt
                if not self._server.connections.give_way(Closed.DESCRIPTORS):
                    self._loop.remove_reader(self._socket.fileno())
                    self._loop.call_later(_PAUSE_S, self.accept_connections)
                return
            if self._server.connections.has_room():
                self._open(self._server.connection(), accepted)
            else:
                self._refuse(accepted)

    def _open(self, connection: Connection, accepted: socket.socket) -> None:
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
