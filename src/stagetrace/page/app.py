"""The routes of the page: of each view its shell, which asks nothing, and its parts, which do; and its own server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route

from stagetrace.backend.counters import PAGE_PORT, Counters, ThrottledLog
from stagetrace.backend.http_port import HttpServer, limit_logs_of_libraries
from stagetrace.backend.ports import Access, check_tls, connections_of_ports, listen
from stagetrace.backend.refusal import FORBIDDEN, METHOD, NOT_FOUND, UNAUTHENTICATED, Refused, short
from stagetrace.backend.web import HEALTH, METRICS, application, json_fault
from stagetrace.errors import StagetraceError, UnknownTrace
from stagetrace.page import silencing, templates
from stagetrace.page.base import Asked, BadRequest, File
from stagetrace.page.login import Login
from stagetrace.page.queries import APART, THREADS, Cache, Made, Readers, limited
from stagetrace.page.templates import HEADERS, document, fragment, render
from stagetrace.page.views import VIEWS
from stagetrace.semconv import SLA_BREACHED, SLA_OBJECTIVE
from stagetrace.store import database

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

    from stagetrace.backend.options import Listening
    from stagetrace.page.base import Make, Site, View


# --- `/search`, where links to Jaeger's page lead: to the breaches that such a link is about.
#
# This page has Jaeger's port, and links of alerts and of Grafana's board are made for it.


async def _respond(request: Request) -> RedirectResponse:
    return RedirectResponse(target(request.query_params), HTTPStatus.SEE_OTHER)


def target(params: Mapping[str, str]) -> str:
    """Return the page's URL for a search in Jaeger's page, of which service, lookback and tags count."""
    try:
        tags = json.loads(params.get("tags") or "{}")
    except (ValueError, RecursionError):
        tags = {}
    of_tags = {key: value for key, value in tags.items() if key != SLA_BREACHED} if isinstance(tags, dict) else {}
    named = {"service": params.get("service"), "judged-by": of_tags.pop(SLA_OBJECTIVE, None)}
    lookback = params.get("lookback", "")
    named["since"] = lookback if lookback[-1:].isalpha() and lookback[:-1].isdigit() else None  # not `custom`
    pairs = [(name, str(value)) for name, value in named.items() if value]
    pairs += [("segment", f"{key}={value}") for key, value in of_tags.items()]
    return f"/breaches?{urlencode(pairs)}"


ROUTE: Final = Route("/search", _respond, methods=["GET"])


_FAILED: Final = "the page failed on this question; see the log of the back end"
_END_S: Final = 3.0  # until questions to the store are interrupted as the page closes
_ANEW: Final = "x-anew"  # a header: the part as it is, not as it was
_FOR_PROGRAMS: Final = (HEALTH, METRICS, "/api/")
_MESSAGES: Final = {NOT_FOUND.status: "There is no such page.", METHOD.status: "A page is only read: by GET."}
_log: Final = ThrottledLog()


class Page:
    """The page of one store: `backend.web.Pages`."""

    def __init__(self, site: Site, login: Login, stack: ExitStack, more: Sequence[BaseRoute] = ()) -> None:
        """Serve `site`, and `more` behind the same access; the stack closes what that takes."""
        self._login = login
        self._public = [
            Route(f"{templates.PATH}/{{hash}}/{{name:path}}", templates.respond, methods=["GET"]),
            *login.routes,
        ]
        self._views = [*_view_routes(replace(site, has_login=login.is_needed), stack), *more]

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes."""
        return [*self._public, *self._views]

    def admits(self, request: Request) -> bool:
        """Return whether a request without the token is served: of a session, or of nothing that is secret."""
        routes = self.routes if self._login.has_session(request) else self._public
        return any(route.matches(request.scope)[0] is not Match.NONE for route in routes)

    def fault(self, status: int, message: str, request: Request) -> Response | None:
        """Return a failure as HTML: for people, not for programs, which accept none."""
        is_for_people = "text/html" in request.headers.get("accept", "")
        if not is_for_people or request.url.path.startswith(_FOR_PROGRAMS):
            return None
        is_part = "hx-request" in request.headers
        if status == UNAUTHENTICATED.status and is_part:
            return fragment("You are not logged in, or no longer.", status, log_in=True)
        if status == UNAUTHENTICATED.status and not self._login.has_session(request):
            return self._login.form(request)
        if status == UNAUTHENTICATED.status:  # of a session, which opens all that there is
            status = NOT_FOUND.status
        message = _MESSAGES.get(status, message)
        if is_part:
            return fragment(message, status)
        return document(
            "fault.html", status, title=HTTPStatus(status).phrase, message=message, has_way=status != FORBIDDEN.status
        )


