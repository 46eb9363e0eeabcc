"""geventhttpclient, by which tritonclient calls over HTTP: each request of a client."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, switch
from stagetrace.instrumentation.clients.base import CALL, Call, begin_http, ending, http_status
from stagetrace.request.current import recording

if TYPE_CHECKING:
    from types import ModuleType

_switch = switch("stagetrace_contrib.geventhttpclient")


def patch_client(module: ModuleType) -> None:
    """Wrap `HTTPClient.request`, which makes all requests, and what ends a response."""
    client, response = module.HTTPClient, module.HTTPSocketPoolResponse
    request, release = client.request, response.release
    client.request = _requesting(request)
    response.release = ending(release)


def _requesting(original: Any) -> Any:
    @functools.wraps(original)
    def request(
        self: Any, method: str, request_uri: str, body: Any = b"", headers: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        begun = None if _switch.off or recording() is None else _begin(self, method, request_uri, body, headers)
        if begun is None:
            return original(self, method, request_uri, body, headers, *args, **kwargs)
        call, headers = begun
        try:
            response = original(self, method, request_uri, body, headers, *args, **kwargs)
        except BaseException as error:
            call.fail(error)
            raise
        _note_response(call, response)
        return response

    return request


@guarded
def _begin(client: Any, method: str, target: str, body: Any, headers: Any) -> tuple[Call, Any] | None:
    """Return the call, and the headers with ours."""
    own = headers or {}
    names = {name.lower(): name for name in own}
    host = f"[{client.host}]" if ":" in client.host else client.host
    url = f"{'https' if client.ssl else 'http'}://{host}:{client.port}/{target.removeprefix('/')}"
    call = begin_http("GEVENTHTTPCLIENT", method.upper(), url, {name: own[key] for name, key in names.items()}, body)
    if call is None:
        return None
    added = call.headers()
    replaced = {names.get(name.lower()) for name in added}
    return call, {**{name: own[name] for name in own if name not in replaced}, **added}


@guarded
def _note_response(call: Call, response: Any) -> None:
    call.note_response(http_status(response.status_code), lambda: response._sock, response.items())
    if response.message_complete:  # the body came with the headers
        call.end()
    else:
        response.__dict__[CALL] = call
