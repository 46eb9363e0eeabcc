"""httpx and httpx2: each request that a client, synchronous or not, sends over the network."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from weakref import ref

from stagetrace.guard import guarded, switch
from stagetrace.instrumentation.clients.base import CALL, Call, begin_http, ending, http_status
from stagetrace.request.current import recording

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from stagetrace.instrumentation.clients.gen_ai_response import BodyReader

_switch = switch("stagetrace.patches.httpx")


def patch_transports(module: ModuleType) -> None:
    """Wrap the transports on the class: redirects and retries of authentication are requests of their own."""
    sync, other = module.HTTPTransport, module.AsyncHTTPTransport
    sync.handle_request = _handling(sync.handle_request)
    other.handle_async_request = _handling_async(other.handle_async_request)
    module.ResponseStream.close = ending(module.ResponseStream.close)
    stream = module.AsyncResponseStream
    stream.aclose = ending(stream.aclose)


def _handling(original: Any) -> Any:
    @functools.wraps(original)
    def handle_request(self: Any, request: Any) -> Any:
        headers = request.headers
        call = None if _switch.off or recording() is None else _begin(request)
        if call is None:
            return original(self, request)
        try:
            response = original(self, request)
        except BaseException as error:
            call.fail(error)
            raise
        finally:
            request.headers = headers  # without ours: it may be sent again, and a redirect copies its headers
        _note_response(call, response)
        return response

    return handle_request


def _handling_async(original: Any) -> Any:
    @functools.wraps(original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        headers = request.headers
        call = None if _switch.off or recording() is None else _begin(request)
        if call is None:
            return await original(self, request)
        try:
            response = await original(self, request)
        except BaseException as error:
            call.fail(error)
            raise
        finally:
            request.headers = headers  # without ours: it may be sent again, and a redirect copies its headers
        _note_response(call, response)
        return response

    return handle_async_request


@guarded
def _begin(request: Any) -> Call | None:
    """Begin a call; the request gets a copy of its headers, with ours."""
    call = begin_http("HTTPX", request.method, str(request.url), request.headers, request.__dict__.get("_content"))
    if call is not None:
        headers = request.headers.copy()
        headers.update(call.headers())
        request.headers = headers
    return call


@guarded
def _note_response(call: Call, response: Any) -> None:
    call.note_response(
        http_status(response.status_code),
        lambda: response.extensions["network_stream"].get_extra_info("socket"),
        response.headers.raw,
    )
    response.stream.__dict__[CALL] = call
    _read_body(call, response)


@guarded
def _read_body(call: Call, response: Any) -> None:
    """Let the body be read as it is decoded."""
    reader = call.reader(response.status_code, response.headers.get("content-type"))
    if reader is not None:
        response._decoder = _ReadDecoder(response, reader)


class _ReadDecoder:
    """The decoder of a response whose decoded body is read as it passes."""

    _decoder: Any = None

    def __init__(self, response: Any, reader: BodyReader) -> None:
        self._response = ref(response)  # no cycle: a response that is dropped ends its call
        self._reader = reader

    def _original(self) -> Any:
        """Return the response's own decoder, made when it is needed: a transport around ours may change headers."""
        if self._decoder is None:
            response: Any = self._response()
            del response._decoder
            try:
                self._decoder = response._get_content_decoder()
            finally:
                response._decoder = self
        return self._decoder

    def decode(self, data: bytes) -> Any:
        """Decode a part of the body."""
        return self._passing(self._original().decode(data))

    def flush(self) -> Any:
        """Return the rest."""
        return self._passing(self._original().flush())

    def _passing(self, decoded: Any) -> Any:
        if not isinstance(decoded, bytes):  # of httpx2: an iterator
            return self._each(decoded)
        self._reader.feed(decoded)
        return decoded

    def _each(self, decoded: Iterable[bytes]) -> Iterator[bytes]:
        for part in decoded:
            self._reader.feed(part)
            yield part
