"""Falcon, with WSGI and with ASGI: the route of a request.

Under a WSGI server without a patch, the request itself is recorded here.
"""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.base import after, patching
from stagetrace.protocols.wsgi import outermost


def _note(found: Any, *_: Any) -> None:
    from stagetrace.protocols.wsgi_request import note_route

    template = found[-1]  # None for a sink, for files, and without a route
    if template:
        note_route(template)


# The ASGI application inherits the method that finds the responder.
patch_app = patching({"App._get_responder": after(_note), "App.__call__": outermost})
