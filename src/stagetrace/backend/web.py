"""Shared parts of both HTTP ports: access, /health, /metrics, a body for every error, headers for browsers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from stagetrace.backend.http_limits import Threads
from stagetrace.backend.refusal import UNAUTHENTICATED, Refused, short

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.ports import Access

HEALTH: Final = "/health"
METRICS: Final = "/metrics"
_METRICS_REQUESTS: Final = 8  # at one time
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
# Spans are nobody's to embed, to cache, or to take for a page. The page has a policy of its own.
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
# (status, message, request) -> the response in the words of one port.
Fault: TypeAlias = Callable[[int, str, Request], Response]


class Pages(Protocol):
    """What a port serves to people: pages, which their browsers ask for without the token in a header."""

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes."""
        ...

    def admits(self, request: Request) -> bool:
        """Return whether a request without the token is served: it has a session, or nothing there is secret."""
        ...

    def fault(self, status: int, message: str, request: Request) -> Response | None:
        """Return the response to a failed request of a browser; None to others, which get that of the port."""
        ...


def json_fault(status: int, message: str, _request: Request) -> Response:
    """Return a failure as Jaeger's query API has it."""
    return JSONResponse({"error": {"httpCode": status, "message": short(message)}}, status)


def application(
    routes: Sequence[BaseRoute],
    own_fault: Fault,
    access: Access,
    metrics: Callable[[], str],
    counters: Counters,
    pages: Pages | None = None,
) -> ASGIApp:
    """Return the app of one port: its routes, /health for everyone, /metrics, errors in the form of `own_fault`."""

    def fault(status: int, message: str, request: Request) -> Response:
        shown = None if pages is None else pages.fault(status, message, request)
        return own_fault(status, message, request) if shown is None else shown

    def on_http_error(request: Request, error: Any) -> Response:
        response = fault(error.status_code, error.detail, request)
        response.headers.update(error.headers or {})
        return response

    def on_error(request: Request, _error: Exception) -> Response:
        return fault(500, "the back end failed on this request; see its log", request)

    threads = Threads(1, _METRICS_REQUESTS)  # apart: slow queries delay no metrics, and metrics no port

    async def metrics_text(request: Request) -> Response:
        try:
            return PlainTextResponse(await threads.run(request, metrics), media_type=_PROMETHEUS)
        except Refused as refused:
            return fault(refused.kind.status, refused.message, request)

    shown = () if pages is None else pages.routes
    app = Starlette(
        routes=[*routes, *shown, Route(HEALTH, _health), Route(METRICS, metrics_text)],
        exception_handlers={HTTPException: on_http_error, Exception: on_error},
    )
    return _Guard(app, access, pages, fault, counters)


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


class _Guard:
    """Refuses requests without access, before it reads a body, and adds `_HEADERS` to each response."""

    def __init__(self, app: ASGIApp, access: Access, pages: Pages | None, fault: Fault, counters: Counters) -> None:
        self._app = app
        self._access = access
        self._pages = pages
        self._fault = fault
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in _HEADERS if one[0] not in own)]
            await send(message)

        await self._refuse_or(self._app, scope)(scope, receive, send_with_headers)

    def _refuse_or(self, app: ASGIApp, scope: Scope) -> ASGIApp:
        """Return `app`, or the response to a request without access. Probes of /health need none."""
        if scope["type"] != "http" or scope["path"] == HEALTH:
            return app
        request = Request(scope)
        try:
            self._access.check_site(scope["method"], scope["headers"])
            if self._pages is None or not self._pages.admits(request):
                self._access.check_token(scope["headers"])
        except Refused as refused:
            self._counters.add("refused_requests", refused.kind.name)
            response = self._fault(refused.kind.status, refused.message, request)
            if response.status_code == UNAUTHENTICATED.status:
                response.headers["www-authenticate"] = "Bearer"
            return response
        return app
