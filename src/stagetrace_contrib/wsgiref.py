"""wsgiref: the standard library's WSGI server, and the handler that other servers use."""

from __future__ import annotations

import functools
from typing import Any

from stagetrace.instrumentation.base import patching
from stagetrace.instrumentation.servers import delivering
from stagetrace.protocols.wsgi import traced


def _running(original: Any) -> Any:
    @functools.wraps(original)
    def run(self: Any, application: Any) -> Any:
        return original(self, traced(application))

    return run


patch_handlers = patching({"BaseHandler.run": _running})
# It does not prepare: programs that serve nothing but metrics use it.
patch_simple_server = patching({"WSGIServer.serve_forever": delivering})
