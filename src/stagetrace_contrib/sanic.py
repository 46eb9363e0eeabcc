"""sanic, by its own server: each request of HTTP/1.1. Where an ASGI server records it, only its route is added.

As it starts, sanic compiles some of its methods anew from their source (`__touchup__`), which would undo a patch: none
of those is wrapped.
"""

from __future__ import annotations

import functools
from time import time_ns
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.async_servers.base import note_error, note_route, request_of, stepped, the_runtime
from stagetrace.semconv import NETWORK_RECEIVE

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.instrumentation.async_servers.request import ServerRequest

BODILESS = (204, 304)
IDLE = "IDLE"  # the stage of a connection between two requests


def patch_protocol(module: ModuleType) -> None:
    """Wrap the making of a connection, which keeps the function that handles requests."""
    protocol = module.HttpProtocol
    protocol.__init__ = _connecting(protocol.__init__)


def patch_base_protocol(module: ModuleType) -> None:
    """Wrap the wait for more data."""
    module.SanicProtocol.receive_more = _receiving_more(module.SanicProtocol.receive_more)


def patch_http(module: ModuleType) -> None:
    """Wrap what begins and ends each request of a connection."""
    http = module.Http
    begin, serve = _beginning(http.init_for_request), _serving(http.http1)
    http.init_for_request, http.http1 = begin, serve


def patch_request(module: ModuleType) -> None:
    """Wrap the reception of a whole body."""
    module.Request.receive_body = _receiving_body(module.Request.receive_body)


def patch_response(module: ModuleType) -> None:
    """Wrap the sending of a response, or of a part of it."""
    module.BaseHTTPResponse.send = _sending(module.BaseHTTPResponse.send)


def patch_router(module: ModuleType) -> None:
    """Wrap the method that finds the route of a request."""
    module.Router.get = _finding(module.Router.get)


def patch_error_handler(module: ModuleType) -> None:
    """Wrap the lookup of what handles an exception."""
    module.ErrorHandler._lookup = _looking(module.ErrorHandler._lookup)


def patch_app(module: ModuleType) -> None:
    """Wrap the events of the server's start and end, in each of its worker processes."""
    module.Sanic._server_event = _preparing(module.Sanic._server_event)


# --- a request


def _connecting(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _wrap_handler(self)

    return __init__


@guarded
def _wrap_handler(protocol: Any) -> None:
    protocol.request_handler = _handling(protocol.request_handler)


def _handling(original: Any) -> Any:
    @functools.wraps(original)
    async def handle_request(request: Any) -> Any:
        one = _begin(request)
        work = original(request)
        return await (stepped(work, one) or work)

    return handle_request


@guarded
def _begin(request: Any) -> ServerRequest | None:
    """Begin a request, which ends with `_finish`, when its connection is about to wait for the next one."""
    from stagetrace.instrumentation.async_servers.request import addresses, begin

    http = request.stream
    protocol = http.protocol
    transport = protocol.transport
    path, _, query = http.url.partition("?")
    scope = {
        "type": "http",
        "method": request.method,
        "path": unquote(path),
        "query_string": query.encode("latin-1", "replace"),
        "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
        "http_version": request.version,
        "headers": [
            (name.lower().encode("latin-1"), value.encode(errors="surrogateescape"))
            for name, value in request.headers.items()
        ],
        **addresses(transport),
    }
    information = protocol.conn_info
    size = functools.partial(_body_size, http)
    return begin(scope, protocol, lambda: information.lost, server=http, body_size=size)


def _body_size(http: Any) -> int:
    return (http.request_bytes or 0) - (http.request_bytes_left or 0)


def _beginning(original: Any) -> Any:
    @functools.wraps(original)
    def init_for_request(self: Any) -> Any:
        _finish(self)
        return original(self)

    return init_for_request


def _serving(original: Any) -> Any:
    @functools.wraps(original)
    async def http1(self: Any) -> Any:
        try:
            return await original(self)
        finally:
            _finish(self)

    return http1


@guarded_end
def _finish(http: Any) -> None:
    one = request_of(http)
    if one is None:
        return
    response = http.response
    if not one.is_ended and http.stage.name == IDLE and response is not None:  # it was sent outside of its context
        if not one.is_begun:
            one.begin(response.status, response.headers.items())
        one.end_bytes(time_ns(), 0)
    one.finish()


# --- its body and its response


def _receiving_more(original: Any) -> Any:
    @functools.wraps(original)
    async def receive_more(self: Any) -> Any:
        one = request_of(getattr(self, "_http", None))
        if one is None or one.is_ended:
            return await original(self)
        return await _passing(one, original(self))

    return receive_more


def _receiving_body(original: Any) -> Any:
    @functools.wraps(original)
    async def receive_body(self: Any) -> Any:
        one = request_of(self.stream)
        return await (original(self) if one is None else _passing(one, original(self)))

    return receive_body


async def _passing(one: ServerRequest, work: Any) -> Any:
    from stagetrace.instrumentation.async_servers.request import receiving

    return await receiving(one, work, NETWORK_RECEIVE)


def _sending(original: Any) -> Any:
    @functools.wraps(original)
    async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        http = self.stream
        one = request_of(http)
        if one is None or one.is_ended or http.send is None:
            return await original(self, *args, **kwargs)
        from stagetrace.instrumentation.async_servers.request import sending

        size = _begin_sending(self, one, args[0] if args else kwargs.get("data")) or 0
        result, now = await sending(one, original(self, *args, **kwargs))
        _end_sending(http, one, now, size)
        return result

    return send


@guarded
def _begin_sending(response: Any, one: ServerRequest, data: Any) -> int:
    """Note the status line and headers, if they are about to be sent; return how many bytes of the body will be."""
    http = response.stream
    size = len(data.encode() if hasattr(data, "encode") else data or b"")
    if not one.is_begun:
        size = size or len(response.body or b"")
        for name, value in one.begin(response.status, response.headers.items()):
            response.headers.add(name, value)
    return 0 if http.head_only or response.status in BODILESS else size


@guarded_end
def _end_sending(http: Any, one: ServerRequest, now: int, size: int) -> None:
    if http.stage.name == IDLE:  # the response is complete
        one.end_bytes(now, size)
    else:
        one.add_bytes(now, size)


# --- its route and its exceptions


def _finding(original: Any) -> Any:
    @functools.wraps(original)
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        _note_route(found)
        return found

    return get


@guarded
def _note_route(found: Any) -> None:
    note_route(f"/{found[0].path}")


def _looking(original: Any) -> Any:
    @functools.wraps(original)
    def _lookup(self: Any, exception: Any, *args: Any, **kwargs: Any) -> Any:
        note_error(exception)
        return original(self, exception, *args, **kwargs)

    return _lookup


# --- the server


def _preparing(original: Any) -> Any:
    """Prepare before the server listens, after the application's own listeners; deliver when the server has ended."""

    @functools.wraps(original)
    async def _server_event(self: Any, concern: str, action: str, *args: Any, **kwargs: Any) -> None:
        runtime = the_runtime()
        if runtime is not None and (concern, action) == ("shutdown", "before"):
            runtime.deliver_immediately()
        await original(self, concern, action, *args, **kwargs)
        if runtime is not None and (concern, action) == ("init", "before"):
            await runtime.prepare()
        elif runtime is not None and (concern, action) == ("shutdown", "after") and runtime.ready:
            await runtime.flush()

    return _server_event