def _view_routes(site: Site, stack: ExitStack) -> list[BaseRoute]:
    database.share_memory(THREADS + APART + 1)  # with the live tail
    readers = Readers(site.open_reader)
    stack.callback(readers.close)
    # Beside those that wait for the API, so that a port full of viewers still responds to /health.
    cache = Cache(connections_of_ports().http // 2)
    stack.callback(cache.close, readers.interrupt, _END_S)
    endpoints = _Endpoints(site, readers, cache)
    routes: list[BaseRoute] = [ROUTE]
    if site.silence is not None:
        routes.append(silencing.route(site.silence, partial(cache.forget, "board alerts ")))
    for view in VIEWS:
        routes += [Route(path, endpoints.shell(view), methods=["GET"]) for path in _paths(view)]
        routes += [
            Route(f"{view.path}/{name}", endpoints.part(view, name, make), methods=["GET"])
            for name, make in view.parts.items()
        ]
        own = view.routes(site, stack)
        routes += [Route(f"{view.path}/{name}", endpoint, methods=["GET"]) for name, endpoint in own.items()]
    return routes


def _paths(view: View) -> Sequence[str]:
    """Return the paths of a view; the first view is the page that is at the top, too."""
    return ("/", view.path) if view is VIEWS[0] else (view.path,)


class _Endpoints:
    """Makes the endpoints of views."""

    def __init__(self, site: Site, readers: Readers, cache: Cache) -> None:
        self._site = site
        self._readers = readers
        self._cache = cache

    def shell(self, view: View) -> Callable[[Request], Any]:
        """Return the endpoint of a view's shell."""

        async def respond(request: Request) -> Response:
            try:
                return self._page(request, view)
            except Exception as error:  # noqa: BLE001 -- the last stop before uvicorn, which would print a traceback
                _log.error("failed", f"the view {view.name} failed: {type(error).__name__}: {error}")
                return fragment(_FAILED, 500)

        return respond

    def _page(self, request: Request, view: View) -> Response:
        status = 200
        values: dict[str, Any] = {"view": view, "site": self._site, "menu": [one for one in VIEWS if one.in_menu]}
        try:
            asked = self._asked(request)
            kept = {name: asked.params[name] for name in view.keeps if name in asked.params}
            values |= {"asked": asked, "kept": kept, **view.shell(asked, self._site)}
            template = view.template
        except BadRequest as error:
            asked = Asked.of((), request.path_params, self._site.since)
            values |= {"asked": asked, "kept": {}, "message": str(error)}
            template, status = "bad_request.html", 400
        html = render(template, view_path=view.path.format(**request.path_params), **values)
        return HTMLResponse(html, status, headers=HEADERS)

    def part(self, view: View, name: str, make: Make) -> Callable[[Request], Any]:
        """Return the endpoint of one part of a view."""

        async def respond(request: Request) -> Response:
            key = f"{view.name} {name} {request.url.path}?{request.url.query}"
            try:
                made = await self._cache.get(
                    request,
                    key,
                    partial(self._make_part, request, make),
                    apart=name in view.apart,
                    old=name in view.as_they_were and _ANEW not in request.headers,
                )
            except Refused as refused:
                response = fragment(refused.message, refused.kind.status)
                response.headers["retry-after"] = str(refused.kind.retry_after_s)
                return response
            named = {} if made.file is None else {"content-disposition": f'attachment; filename="{_named(made.file)}"'}
            body = made.body + render("part_old.html", url=_own_url(request)).encode() if made.is_old else made.body
            return Response(body, made.status, media_type=made.type, headers=HEADERS | named)

        return respond

    def _make_part(self, request: Request, make: Make) -> Made:
        """Return a part, or the error in its place."""
        began = time.monotonic()
        status = 200
        try:
            asked = self._asked(request)
            with self._readers.one() as reader, limited(reader, self._site.limit_s):
                part = make(asked, reader, self._site)
            took_s = time.monotonic() - began
            if isinstance(part, File):
                return Made(part.body, status, took_s, part.type, part.name)
            html = render("part.html", asked=asked, site=self._site, part=part, took_s=took_s, **part.values)
        except StagetraceError as error:
            status, html = _status(error), _error(short(str(error)))
        except Exception as error:  # noqa: BLE001 -- the last stop before uvicorn, which would print a traceback
            if not self._cache.is_closed:  # which interrupts it
                _log.error("failed", f"a part of the page failed: {type(error).__name__}: {error}")
            status, html = 500, _error(_FAILED)
        return Made(html.encode(), status, time.monotonic() - began)

    def _asked(self, request: Request) -> Asked:
        return Asked.of(request.query_params.multi_items(), request.path_params, self._site.since)


def _own_url(request: Request) -> str:
    return f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path


def _status(error: StagetraceError) -> int:
    return 400 if isinstance(error, BadRequest) else 404 if isinstance(error, UnknownTrace) else 503


def _error(message: str) -> str:
    return render("error.html", message=message)


def _named(file: str) -> str:
    """Return a name that may be quoted in a header."""
    return re.sub(r"[^\w.-]", "_", file, flags=re.ASCII)


# --- Serves the page alone, on one port, over a store that it does not write to.

_GRACE_S: Final = 0.2  # nothing is lost where a browser gets no response


def serve(site: Site, options: Listening, port: int, on_ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM; call `on_ready` with the port. Raise BackendError where it cannot start."""
    limit_logs_of_libraries()
    counters = Counters()
    with ExitStack() as stack:
        check_tls(options)
        bound = listen(options.host, port, "--port")
        stack.callback(bound.close)
        port = bound.getsockname()[1]
        page = Page(site, Login(options, port, counters), stack)
        app = application((), json_fault, Access.of(options), partial(counters.text, {}), counters, page)
        most = connections_of_ports().http
        server = HttpServer(app, options, PAGE_PORT, counters, most=most, grace_s=_GRACE_S)
        asyncio.run(_run(server, bound, partial(on_ready, port)))


async def _run(server: HttpServer, bound: socket.socket, on_ready: Callable[[], None]) -> None:
    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await server.up.wait()
    on_ready()
    await serving
