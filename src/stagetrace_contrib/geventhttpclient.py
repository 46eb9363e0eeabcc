"""geventhttpclient, by which tritonclient calls over HTTP: each request of a client."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.base import patching, with_argument
from stagetrace.instrumentation.clients.base import CALL, Begun, Call, begin_http, calling, ending, http_status

BODY, HEADERS = 3, 4  # their positions, the client's being the first


def _begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Begun | None:
    """Return the call, with ours among the headers: the fourth argument after the client, or a keyword."""
    client, method, target, *_ = args
    body = args[BODY] if len(args) > BODY else kwargs.get("body", b"")
    own = (args[HEADERS] if len(args) > HEADERS else kwargs.get("headers")) or {}
    names = {name.lower(): name for name in own}
    host = f"[{client.host}]" if ":" in client.host else client.host
    url = f"{'https' if client.ssl else 'http'}://{host}:{client.port}/{target.removeprefix('/')}"
    call = begin_http("GEVENTHTTPCLIENT", method.upper(), url, {name: own[key] for name, key in names.items()}, body)
    if call is None:
        return None
    added = call.headers()
    replaced = {names.get(name.lower()) for name in added}
    headers = {**{name: own[name] for name in own if name not in replaced}, **added}
    return Begun(call, *with_argument(args, kwargs, HEADERS, "headers", headers))


def _note_response(call: Call, response: Any, *_: Any) -> None:
    call.note_response(http_status(response.status_code), lambda: response._sock, response.items())
    if response.message_complete:  # the body came with the headers
        call.end()
    else:
        response.__dict__[CALL] = call


# `request` makes all requests.
patch_client = patching(
    {"HTTPClient.request": calling(_begin, _note_response), "HTTPSocketPoolResponse.release": ending}
)
