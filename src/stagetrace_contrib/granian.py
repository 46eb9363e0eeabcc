"""granian, its ASGI interfaces: the application that it loads is wrapped, so that each request has an entry span."""

from __future__ import annotations

import functools
from typing import Any

from stagetrace.guard import guarded
from stagetrace.runtime.runtime import runtime


def patch_asgi(module: Any) -> None:
    """Wrap the two callables that a worker passes its application to: for requests, and for the lifespan."""
    module._callback_wrapper = _wrapping(module._callback_wrapper, 0)
    module.LifespanProtocol.__init__ = _wrapping(module.LifespanProtocol.__init__, 1)
    module.LifespanProtocol.startup = _preparing(module.LifespanProtocol.startup)
    module.LifespanProtocol.shutdown = _flushing(module.LifespanProtocol.shutdown)


def _wrapping(original: Any, place: int) -> Any:
    """Return a callable that passes on its argument at position `place`, an application, wrapped."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > place:
            args = (*args[:place], _wrapped(args[place]) or args[place], *args[place + 1 :])
        return original(*args, **kwargs)

    return call


@guarded
def _wrapped(app: Any) -> Any:
    from stagetrace.protocols.asgi import around

    return around(app)


def _preparing(original: Any) -> Any:
    @functools.wraps(original)
    async def startup(self: Any) -> Any:
        result = await original(self)
        if not runtime.ready:
            await runtime.prepare()
        return result

    return startup


def _flushing(original: Any) -> Any:
    @functools.wraps(original)
    async def shutdown(self: Any) -> Any:
        try:
            return await original(self)
        finally:
            if runtime.ready:
                await runtime.flush()

    return shutdown
