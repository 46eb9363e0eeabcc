"""What servers share: they get their application wrapped, prepare before the first request, deliver at the end.

Programs that serve nothing import this too: no OpenTelemetry.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report
from stagetrace.instrumentation.base import before, patching, then
from stagetrace.protocols.wsgi import recorder, traced

if TYPE_CHECKING:
    from stagetrace.instrumentation.base import Patch, Wrap


@guarded
def the_runtime() -> Any:
    """Return the runtime, with all imported that the first request would wait for."""
    from stagetrace.runtime.runtime import runtime

    return runtime


@guarded
def hurry(*_: Any, **__: Any) -> None:
    """Deliver each request that ends from now on immediately."""
    from stagetrace.runtime.runtime import runtime

    runtime.deliver_immediately()


def delivering(original: Any) -> Any:
    """Return a serving loop that delivers spans when SIGTERM ends it."""
    from stagetrace.runtime.sigterm_python import delivering_first

    @functools.wraps(original)
    def loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        with delivering_first():
            return original(self, *args, **kwargs)

    return loop


# --- of WSGI


def wsgi_server(name: str, loop: str, attribute: str) -> Patch:
    """Return the patch of a server's class: its constructor keeps the application as `attribute`; `loop` serves."""
    return patching({f"{name}.__init__": keeping(attribute), f"{name}.{loop}": serving_loop})


def keeping(attribute: str) -> Wrap:
    """Return how to wrap a constructor that keeps a WSGI application under this name."""

    def wrap_wsgi(holder: Any) -> None:
        app = getattr(holder, attribute)
        if app is not None:
            setattr(holder, attribute, traced(app))

    return then(wrap_wsgi)


def serving_loop(original: Any) -> Any:
    """Return a serving loop that prepares first, and delivers spans when SIGTERM ends it."""
    return before(prepare)(delivering(original))


@guarded
def prepare(*_: Any, **__: Any) -> None:
    """Prepare the recording before the first request."""
    from stagetrace.runtime.runtime import runtime

    runtime.prepare_now()
    recorder()


@guarded
def deliver() -> None:
    """Deliver the requests that have ended, at the end of the server."""
    from stagetrace.runtime.runtime import runtime

    if runtime.ready:
        runtime.flush_now()


# --- on an event loop


@guarded
def wrap_asgi(holder: Any, attribute: str) -> None:
    """Wrap the ASGI application that is an attribute of what holds it."""
    from stagetrace.protocols.asgi import around

    app = getattr(holder, attribute)
    setattr(holder, attribute, around(app) or app)


async def be_prepared() -> None:
    """Prepare the recording, if that was not done."""
    try:
        runtime = the_runtime()
        if runtime is not None and not runtime.ready:
            await runtime.prepare()
    except Exception as error:  # noqa: BLE001 -- as `guarded`, for a coroutine
        report(f"{__name__}.be_prepared", error)


def preparing(original: Any) -> Any:
    """Return a coroutine function that prepares when the application has started, which may have set a provider."""

    @functools.wraps(original)
    async def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await original(self, *args, **kwargs)
        if not getattr(self, "should_exit", False):
            await be_prepared()
        return result

    return start


def flushing(original: Any) -> Any:
    """Return a coroutine function that delivers when the last request has ended: exit handlers may never run."""

    @functools.wraps(original)
    async def end(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = the_runtime()
        try:
            return await original(self, *args, **kwargs)
        finally:
            if runtime is not None and runtime.ready:
                await runtime.flush()

    return end
