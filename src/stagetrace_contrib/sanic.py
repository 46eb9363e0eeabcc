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
from stagetrace.instrumentation.async_servers.base import adapter, note_error, note_route, passing, request_of, stepped
from stagetrace.instrumentation.base import after, before, patching, then
from stagetrace.instrumentation.servers import the_runtime
from stagetrace.semconv import NETWORK_RECEIVE

if TYPE_CHECKING:
    from stagetrace.instrumentation.async_servers.request import ServerRequest

BODILESS = (204, 304)
IDLE = "IDLE"  # the stage of a connection between two requests


# --- a request


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


def _sending(original: Any) -> Any:
    @functools.wraps(original)
    async def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        http = self.stream
        one = request_of(http)
        if one is None or one.is_ended or http.send is None:
            return await original(self, *args, **kwargs)
        size = _begin_sending(self, one, args[0] if args else kwargs.get("data")) or 0
        result, now = await adapter().sending(one, original(self, *args, **kwargs))
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


def _note_route(found: Any, *_: Any, **__: Any) -> None:
    note_route(f"/{found[0].path}")


def _note_error(_handler: Any, exception: Any, *_: Any, **__: Any) -> None:
    note_error(exception)


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


# Of a protocol, which waits for more data, or of a request with a body.
_receiving = passing(lambda by: request_of(getattr(by, "_http", None) or getattr(by, "stream", None)), NETWORK_RECEIVE)
# The making of a connection, which keeps the function that handles requests; the wait for more data.
patch_protocol = patching({"HttpProtocol.__init__": then(_wrap_handler)})
patch_base_protocol = patching({"SanicProtocol.receive_more": _receiving})
patch_http = patching({"Http.init_for_request": before(_finish, guarded_end), "Http.http1": _serving})
patch_request = patching({"Request.receive_body": _receiving})
patch_response = patching({"BaseHTTPResponse.send": _sending})
patch_router = patching({"Router.get": after(_note_route)})
patch_error_handler = patching({"ErrorHandler._lookup": before(_note_error)})  # what handles an exception
patch_app = patching({"Sanic._server_event": _preparing})  # in each of its worker processes
