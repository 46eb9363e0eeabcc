"""hypercorn, on asyncio and uvloop: the application that it loads is wrapped, so that requests have entry spans."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.runtime.runtime import runtime
from stagetrace.runtime.sigterm_python import begin

if TYPE_CHECKING:
    from types import ModuleType


def patch_app_wrappers(module: ModuleType) -> None:
    """Wrap the constructor of the object that keeps the application."""
    module.ASGIWrapper.__init__ = _holding(module.ASGIWrapper.__init__)


def patch_lifespan(module: ModuleType) -> None:
    """Wrap the start and the end of the application."""
    module.Lifespan.wait_for_startup = _preparing(module.Lifespan.wait_for_startup)
    module.Lifespan.wait_for_shutdown = _flushing(module.Lifespan.wait_for_shutdown)


def _holding(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _wrap_application(self)

    return __init__


@guarded
def _wrap_application(wrapper: Any) -> None:
    from stagetrace.protocols.asgi import around

    wrapper.app = around(wrapper.app) or wrapper.app


def _preparing(original: Any) -> Any:
    """Prepare once the application has started, or was found to have no lifespan.

    From then on SIGTERM waits for the delivery, in C or not: hypercorn sends it to its other workers as soon as one has
    ended, and they do not handle it.
    """

    @functools.wraps(original)
    async def wait_for_startup(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, *args, **kwargs)
        if not runtime.ready:
            await runtime.prepare()
        begin()
        return result

    return wait_for_startup


def _flushing(original: Any) -> Any:
    """Flush when the last request has ended: a worker process runs no exit handlers."""

    @functools.wraps(original)
    async def wait_for_shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            if runtime.ready:
                await runtime.flush()

    return wait_for_shutdown
