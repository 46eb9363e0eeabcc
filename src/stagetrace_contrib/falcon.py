"""Falcon, with WSGI and with ASGI: the route of a request.

Under a WSGI server without a patch, the request itself is recorded here.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.protocols.wsgi import outermost

if TYPE_CHECKING:
    from types import ModuleType


def patch_app(module: ModuleType) -> None:
    """Wrap the method that finds the responder, which the ASGI application inherits, and the WSGI application."""
    module.App._get_responder = _noting(module.App._get_responder)
    module.App.__call__ = outermost(module.App.__call__)


def _noting(original: Any) -> Any:
    @functools.wraps(original)
    def _get_responder(self: Any, req: Any) -> Any:
        found = original(self, req)
        _note(found)
        return found

    return _get_responder


@guarded
def _note(found: Any) -> None:
    from stagetrace.protocols.wsgi_request import note_route

    template = found[-1]  # None for a sink, for files, and without a route
    if template:
        note_route(template)
