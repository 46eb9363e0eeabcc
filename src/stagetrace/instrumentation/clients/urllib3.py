"""urllib3, which requests, botocore and others use: each request on a connection."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, switch
from stagetrace.instrumentation.clients.base import CALL, Call, begin_http, ending, http_status
from stagetrace.recording.current_record import recording

if TYPE_CHECKING:
    from types import ModuleType

_switch = switch("stagetrace.instrumentation.clients.urllib3")


def patch_response(module: ModuleType) -> None:
    """Wrap the methods that end a response."""
    response = module.HTTPResponse
    response.release_conn = ending(response.release_conn)  # once its body has been read to the end
    response.close = ending(response.close)


def patch_connectionpool(module: ModuleType) -> None:
    """Wrap a pool's `_make_request`, where redirects and retries are requests of their own."""
    pool = module.HTTPConnectionPool
    pool._make_request = _making(pool._make_request)


def _making(original: Any) -> Any:
    @functools.wraps(original)
    def _make_request(self: Any, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        call = None if _switch.off or recording() is None else _begin(self, method, url, kwargs)
        if call is None:
            return original(self, conn, method, url, *args, **kwargs)
        try:
            response = original(self, conn, method, url, *args, **kwargs)
        except BaseException as error:
            call.fail(error)
            raise
        _note_response(call, response, conn)
        return response

    return _make_request


@guarded
def _begin(pool: Any, method: str, target: str, kwargs: dict[str, Any]) -> Call | None:
    headers = kwargs.get("headers") or {}
    url = target
    if target.startswith("/"):  # else it is a whole URL, for a proxy
        host = f"[{pool.host}]" if ":" in pool.host else pool.host
        url = f"{pool.scheme}://{host}{f':{pool.port}' if pool.port else ''}{target}"
    names = {_text(name).lower(): name for name in headers}
    call = begin_http("URLLIB3", method, url, {name: _text(headers[own]) for name, own in names.items()})
    if call is not None:
        ours = headers.copy() if hasattr(headers, "copy") else dict(headers)
        for name, value in call.headers().items():
            if name.lower() in names:  # may be written in another way
                del ours[names[name.lower()]]
            ours[name] = value
        kwargs["headers"] = ours
    return call


def _text(text: str | bytes) -> str:
    return text.decode("latin-1") if isinstance(text, bytes) else text


@guarded
def _note_response(call: Call, response: Any, connection: Any) -> None:
    call.note_response(http_status(response.status), lambda: connection.sock)
    is_closed = getattr(response, "isclosed", None)  # urllib3 1: the response of http.client, whose end is not seen
    if is_closed is None or is_closed() or getattr(response, "_original_response", None) is None:
        call.end()
    else:
        response.__dict__[CALL] = call
