"""Shared parts of both HTTP ports: the token, /health, /metrics, and a JSON body for every error."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

HEALTH: Final = "/health"
METRICS: Final = "/metrics"
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
# (status, message, request) -> the response in the words of one port.
Fault = "Callable[[int, str, Request], Response]"


def authorized(given: str | bytes | None, token: str | None) -> bool:
    """Return whether an `authorization` header carries the token; always, where none is required.

    In constant time, so that the duration reveals nothing of the token.
    """
    if token is None:
        return True
    raw = given.encode("latin-1", "replace") if isinstance(given, str) else given or b""
    scheme, _, credential = raw.partition(b" ")
    return hmac.compare_digest(credential.strip(), token.encode()) and scheme.lower() == b"bearer"


def application(
    routes: Sequence[Route],
    fault: Callable[[int, str, Request], Response],
    token: str | None,
    metrics: Callable[[], str],
) -> ASGIApp:
    """Return the app of one port: its routes, /health for everyone, /metrics, and errors in the form of `fault`."""

    def failed(request: Request, error: Any) -> Response:
        response = fault(error.status_code, error.detail, request)
        response.headers.update(error.headers or {})
        return response

    def crashed(request: Request, _error: Exception) -> Response:
        return fault(500, "the back end failed on this request; see its log", request)

    def metrics_text(_request: Request) -> Response:
        return PlainTextResponse(metrics(), media_type=_PROMETHEUS)

    app = Starlette(
        routes=[*routes, Route(HEALTH, _health), Route(METRICS, metrics_text)],
        exception_handlers={HTTPException: failed, Exception: crashed},
    )
    return app if token is None else _Guard(app, token, fault)


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


class _Guard:
    """Refuses requests without the token, /health excepted, before it reads a body."""

    def __init__(self, app: ASGIApp, token: str, fault: Callable[[int, str, Request], Response]) -> None:
        self._app = app
        self._token = token
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or scope["path"] == HEALTH or authorized(headers.get(b"authorization"), self._token):
            await self._app(scope, receive, send)
            return
        from starlette.requests import Request

        response = self._fault(401, "a token is needed: send the header `authorization: Bearer TOKEN`", Request(scope))
        response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)
