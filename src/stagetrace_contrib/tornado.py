"""tornado: each request of an HTTPServer, which an Application, a router or a WSGI container serves."""

from __future__ import annotations

import functools
import inspect
from contextvars import copy_context
from time import time_ns
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.async_servers.base import note_error, stepped
from stagetrace.instrumentation.base import after, before, patching, wrap_all
from stagetrace.instrumentation.servers import the_runtime
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND

if TYPE_CHECKING:
    from contextvars import Context
    from types import ModuleType

    from stagetrace.instrumentation.async_servers.request import ServerRequest

EXCHANGE = "_stagetrace_exchange"
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
            self.one.enter(NETWORK_RECEIVE, at=self._receives_since)

    @guarded
    def receive(self, size: int, began: int) -> None:
        """Note a part of the body, which the application has taken since `began`."""
        self._received += size
        now = time_ns()
        if self._receives_since is not None and now - began > LONG_NS:
            request = self.one
            request.is_unsorted = True
            request.leave(NETWORK_RECEIVE, began)
            request.enter(NETWORK_RECEIVE, at=now)

    @guarded_end
    def end_receiving(self) -> None:
        """Note that there is no more of the body."""
        since, self._receives_since = self._receives_since, None
        if since is not None:
            self.one.waited_for_peer(NETWORK_RECEIVE, since)
            self.one.leave(NETWORK_RECEIVE)

    @guarded
    def begin_sending(self) -> None:
        """Note that a chunk is being sent."""
        self.one.enter(NETWORK_SEND)

    @guarded_end
    def end_sending(self, size: int, since: int | None = None) -> None:
        """Note that a chunk was sent, for which the client was waited for since then."""
        now = time_ns()
        if since is not None:
            self.one.waited_for_peer(NETWORK_SEND, since)
        self.one.leave(NETWORK_SEND, now)
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


# --- the server


def patch_httpserver(module: ModuleType) -> None:
    """Wrap the making of what a request is handed to, and the start of a server."""
    server = module.HTTPServer
    more = {"__module__": __name__, "input_error": module.httputil.HTTPInputError}
    kind: Any = type("Delegate", (Delegate, module.httputil.HTTPMessageDelegate), more)

    def delegate_of(delegate: Any, _server: Any, _server_connection: Any, connection: Any) -> Any:
        if not hasattr(connection, "_finish_request"):  # of another protocol
            return None
        exchange = Exchange(connection)
        setattr(connection, EXCHANGE, exchange)
        if type(delegate) is not module._ProxyAdapter:
            return kind(delegate, exchange)
        delegate.delegate = kind(delegate.delegate, exchange)  # it takes the client's address from the headers first
        return delegate

    wraps = {"start_request": after(delegate_of), "add_sockets": before(_prepare)}
    wrap_all((server, name, wrap) for name, wrap in wraps.items())


def patch_connection(module: ModuleType) -> None:
    """Wrap what sends a response, and what lasts as long as a request."""
    wraps = {
        "write_headers": _writing_headers,
        "write": _writing,
        "finish": _finishing,
        "_finish_request": before(_end, guarded_end),
        "read_response": _reading,
        "close": before(_note_closed, guarded_end),
    }
    wrap_all((module.HTTP1Connection, name, wrap) for name, wrap in wraps.items())


def patch_web(module: ModuleType) -> None:
    """Wrap the running of a handler, and what looks at its exceptions."""

    def note(_handler: Any, error: BaseException) -> None:
        if not isinstance(error, (module.Finish, module.HTTPError)):
            note_error(error)

    patching({"RequestHandler._execute": _executing, "RequestHandler._handle_request_exception": before(note)})(module)


class Delegate:
    """What a server hands a request to, in the context of the request."""

    input_error: type[Exception]  # which the server responds to itself

    def __init__(self, delegate: Any, exchange: Exchange) -> None:
        self._delegate = delegate
        self._exchange = exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delegate, name)

    def headers_received(self, start_line: Any, headers: Any) -> Any:
        """Begin the request, and hand its headers on."""
        self._exchange.begin(start_line, headers)
        result = self._run(self._delegate.headers_received, start_line, headers)
        self._exchange.begin_receiving()
        return result

    def data_received(self, chunk: bytes) -> Any:
        """Hand on a part of its body."""
        began = time_ns()
        result = self._run(self._delegate.data_received, chunk)
        self._exchange.receive(len(chunk), began)
        return result

    def finish(self) -> None:
        """Hand on that the body is complete."""
        self._exchange.end_receiving()
        return self._run(self._delegate.finish)  # type: ignore[no-any-return]

    def on_connection_close(self) -> None:
        """Hand on that the connection was closed before that."""
        return self._run(self._delegate.on_connection_close)  # type: ignore[no-any-return]

    def _run(self, method: Any, *args: Any) -> Any:
        context = self._exchange.context
        if context is None:
            return method(*args)
        try:
            return context.run(method, *args)
        except Exception as error:
            self._exchange.fail(error, is_refused=isinstance(error, self.input_error))
            raise


