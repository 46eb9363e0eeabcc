"""Servers of WSGI applications: each gets its application wrapped, so that whatever it is, its requests are recorded.

Where a server keeps its application is one line here. Programs that serve nothing import some of these modules too, so
all else is imported with the first request.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# Module, class, the attribute in which it keeps the application, the method that serves until the end.
SERVERS = {
    "waitress.server": (("BaseWSGIServer", "application", "run"), ("MultiSocketServer", "", "run")),
    "werkzeug.serving": (("BaseWSGIServer", "app", "serve_forever"),),
    "cheroot.wsgi": (("Server", "wsgi_app", "serve"),),
    "gevent.pywsgi": (("WSGIServer", "application", "serve_forever"),),
}
# Applications that are no service, by their module: who scrapes metrics is no customer.
NO_SERVICES = ("prometheus_client.",)


@functools.cache
@guarded
def recorder() -> Callable[..., Any]:
    """Return what serves a request in the application's place; None where that cannot be loaded."""
    from stagetrace.instrumentation.wsgi.request import serve

    return serve


class Traced:
    """An application as its server has it; to all who look it is the application."""

    def __init__(self, app: Any) -> None:
        self.__wrapped__ = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Answer a request."""
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
    """Return a framework's `__call__` that is recorded, where no server's hook has seen the request before."""

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
    pass_to = getattr(environ[SCOPE_KEY], "pass_to", None)
    if pass_to is not None:
        pass_to(environ)


@guarded
def prepare() -> None:
    """Get ready before the first request comes."""
    from stagetrace.runtime.runtime import runtime

    runtime.prepare_now()
    recorder()


@guarded
def deliver() -> None:
    """Deliver what has ended, as the server ends."""
    from stagetrace.runtime.runtime import runtime

    if runtime.ready:
        runtime.flush_now()


def hook(module: ModuleType) -> None:
    """Wrap a server's constructor and its loop, or what wsgiref runs."""
    if module.__name__ == "wsgiref.handlers":
        module.BaseHandler.run = _running(module.BaseHandler.run)
        return
    if module.__name__ == "wsgiref.simple_server":
        module.WSGIServer.serve_forever = _delivering(module.WSGIServer.serve_forever)
        return
    for name, attribute, loop in SERVERS[module.__name__]:
        server = getattr(module, name)
        if attribute:
            server.__init__ = _keeping(server.__init__, attribute)
        if hasattr(server, loop):  # perhaps of a base of it
            setattr(server, loop, _prepared(getattr(server, loop)))


def _keeping(original: Any, attribute: str) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _wrap(self, attribute)

    return __init__


@guarded
def _wrap(server: Any, attribute: str) -> None:
    app = getattr(server, attribute)
    if app is not None:
        setattr(server, attribute, traced(app))


def _prepared(original: Any) -> Any:
    delivering = _delivering(original)

    @functools.wraps(original)
    def loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepare()
        return delivering(self, *args, **kwargs)

    return loop


def _delivering(original: Any) -> Any:
    """Return a loop that delivers as SIGTERM ends it. Without `prepare`: that of wsgiref may serve metrics alone."""
    from stagetrace.runtime.sigterm_python import delivering_first

    @functools.wraps(original)
    def loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        with delivering_first():
            return original(self, *args, **kwargs)

    return loop


def _running(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any, application: Any) -> Any:
        return original(self, traced(application))

    return run
