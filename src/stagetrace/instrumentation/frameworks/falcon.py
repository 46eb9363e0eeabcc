"""Falcon, of WSGI and ASGI alike: by which route a request is served.

Under a WSGI server that no hook covers, the request itself.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.wsgi.application import outermost

if TYPE_CHECKING:
    from types import ModuleType


def patch_app(module: ModuleType) -> None:
    """Wrap what finds the responder of a request, which the application for ASGI inherits, and the one for WSGI."""
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
    from stagetrace.instrumentation.wsgi.request import note_route

    template = found[-1]  # None of a sink, of files, and where there is no route
    if template:
        note_route(template)
