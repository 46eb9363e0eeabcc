"""The routes of the page: of each view its shell, which asks nothing, and its parts, which do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from stagetrace.backend.http_threads import Threads
from stagetrace.backend.refusal import Refused, short
from stagetrace.backend.throttled_log import ThrottledLog
from stagetrace.errors import StagetraceError, UnknownTrace
from stagetrace.page import assets
from stagetrace.page.asked import Asked, BadRequest
from stagetrace.page.base import File
from stagetrace.page.cache import Cache, Made
from stagetrace.page.readers import Readers
from stagetrace.page.templates import render
from stagetrace.page.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from starlette.requests import Request

    from stagetrace.page.base import Make, Site, View

HEADERS: Final = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
}
_THREADS: Final = 3  # that ask the store at one time
_VIEWERS: Final = 300  # parts that are waited for
_FAILED: Final = "the page failed on this question; see the log of the back end"
_log: Final = ThrottledLog()


def page_routes(site: Site, stack: ExitStack) -> list[BaseRoute]:
    """Return the routes of the page; `stack` closes what it holds."""
    readers = Readers(site.open_reader)
    stack.callback(readers.close)
    pages = _Pages(site, readers, stack.enter_context(Threads(_THREADS, _VIEWERS)))
    routes: list[BaseRoute] = [Route(f"{assets.PATH}/{{hash}}/{{name:path}}", assets.respond, methods=["GET"])]
    for view in VIEWS:
        routes += [Route(path, pages.shell(view), methods=["GET"]) for path in _paths(view)]
        routes += [
            Route(f"{view.path}/{name}", pages.part(view, name, make), methods=["GET"])
            for name, make in view.parts.items()
        ]
        own = view.routes(site, stack)
        routes += [Route(f"{view.path}/{name}", endpoint, methods=["GET"]) for name, endpoint in own.items()]
    return routes


def _paths(view: View) -> Sequence[str]:
    """Return the paths of a view; the first view is the page that is at the top, too."""
    return ("/", view.path) if view is VIEWS[0] else (view.path,)


class _Pages:
    """Makes the endpoints."""

    def __init__(self, site: Site, readers: Readers, threads: Threads) -> None:
        self._site = site
        self._readers = readers
        self._threads = threads
        self._cache = Cache()

    def shell(self, view: View) -> Callable[[Request], Any]:
        """Return the endpoint of a view's shell."""

        async def respond(request: Request) -> Response:
            try:
                return self._page(request, view)
            except Exception as error:  # noqa: BLE001 -- the last stop before uvicorn, which would print a traceback
                _log.error("failed", f"the view {view.name} failed: {type(error).__name__}: {error}")
                return HTMLResponse(_error(_FAILED), 500, headers=HEADERS)

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
            work = partial(self._cache.get, key, partial(self._made, request, make))
            try:
                made = await self._threads.run(request, work)
            except Refused as refused:
                return HTMLResponse(_error(refused.message), refused.kind.status, headers=HEADERS)
            named = {} if made.file is None else {"content-disposition": f'attachment; filename="{made.file}"'}
            return Response(made.body, made.status, media_type=made.type, headers=HEADERS | named)

        return respond

    def _made(self, request: Request, make: Make) -> Made:
        """Return a part, or the error in its place."""
        began = time.monotonic()
        status = 200
        try:
            asked = self._asked(request)
            with self._readers.one() as reader:
                part = make(asked, reader, self._site)
            took_s = time.monotonic() - began
            if isinstance(part, File):
                return Made(part.body, status, took_s, part.type, part.name)
            html = render("part.html", asked=asked, site=self._site, part=part, took_s=took_s, **part.values)
        except StagetraceError as error:
            status, html = _status(error), _error(short(str(error)))
        except Exception as error:  # noqa: BLE001 -- the last stop before uvicorn, which would print a traceback
            _log.error("failed", f"a part of the page failed: {type(error).__name__}: {error}")
            status, html = 500, _error(_FAILED)
        return Made(html.encode(), status, time.monotonic() - began)

    def _asked(self, request: Request) -> Asked:
        return Asked.of(request.query_params.multi_items(), request.path_params, self._site.since)


def _status(error: StagetraceError) -> int:
    return 400 if isinstance(error, BadRequest) else 404 if isinstance(error, UnknownTrace) else 503


def _error(message: str) -> str:
    return render("error.html", message=message)
