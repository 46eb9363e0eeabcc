"""httpx and httpx2: each request that a client, synchronous or not, sends over the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import patching
from stagetrace.instrumentation.clients.base import CALL, Begun, Call, begin_http, calling, ending, http_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stagetrace.instrumentation.clients.gen_ai_response import BodyReader


def _begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Begun | None:
    """Begin a call; the request gets a copy of its headers, with ours, until it was sent."""
    request = args[1] if len(args) > 1 else kwargs["request"]
    own = request.headers
    call = begin_http("HTTPX", request.method, str(request.url), own, request.__dict__.get("_content"))
    if call is None:
        return None
    headers = own.copy()
    headers.update(call.headers())
    request.headers = headers
    # Without ours it may be sent again, and a redirect copies its headers.
    return Begun(call, args, kwargs, lambda: setattr(request, "headers", own))


def _note_response(call: Call, response: Any, *_: Any) -> None:
    call.note_response(
        http_status(response.status_code),
        lambda: response.extensions["network_stream"].get_extra_info("socket"),
        response.headers.raw,
    )
    response.stream.__dict__[CALL] = call
    _read_body(call, response)


_handling = calling(_begin, _note_response)
# The transports: redirects and retries of authentication are requests of their own.
patch_transports = patching(
    {
        "HTTPTransport.handle_request": _handling,
        "AsyncHTTPTransport.handle_async_request": _handling,
        "ResponseStream.close": ending,
        "AsyncResponseStream.aclose": ending,
    }
)


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
