"""wsgiref: the standard library's WSGI server, and the handler that other servers use."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.wsgi_servers import delivering
from stagetrace.protocols.wsgi import traced

if TYPE_CHECKING:
    from types import ModuleType


def patch_handlers(module: ModuleType) -> None:
    """Wrap the method that runs an application for one request."""
    module.BaseHandler.run = _running(module.BaseHandler.run)


def patch_simple_server(module: ModuleType) -> None:
    """Wrap the serving loop. It does not prepare: programs that serve nothing but metrics use it."""
    module.WSGIServer.serve_forever = delivering(module.WSGIServer.serve_forever)


def _running(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any, application: Any) -> Any:
        return original(self, traced(application))

    return run
