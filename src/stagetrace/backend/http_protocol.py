"""HTTP/1.1 on one connection: uvicorn's protocol on h11, which keeps its place among the connections of its port."""

from __future__ import annotations

import http
import sys
from typing import TYPE_CHECKING, Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from stagetrace.backend.http_body import STEP
from stagetrace.backend.http_connections import Awaited, Closed, Connections, Place

if TYPE_CHECKING:
    import asyncio

    import uvicorn
    from uvicorn.server import ServerState

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
    """One connection, and its place among those of its port."""

    def __init__(self, config: uvicorn.Config, state: ServerState, connections: Connections) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self.conn = Parser()
        self.opening: asyncio.Task[None] | None = None
        self.place = Place(self._drop, self._unread)
        self._connections = connections
        self._progress = 0  # bytes
        connections.add(self.place)

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
