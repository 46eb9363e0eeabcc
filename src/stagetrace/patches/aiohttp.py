"""aiohttp's client: each request of a session, redirects included."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import patching
from stagetrace.instrumentation.clients.base import CALL, Begun, Call, begin_http, calling, ending, http_status

if TYPE_CHECKING:
    from stagetrace.instrumentation.clients.gen_ai_response import BodyReader

SWITCHING = 101
OTEL_PACKAGE = "opentelemetry.instrumentation."
# By the id of the stream that has the body of the response: as long as the call lasts, which holds the reader.
_readers: WeakValueDictionary[int, BodyReader] = WeakValueDictionary()


def _begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Begun | None:
    session, method, url = args
    if any(_is_instrumented(config) for config in session._trace_configs):
        return None
    try:
        headers = session._prepare_headers(kwargs.get("headers"))
        whole = session._build_url(url)
        if kwargs.get("params"):
            whole = whole.update_query(kwargs["params"])
    except (TypeError, ValueError):  # aiohttp will raise it, too
        return None
    body = kwargs.get("json")
    if body is None:
        body = kwargs.get("data")
    call = begin_http("AIOHTTP_CLIENT", method.upper(), str(whole), headers, body)
    if call is None:
        return None
    headers.update(call.headers())
    return Begun(call, args, {**kwargs, "headers": headers})


def _is_instrumented(config: Any) -> bool:
    return any((getattr(one, "__module__", None) or "").startswith(OTEL_PACKAGE) for one in config.on_request_start)


def _note_response(call: Call, response: Any, *_: Any) -> None:
    connection = response.connection  # None if the whole response has been received
    find = None if connection is None else lambda: connection.transport.get_extra_info("socket")
    call.note_response(http_status(response.status), find, response.raw_headers)
    _read_body(call, response)
    if (
        response.closed or response.status == SWITCHING
    ):  # the body came with the headers; or it is a websocket, which may last
        call.end()
    else:
        response.__dict__[CALL] = call


@guarded
def _read_body(call: Call, response: Any) -> None:
    """Let what has been received of the body be read, and what will be: decoded, it goes into the stream's buffer.

    The stream has slots alone, so it becomes one of a class that passes on what it receives.
    """
    reader = call.reader(response.status, response.headers.get("content-type"))
    if reader is None:
        return
    stream = response.content
    for part in getattr(stream, "_buffer", ()):
        reader.feed(part)
    if not stream.is_eof():
        stream.__class__ = _reading(stream.__class__)
        _readers[id(stream)] = reader


@functools.cache
def _reading(original: Any) -> Any:
    """Return a class of streams that differs from the original in nothing but this."""

    def feed_data(self: Any, data: bytes, *args: Any, **kwargs: Any) -> Any:
        reader = _readers.get(id(self))
        if reader is not None:
            reader.feed(data)
        return original.feed_data(self, data, *args, **kwargs)

    same = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (original,), {"__slots__": (), "feed_data": feed_data, **same})


# `_request` makes all requests.
patch_client = patching(
    {
        "ClientSession._request": calling(_begin, _note_response),
        **{f"ClientResponse.{name}": ending for name in ("_response_eof", "close", "release")},
    }
)
