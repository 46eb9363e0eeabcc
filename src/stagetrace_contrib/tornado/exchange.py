"""One request on a connection of tornado: what passes before, between and after the calls of the application."""

from __future__ import annotations

import functools
import inspect
from contextvars import copy_context
from time import time_ns
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from stagetrace.guard import guarded, guarded_end
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND

if TYPE_CHECKING:
    from contextvars import Context

    from stagetrace.instrumentation.async_servers.request import ServerRequest

LONG_NS = 1_000_000
BAD_REQUEST = 400


class _Connection:
    """The stream of a connection, by the names of an asyncio transport."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.transport = self

    def get_extra_info(self, name: str) -> Any:
        connection = self._stream.socket
        if name == "socket" or connection is None:
            return connection
        return connection.getsockname() if name == "sockname" else connection.getpeername()

    def is_closing(self) -> bool:
        return self._stream.closed()  # type: ignore[no-any-return]

    def get_write_buffer_size(self) -> int:
        return len(self._stream._write_buffer)


class Exchange:
    """One request on a connection: what passes before, between and after the calls of the application."""

    context: Context | None = None  # in which the application runs, if the request is recorded
    one: ServerRequest
    matcher: Any = None  # of the route
    handler: Any = None  # that has it, and its method
    _has_body = False
    _receives_since: int | None = None
    _received = 0
    _first: tuple[int, int] | None = None  # the first chunk: when it had been handed over, and its size

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @guarded
    def begin(self, start_line: Any, headers: Any) -> None:
        """Begin with the headers."""
        context = copy_context()
        one = context.run(self._begin, start_line, headers)
        if one is not None:
            self.one, self.context = one, context
            self._has_body = headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers

    def _begin(self, start_line: Any, headers: Any) -> ServerRequest | None:
        from stagetrace.instrumentation.async_servers.request import addresses, begin

        stream, from_where = self._connection.stream, self._connection.context
        connection = _Connection(stream)
        path, _, query = start_line.path.partition("?")
        scope = {
            "type": "http",
            "method": start_line.method,
            "path": unquote(path),
            "query_string": query.encode("latin-1", "replace"),
            "scheme": from_where.protocol,
            "http_version": start_line.version.rpartition("/")[2],
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.get_all()],
            **addresses(connection),
        }
        address = from_where.remote_ip
        if scope["client"] is not None and scope["client"][0] != address:
            scope["client"] = (address, 0)  # as a proxy has it
        self._headers = headers
        known = {"carrier": headers, "body_size": self._body_size, "route_of": self._route_of}
        return begin(scope, connection, stream.closed, **known)

    def _body_size(self) -> int:
        if "X-Consumed-Content-Encoding" in self._headers:  # what was received was decompressed
            return int(self._headers.get("Content-Length", 0))
        return self._received

    @guarded
    def enter_handler(self, handler: Any) -> None:
        """Note the handler that has the request, whose parameters name the groups of the route."""
        self.handler = type(handler), handler.request.method
        if self.matcher is not None:
            self.one.set_route(template(self.matcher, self.handler))

    def _route_of(self) -> str | None:
        return None if self.matcher is None else template(self.matcher, self.handler)

    @guarded
    def begin_receiving(self) -> None:
        """Note that the body is waited for, if there is one."""
        if self._has_body:
            self._receives_since = time_ns()
            self.one.record.enter(NETWORK_RECEIVE, at=self._receives_since)

    @guarded
    def receive(self, size: int, began: int) -> None:
        """Note a part of the body, which the application has taken since `began`."""
        self._received += size
        now = time_ns()
        if self._receives_since is not None and now - began > LONG_NS:
            record = self.one.record
            record.is_unsorted = True
            record.leave(NETWORK_RECEIVE, began)
            record.enter(NETWORK_RECEIVE, at=now)

    @guarded_end
    def end_receiving(self) -> None:
        """Note that there is no more of the body."""
        since, self._receives_since = self._receives_since, None
        if since is not None:
            self.one.record.waited_for_peer(NETWORK_RECEIVE, since)
            self.one.record.leave(NETWORK_RECEIVE)

    @guarded
    def begin_sending(self) -> None:
        """Note that a chunk is being sent."""
        self.one.record.enter(NETWORK_SEND)

    @guarded_end
    def end_sending(self, size: int, since: int | None = None) -> None:
        """Note that a chunk was sent, for which the client was waited for since then."""
        now = time_ns()
        if since is not None:
            self.one.record.waited_for_peer(NETWORK_SEND, since)
        self.one.record.leave(NETWORK_SEND, now)
        self.add_chunk(now, size)

    def add_chunk(self, now: int, size: int) -> None:
        """Note a chunk that was handed over at `now`; the first one may be the only one."""
        if not size or self.one.is_ended:
            return
        if self._first is None:
            self._first = now, size
            return
        self._add_first()
        self.one.add_bytes(now, size)

    def _add_first(self) -> None:
        if self._first is not None and self._first[1]:
            self.one.add_bytes(*self._first)
            self._first = self._first[0], 0

    @guarded_end
    def end(self) -> None:
        """Note that the last byte was handed over."""
        if not self.one.is_ended:
            self.one.end_bytes(time_ns(), self._first[1] if self._first is not None else 0)

    @guarded_end
    def fail(self, error: Exception, *, is_refused: bool) -> None:
        """Note an exception, after which the server closes the connection; it refuses bad input with a status line."""
        if is_refused and not self.one.is_begun:
            self.one.begin(BAD_REQUEST, ())
            self.end()
        else:
            self.one.fail_silently(error)

    @guarded_end
    def finish(self) -> None:
        """End with the request."""
        self._connection = None
        if self.context is not None:
            context, self.context = self.context, None
            self.end_receiving()
            if not self.one.is_ended:
                self._add_first()
            context.run(self.one.finish)
            self.matcher = self.handler = None


@functools.lru_cache(1_024)
def template(matcher: Any, handler: tuple[type, str] | None) -> str:
    """Return the path of a pattern, with the names of its groups, or of the handler's parameters, in its place."""
    plain, groups = matcher._path, matcher._group_count
    pattern = matcher.regex.pattern
    if plain is None:
        return pattern.removeprefix("^").removesuffix("$")  # type: ignore[no-any-return]
    names = sorted(matcher.regex.groupindex, key=matcher.regex.groupindex.get) or _parameters(handler)
    if len(names) != groups:
        names = [str(number) for number in range(1, groups + 1)]
    return plain % tuple(f"{{{name}}}" for name in names)  # type: ignore[no-any-return]


def _parameters(handler: tuple[type, str] | None) -> list[str]:
    method = None if handler is None else getattr(handler[0], handler[1].lower(), None)
    return [] if method is None else list(inspect.signature(method).parameters)[1:]
