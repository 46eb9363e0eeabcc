"""uvicorn, alone and in gunicorn's workers: the application that it loads is wrapped: each request has an entry span.

The patches of its lifespan and its server record the first request, and deliver the last, where the application has no
lifespan.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.runtime.runtime import runtime

if TYPE_CHECKING:
    from types import ModuleType


def patch_config(module: ModuleType) -> None:
    """Wrap the method that loads the application."""
    module.Config.load = _loading(module.Config.load)


def patch_lifespan_on(module: ModuleType) -> None:
    """Wrap the start of an application that has a lifespan."""
    module.LifespanOn.startup = _preparing(module.LifespanOn.startup)


def patch_lifespan_off(module: ModuleType) -> None:
    """Wrap the start of an application that has no lifespan."""
    module.LifespanOff.startup = _preparing(module.LifespanOff.startup)


def patch_server(module: ModuleType) -> None:
    """Wrap the server's shutdown."""
    module.Server.shutdown = _flushing(module.Server.shutdown)


def _loading(original: Any) -> Any:
    @functools.wraps(original)
    def load(self: Any) -> Any:
        result = original(self)
        _wrap_application(self)
        return result

    return load


@guarded
def _wrap_application(config: Any) -> None:
    from stagetrace.protocols.asgi import around

    outer, app = None, config.loaded_app
    while (
        type(app).__module__ == "uvicorn.middleware.proxy_headers"
    ):  # it sets the address of the client, and stays outermost
        outer, app = app, app.app
    served = around(app)
    if served is None:
        return
    if outer is None:
        config.loaded_app = served
    else:
        outer.app = served


def _preparing(original: Any) -> Any:
    """Prepare between the start of the application, which may set a provider, and that of the server.

    Later would do harm: to requests between its start and its first tick uvicorn sends no `date`.
    """

    @functools.wraps(original)
    async def startup(self: Any) -> None:
        await original(self)
        if not runtime.ready and not self.should_exit:
            await runtime.prepare()

    return startup


def _flushing(original: Any) -> Any:
    """Flush after the server's own shutdown: then it raises SIGTERM again, so that `atexit` never runs."""

    @functools.wraps(original)
    async def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime.deliver_immediately()
        try:
            return await original(self, *args, **kwargs)
        finally:
            if runtime.ready:
                await runtime.flush()

    return shutdown
