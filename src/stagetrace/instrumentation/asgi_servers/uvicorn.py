"""uvicorn, alone and in gunicorn's workers: whatever application it loads is served inside entry spans.

Also where the application has no lifespan to tell us of it, record from the first request on and deliver the last.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.runtime.runtime import runtime

if TYPE_CHECKING:
    from types import ModuleType


def hook(module: ModuleType) -> None:
    """Wrap what loads the application (`uvicorn.config`), starts it (`uvicorn.lifespan`), serves (`uvicorn.server`)."""
    if module.__name__.endswith("config"):
        module.Config.load = _loading(module.Config.load)
    elif module.__name__.endswith("server"):
        module.Server.shutdown = _flushing(module.Server.shutdown)
    else:
        lifespan = getattr(module, "LifespanOn", None) or module.LifespanOff
        lifespan.startup = _preparing(lifespan.startup)


def _loading(original: Any) -> Any:
    @functools.wraps(original)
    def load(self: Any) -> Any:
        result = original(self)
        _surround(self)
        return result

    return load


@guarded
def _surround(config: Any) -> None:
    from stagetrace.instrumentation.asgi.application import around

    outer, app = None, config.loaded_app
    while type(app).__module__ == "uvicorn.middleware.proxy_headers":  # which says who the client is
        outer, app = app, app.app
    served = around(app)
    if served is None:
        return
    if outer is None:
        config.loaded_app = served
    else:
        outer.app = served


def _preparing(original: Any) -> Any:
    """Prepare when the application has started, it may have set a provider of its own, and the server has not.

    Requests that come between its start and its first tick get no `date`.
    """

    @functools.wraps(original)
    async def startup(self: Any) -> None:
        await original(self)
        if not runtime.ready and not self.should_exit:
            await runtime.prepare()

    return startup


def _flushing(original: Any) -> Any:
    """Flush after the server's own shutdown: it re-raises SIGTERM next, and `atexit` never runs."""

    @functools.wraps(original)
    async def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime.deliver_immediately()
        try:
            return await original(self, *args, **kwargs)
        finally:
            if runtime.ready:
                await runtime.flush()

    return shutdown
