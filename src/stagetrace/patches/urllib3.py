"""urllib3, which requests, botocore and others use: each request on a connection."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import patching, wrap_all
from stagetrace.instrumentation.clients.base import CALL, Begun, Call, begin_http, calling, ending, http_status

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.instrumentation.clients.gen_ai_response import BodyReader


def patch_response(module: ModuleType) -> None:
    """Wrap the methods that end a response, and those that decode its body."""
    response = module.HTTPResponse
    reads = [(response, name, _reading) for name in ("read", "read1") if hasattr(response, name)]
    ends = [(response, name, ending) for name in ("release_conn", "close")]  # the first, once the body was read
    wrap_all((*reads, (response, "_decode", _decoding), *ends))


def _reading(original: Any) -> Any:
    """Return a method that reads and then decodes: a call that ends with the reading is open until this is done."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = self.__dict__.get(CALL)
        if call is None or call.read is None:
            return original(self, *args, **kwargs)
        call.hold()
        try:
            return original(self, *args, **kwargs)
        finally:
            if not getattr(getattr(self, "_decoder", None), "has_unconsumed_tail", False):
                call.let_go()

    return method


def _decoding(original: Any) -> Any:
    @functools.wraps(original)
    def _decode(self: Any, data: bytes, decode_content: bool | None, *args: Any, **kwargs: Any) -> Any:
        decoded = original(self, data, decode_content, *args, **kwargs)
        call = self.__dict__.get(CALL)
        if call is not None and call.read is not None:
            _feed(call.read, self, decoded, is_decoded=bool(decode_content))
        return decoded

    return _decode


@guarded
def _feed(reader: BodyReader, response: Any, data: bytes, *, is_decoded: bool) -> None:
    if is_decoded or "content-encoding" not in response.headers:
        reader.feed(data)


def _begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Begun | None:
    pool, _, method, target, *_ = args
    headers = kwargs.get("headers") or {}
    url = target
    if target.startswith("/"):  # else it is a whole URL, for a proxy
        host = f"[{pool.host}]" if ":" in pool.host else pool.host
        url = f"{pool.scheme}://{host}{f':{pool.port}' if pool.port else ''}{target}"
    names = {_text(name).lower(): name for name in headers}
    carried = {name: _text(headers[own]) for name, own in names.items()}
    call = begin_http("URLLIB3", method, url, carried, kwargs.get("body"))
    if call is None:
        return None
    ours = headers.copy() if hasattr(headers, "copy") else dict(headers)
    for name, value in call.headers().items():
        if name.lower() in names:  # may be written in another way
            del ours[names[name.lower()]]
        ours[name] = value
    return Begun(call, args, {**kwargs, "headers": ours})


def _text(text: str | bytes) -> str:
    return text.decode("latin-1") if isinstance(text, bytes) else text


def _note_response(call: Call, response: Any, _pool: Any, connection: Any, *_: Any) -> None:
    call.note_response(http_status(response.status), lambda: connection.sock, response.headers.items())
    _read_body(call, response)
    is_closed = getattr(response, "isclosed", None)  # urllib3 1: the response of http.client, whose end is not seen
    if is_closed is None or is_closed() or getattr(response, "_original_response", None) is None:
        call.end()
    else:
        response.__dict__[CALL] = call


@guarded
def _read_body(call: Call, response: Any) -> None:
    """Let the body be read as it is decoded, or now, if it was before the response is passed on."""
    reader = call.reader(response.status, response.headers.get("content-type"))
    body = getattr(response, "_body", None)
    if reader is not None and isinstance(body, bytes):
        reader.feed_whole(body)


# Redirects and retries are requests of their own.
patch_connectionpool = patching({"HTTPConnectionPool._make_request": calling(_begin, _note_response)})
