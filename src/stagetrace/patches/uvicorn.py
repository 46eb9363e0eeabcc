"""uvicorn, alone and in gunicorn's workers: the application that it loads is wrapped: each request has an entry span.

The patches of its lifespan and its server record the first request, and deliver the last, where the application has no
lifespan. Recording is prepared between the start of the application and that of the server. Later would do harm: to
requests between its start and its first tick uvicorn sends no `date`.
"""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.base import before, patching, then
from stagetrace.instrumentation.servers import flushing, hurry, preparing


def _wrap_application(config: Any) -> None:
    from stagetrace.protocols.asgi import around

    outer, app = None, config.loaded_app
    while type(app).__module__ == "uvicorn.middleware.proxy_headers":
        outer, app = app, app.app  # it sets the address of the client, and stays outermost
    served = around(app)
    if served is None:
        return
    if outer is None:
        config.loaded_app = served
    else:
        outer.app = served


def _ending(shutdown: Any) -> Any:
    """Flush after the server's own shutdown: then it raises SIGTERM again, so that `atexit` never runs."""
    return before(hurry)(flushing(shutdown))


patch_config = patching({"Config.load": then(_wrap_application)})
patch_lifespan_on = patching({"LifespanOn.startup": preparing})
patch_lifespan_off = patching({"LifespanOff.startup": preparing})
patch_server = patching({"Server.shutdown": _ending})
