"""An ASGI application as its server calls it: the place of the entry span, whatever the application is.

The patch of a server wraps its application in `Served`. Patches of frameworks then add what they know, such as the
route. Under a server without a patch, the `__call__` of FastAPI and Starlette are wrapped instead.
"""

from __future__ import annotations

from typing import Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.asgi.serve import serve
from stagetrace.instrumentation.base import SCOPE_KEY
from stagetrace.runtime.runtime import runtime


class Served:
    """An application, with what surrounds each of its requests. To all who look, it is the application."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        """Serve one request, websocket, or the application's lifespan; return what it does, None if it is right."""
        return await pass_on(_call, self.app, scope, receive, send)


def _call(app: Any, scope: Any, receive: Any, send: Any) -> Any:
    return app(scope, receive, send)


def pass_on(original: Any, app: Any, scope: Any, receive: Any, send: Any) -> Any:
    """Return what to await of `original(app, scope, receive, send)`, as the scope says: a request, or the lifespan.

    No coroutine of its own: each costs a request a frame, through which all goes that it waits for.
    """
    if type(scope.get(SCOPE_KEY, "")) is not str:  # recorded, or not to be
        return original(app, scope, receive, send)
    if scope["type"] == "http" and runtime.ready:
        return serve(original, app, scope, receive, send)
    return _pass_on(original, app, scope, receive, send)


async def _pass_on(original: Any, app: Any, scope: Any, receive: Any, send: Any) -> Any:
    kind = scope["type"]
    if kind == "lifespan":
        scope[SCOPE_KEY] = None  # an application within this one tells us nothing new
        return await original(app, scope, receive, _lifespan_send(send))
    if kind in ("http", "websocket"):
        if not runtime.ready:
            await runtime.prepare()  # no lifespan, and a server without a patch: the first request waits for it
        return await serve(original, app, scope, receive, send)
    return await original(app, scope, receive, send)


@guarded
def around(app: Any) -> Any:
    """Return what a server is to call in place of an application."""
    return app if isinstance(app, Served) else Served(app)


def _lifespan_send(send: Any) -> Any:
    async def wrapped(message: Any) -> None:
        kind = message.get("type")
        if kind == "lifespan.startup.complete":
            # After the user's start-up code, which may have set a provider of its own.
            await runtime.prepare()
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            # uvicorn re-raises SIGTERM after this, so that atexit never runs: the last chance to deliver.
            await runtime.flush()
        await send(message)

    return wrapped