def _exchange_of(connection: Any) -> Exchange | None:
    exchange = getattr(connection, EXCHANGE, None)
    return exchange if exchange is not None and exchange.context is not None else None


def _reading(original: Any) -> Any:
    @functools.wraps(original)
    def read_response(self: Any, delegate: Any) -> Any:
        work = original(self, delegate)
        return work if getattr(self, EXCHANGE, None) is None else _to_the_end(work, self)

    return read_response


async def _to_the_end(work: Any, connection: Any) -> Any:
    try:
        return await work
    finally:
        getattr(connection, EXCHANGE).finish()


def _note_closed(connection: Any) -> None:
    """Note that it is the server that closes the connection, such as after bad input."""
    exchange = _exchange_of(connection)
    if exchange is not None and connection.stream is not None and not connection.stream.closed():
        exchange.one.is_lost = bool  # which is False


# --- the response


def _writing_headers(original: Any) -> Any:
    @functools.wraps(original)
    def write_headers(self: Any, start_line: Any, headers: Any, chunk: Any = None) -> Any:
        exchange = _exchange_of(self)
        if exchange is None:
            return original(self, start_line, headers, chunk)
        headers = _begin_response(exchange, start_line, headers) or headers
        return _send(exchange, self, chunk, original, start_line, headers, chunk)

    return write_headers


def _writing(original: Any) -> Any:
    @functools.wraps(original)
    def write(self: Any, chunk: Any) -> Any:
        exchange = _exchange_of(self)
        if exchange is None:
            return original(self, chunk)
        return _send(exchange, self, chunk, original, chunk)

    return write


@guarded
def _begin_response(exchange: Exchange, start_line: Any, headers: Any) -> Any:
    """Note the status line and headers; return other headers to send, if some are added."""
    added = exchange.one.begin(start_line.code, headers.get_all())
    if not added:
        return None
    more = headers.copy()
    for name, value in added:
        more.add(name, value)
    return more


def _send(exchange: Exchange, connection: Any, chunk: Any, original: Any, *args: Any) -> Any:
    exchange.begin_sending()
    try:
        result = original(connection, *args)
    except BaseException:
        exchange.end_sending(0)
        raise
    _end_sending(exchange, connection, chunk)
    return result


@guarded_end
def _end_sending(exchange: Exchange, connection: Any, chunk: Any) -> None:
    """Note that a chunk was sent; where the client has to be waited for, once it was."""
    size, pending = len(chunk or b""), connection._pending_write
    if pending is None or not connection.stream.writing():
        exchange.end_sending(0 if connection.stream.closed() else size)
        return
    since = time_ns()
    pending.add_done_callback(lambda done: exchange.end_sending(size if _is_done(done) else 0, since))


def _is_done(future: Any) -> bool:
    return not future.cancelled() and future.exception() is None


def _finishing(original: Any) -> Any:
    @functools.wraps(original)
    def finish(self: Any) -> Any:
        exchange = _exchange_of(self)
        result = original(self)
        if exchange is not None:
            _end_if_written(exchange, self)
        return result

    return finish


@guarded_end
def _end_if_written(exchange: Exchange, connection: Any) -> None:
    stream = connection.stream
    if stream is None or stream.writing():
        exchange.begin_sending()  # until it is finished
    elif not stream.closed():
        exchange.end()


def _end(connection: Any, future: Any) -> None:
    """End when all is written, which it is not where the client has disconnected meanwhile."""
    exchange = _exchange_of(connection)
    if exchange is None:
        return
    if (future is None and not connection.stream.closed()) or (future is not None and _is_done(future)):
        exchange.end()
    else:
        exchange.one.note_disconnect()


# --- handlers and routes


def _executing(original: Any) -> Any:
    @functools.wraps(original)
    async def _execute(self: Any, transforms: Any, *args: Any, **kwargs: Any) -> None:
        exchange = _exchange_of(getattr(self.request, "connection", None))
        if exchange is not None:
            exchange.enter_handler(self)
        work = original(self, transforms, *args, **kwargs)
        await (stepped(work, None if exchange is None else exchange.one) or work)

    return _execute


def _note_match(found: Any, matcher: Any, request: Any) -> None:
    exchange = None if found is None else _exchange_of(getattr(request, "connection", None))
    if exchange is not None:
        exchange.matcher = matcher


patch_routing = patching({"PathMatches.match": after(_note_match)})


def _prepare(_server: Any, _sockets: Any) -> None:
    """Prepare before the server listens, in each process that a fork has made."""
    from stagetrace.runtime.sigterm_python import begin

    runtime = the_runtime()
    if runtime is not None:
        runtime.prepare_now()
        begin()
