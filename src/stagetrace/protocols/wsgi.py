"""A WSGI application as its server calls it: the place of the entry span, whatever the application is.

Programs that serve nothing import this too, with the patches of servers and frameworks: all else is imported with the
first request.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.request.current import SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

# Modules of applications that are not recorded: a scrape of metrics is no request of the service.
NO_SERVICES = ("prometheus_client.",)


@functools.cache
@guarded
def recorder() -> Callable[..., Any]:
    """Return the function that serves a request with recording; None if it cannot be imported."""
    from stagetrace.protocols.wsgi_request import serve

    return serve


class Traced:
    """An application with recording, in the place of the application: its attributes are those of the application."""

    def __init__(self, app: Any) -> None:
        self.__wrapped__ = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Serve a request."""
        app, serve = self.__wrapped__, recorder()
        if serve is None:
            return app(environ, start_response)
        return serve(app, app, environ, start_response)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


def traced(app: Any) -> Any:
    """Return the application, wrapped once."""
    module = getattr(app, "__module__", None) or ""
    return app if isinstance(app, Traced) or module.startswith(NO_SERVICES) else Traced(app)


def outermost(original: Any) -> Any:
    """Return a framework's `__call__` with recording, for requests that the patch of a server does not record."""

    @functools.wraps(original)
    def __call__(self: Any, environ: Any, start_response: Any) -> Any:
        if type(environ.get(SCOPE_KEY, "")) is not str:
            _pass_on(environ)
            return original(self, environ, start_response)
        serve = recorder()
        if serve is None:
            return original(self, environ, start_response)
        return serve(self, functools.partial(original, self), environ, start_response)

    return __call__


@guarded
def _pass_on(environ: Any) -> None:
    enter_framework = getattr(environ[SCOPE_KEY], "enter_framework", None)
    if enter_framework is not None:
        enter_framework(environ)
