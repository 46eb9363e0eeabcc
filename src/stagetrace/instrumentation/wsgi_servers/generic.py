"""WSGI servers that need no more than their application wrapped. A server of this kind is one function here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.wsgi.application import traced
from stagetrace.instrumentation.wsgi_servers.base import delivering, patch_server

if TYPE_CHECKING:
    from types import ModuleType


def patch_werkzeug(module: ModuleType) -> None:
    """Wrap werkzeug's server, which Flask's `run` starts, too."""
    patch_server(module.BaseWSGIServer, "serve_forever", "app")


def patch_cheroot(module: ModuleType) -> None:
    """Wrap cheroot's WSGI server, which is CherryPy's, too."""
    patch_server(module.Server, "serve", "wsgi_app")


def patch_gevent(module: ModuleType) -> None:
    """Wrap gevent's WSGI server."""
    patch_server(module.WSGIServer, "serve_forever", "application")


def patch_wsgiref_handlers(module: ModuleType) -> None:
    """Wrap the method that runs an application for one request."""
    module.BaseHandler.run = _running(module.BaseHandler.run)


def patch_wsgiref_server(module: ModuleType) -> None:
    """Wrap the serving loop. It does not prepare: programs that serve nothing but metrics use it."""
    module.WSGIServer.serve_forever = delivering(module.WSGIServer.serve_forever)


def _running(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any, application: Any) -> Any:
        return original(self, traced(application))

    return run
