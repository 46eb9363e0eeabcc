"""HTTP/1.1 for the load generator: keep-alive connections, responses parsed by httptools and discarded.

At 200 requests a second over httpx a request takes 1,000 us of CPU here, over aiohttp 300, over this 160: the
measured latency includes that. No redirect is followed, no proxy used, no cookie kept. Bytes of a request are made
once, ids aside.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

from stagetrace import __version__
from stagetrace.load.base import LoadError, Target

_IDLE_S: Final = (
    1.0  # a connection idle for longer is closed: servers do that too, some after 2 s, and requests get lost
)
_OPENS_WITHIN_S: Final = 5.0
_INFORMATIONAL: Final = range(100, 200)
_SPARE_FILES: Final = 100
CLOSED: Final = "connection closed before the response ended"


class Message(NamedTuple):
    """The bytes of a request before and after the value of its `traceparent`."""

    before: bytes
    after: bytes


class Address(NamedTuple):
    """The address to connect to, not a name, and the settings of TLS."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_name: str | None = None


def message(method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes | None) -> Message:
    """Return the request in bytes. Headers are sent as they are given; `content-length` is added."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return Message("\r\n".join([*lines, "traceparent: "]).encode("latin-1"), b"\r\n\r\n" + (body or b""))


def headers(
    target: Target, given: Sequence[tuple[str, str]], bodies: Sequence[bytes | None], agent: str
) -> list[tuple[str, str]]:
    """Return the headers of requests with such bodies: those that are given, and what these leave open."""
    names = {name.lower() for name, _ in given}
    defaults = [("host", target.authority), ("accept", "*/*"), ("user-agent", f"{agent}/{__version__}")]
    made = [(name, value) for name, value in defaults if name not in names] + list(given)
    sent = [body for body in bodies if body is not None]
    if sent and "content-type" not in names:
        made.append(("content-type", "application/json" if all(map(_is_json, sent)) else "application/octet-stream"))
    return made


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def tls(ca: str | None = None, *, insecure: bool = False) -> ssl.SSLContext:
    """Return the settings of TLS; `ca`: a file of certificates to trust in place of the system's."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise LoadError(f"cannot use the certificates of {ca}: {error.strerror or error}") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connections(most: int) -> int:
    """Return how many connections there may be: no more than this process may have files open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft - _SPARE_FILES))


class HttpSender:
    """Sends messages in turn, each on a connection that is free, or on a new one."""

    def __init__(
        self,
        address: Address,
        messages: Sequence[Message],
        *,
        connections: int,
        expected: Collection[int] = range(200, 300),
    ) -> None:
        """Send `messages` in turn over at most so many connections; other statuses than those expected are failures."""
        self.address = address
        self.messages = messages
        self.expected = expected
        self._most = connections
        self._count = 0
        self._idle: list[_Connection] = []
        self._waiting: deque[_Exchange] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect once."""
        self._loop = asyncio.get_running_loop()
        try:
            connection = await asyncio.wait_for(self._connect(), _OPENS_WITHIN_S)
        except (OSError, asyncio.TimeoutError) as error:
            why = getattr(error, "strerror", None) or str(error) or "no response"
            raise LoadError(f"cannot connect to {self.address.host} port {self.address.port}: {why}") from None
        self.is_free(connection)

    async def close(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)

    def send(self, number: int, traceparent: str, done: Callable[[str | None], None]) -> _Exchange:
        """Send the next message, or wait for a connection where there may be no more of them."""
        before, after = self.messages[number % len(self.messages)]
        exchange = _Exchange(self, b"".join((before, traceparent.encode(), after)), done)
        now = self.now()
        while self._idle:
            connection = self._idle.pop()  # the one used last
            if not connection.is_closed and now - connection.free_since_s < _IDLE_S:
                connection.send(exchange)
                return exchange
            connection.close()
        if self._count < self._most:
            self._open_for(exchange)
        else:
            self._waiting.append(exchange)
        return exchange

    def _open_for(self, exchange: _Exchange) -> None:
        exchange.sent_s = self.now()
        self._count += 1
        task = self._loop.create_task(self._connect_and_send(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_and_send(self, exchange: _Exchange) -> None:
        try:
            connection = await self._connect(counted=True)
        except OSError as error:
            self._count -= 1
            exchange.end(f"cannot connect: {error.strerror or type(error).__name__}")
            return
        if exchange.is_over:
            self.is_free(connection)
        else:
            connection.send(exchange)

    async def _connect(self, *, counted: bool = False) -> _Connection:
        host, port, tls, name = self.address
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self), host, port, ssl=tls, server_hostname=name if tls else None
        )
        self._count += not counted
        return connection

    def now(self) -> float:
        """Return the event loop's time."""
        return self._loop.time()

    def is_free(self, connection: _Connection) -> None:
        """Take a connection back, for one that waits or for later."""
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.is_over:
                connection.send(exchange)
                return
        connection.free_since_s = self.now()
        self._idle.append(connection)

    def is_gone(self, connection: _Connection) -> None:
        """Forget a connection, and open another if one is waited for."""
        self._count -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        while self._waiting and self._count < self._most:
            exchange = self._waiting.popleft()
            if not exchange.is_over:
                self._open_for(exchange)


class _Exchange:
    """A request, with its connection while it has one."""

    __slots__ = ("_done", "_sender", "connection", "content", "is_over", "sent_s")

    def __init__(self, sender: HttpSender, content: bytes, done: Callable[[str | None], None]) -> None:
        self._sender = sender
        self._done = done
        self.content = content
        self.sent_s: float | None = None
        self.connection: _Connection | None = None
        self.is_over = False

    def end(self, failure: str | None) -> None:
        if not self.is_over:
            self.is_over = True
            self._done(failure)

    def cancel(self) -> None:
        """Give it up; its connection with it, for the response may come yet."""
        self.is_over = True
        if self.connection is not None:
            self.connection.close()


class _Connection(asyncio.Protocol):
    """One connection with at most one request on its way. Its `on_` methods are httptools' callbacks."""

    def __init__(self, sender: HttpSender) -> None:
        self._sender = sender
        self._exchange: _Exchange | None = None
        self._transport: Any = None
        self._parser: Any = None
        self._has_length = False
        self._is_read = False
        self.is_closed = False
        self.free_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, exchange: _Exchange) -> None:
        """Write a request."""
        import httptools

        self._exchange = exchange
        exchange.connection = self
        self._parser = httptools.HttpResponseParser(self)
        self._has_length = self._is_read = False
        if exchange.sent_s is None:
            exchange.sent_s = self._sender.now()
        self._transport.write(exchange.content)

    def close(self) -> None:
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        import httptools

        if self._exchange is None:
            self.close()  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("no HTTP response")
            self.close()

    def on_header(self, name: bytes, _value: bytes) -> None:
        self._has_length = self._has_length or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._is_read = self._parser.get_status_code() not in _INFORMATIONAL

    def on_message_complete(self) -> None:
        if self._is_read:
            self._complete(keep=self._parser.should_keep_alive())

    def _complete(self, *, keep: bool) -> None:
        status = self._parser.get_status_code()
        self._end(None if status in self._sender.expected else f"status {status}")
        if keep and not self.is_closed:
            self._sender.is_free(self)
        else:
            self.close()

    def _end(self, failure: str | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.connection = None
            exchange.end(failure)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        self._sender.is_gone(self)
        if self._exchange is not None and not self._exchange.is_over:
            if error is None and self._is_read and not self._has_length:
                self._complete(keep=False)  # a body that the end of the connection ends
            else:
                self._end(CLOSED)
