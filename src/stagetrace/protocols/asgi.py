"""Any ASGI application, as its server calls it, inside an entry span of its own; and its background tasks."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from functools import partial
from inspect import iscoroutinefunction
from time import time_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.protocols import http
from stagetrace.protocols.asgi_channels import WHERE, Messages
from stagetrace.protocols.asgi_request import AsgiRequest
from stagetrace.protocols.connection import show, waited_ns
from stagetrace.protocols.scope import is_part
from stagetrace.request import limits
from stagetrace.request.context import here
from stagetrace.request.current import SCOPE_KEY, current, entries
from stagetrace.request.loop_blockers import stepped
from stagetrace.runtime.runtime import runtime
from stagetrace.sources import loops
from stagetrace.tracing.span import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


# --- Any ASGI application, called inside an entry span of its own.
#
# The patch of a server or of a framework calls `serve` in place of the application, before anything else runs.

_patch = switch(WHERE)


async def serve(original: Any, app: Any, scope: Any, receive: Any, send: Any) -> Any:
    """Return what `original(app, scope, receive, send)` does on a request or websocket, inside its own entry span."""
    request = None
    if not _patch.off:
        try:
            connection = getattr(send, "__self__", None)
            waited = waited_ns(connection)
            now = time_ns()
            request = begin_request(scope, connection, now - waited)
            loops.record(now)
            if waited and request is not None:
                show(request, now - waited, now)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
            report(WHERE, error)
            request = None
    if request is None:
        return await original(app, scope, receive, send)
    try:
        if scope["type"] == "http":
            work = original(app, scope, partial(request.receive, receive), partial(request.send, send))
        else:
            messages = request.messages = Messages(request, receive, send)
            work = original(app, scope, messages.receive, messages.send)
        return await (stepped(work, request) if type(work) is CoroutineType else work)
    except Exception as error:
        request.fail(error)
        raise
    except BaseException:
        request.note_incomplete()
        raise
    finally:
        try:
            request.finish()
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)


def begin_request(
    scope: Any, connection: Any, started: int, kind: type[AsgiRequest] = AsgiRequest
) -> AsgiRequest | None:
    """Return the request that begins with this scope; None if it is a part of one, or not to be recorded.

    Its parent is the request whose scope was pickled, else whoever the headers name. A span in the context at hand is
    not: it may be one around the whole server, or that of an earlier request, whose context asyncio keeps for later
    ones of the connection (cpython#140947).
    """
    if (SCOPE_KEY in scope or current.get() is not None or entries or here.get_current()) and is_part(scope):
        return None
    urls = http.excluded()
    if urls is not None and urls.url_disabled(_url(scope)):
        return None
    recorder = here.recorder
    if recorder is None and not here.has_provider:
        return None
    request = kind(scope, connection, started, recorder)
    counted = http.wanted()
    if counted is not None and scope["type"] == "http":
        request.count_in(counted)
    return request


def _url(scope: Any) -> str:
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), None)
    if host is None:
        address, port = scope.get("server") or ("", None)
        host = f"{address}:{port}" if port else address
    return f"{scope.get('scheme', 'http')}://{host}{scope.get('path', '')}"


# --- An ASGI application as its server calls it: the place of the entry span, whatever the application is.
#
# The patch of a server wraps its application in `Served`. Patches of frameworks then add what they know, such as the
# route. Under a server without a patch, the `__call__` of FastAPI and Starlette are wrapped instead.


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


# --- What a request leaves to the background: no latency of its own, and a span of its own that links to the request.


def task_in_span(original: Any, function_of: Callable[[Any], Any]) -> Any:
    """Return the `__call__` of a task class, in a span named after the function that `function_of` finds in a task."""

    @functools.wraps(original)
    async def __call__(self: Any) -> None:
        # Nothing where opentelemetry's instrumentation makes the same span.
        span = None if hasattr(type(self), "_otel_original_call") else _start(function_of, self)
        if span is None:
            await original(self)
            return
        with span:
            await original(self)

    return __call__


def in_span(function: Any) -> Any:
    """Return a function that is to run in the background, in a span of its own when it is called."""
    if iscoroutinefunction(function):

        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            span = _start(_itself, function)
            if span is None:
                return await function(*args, **kwargs)
            with span:
                return await function(*args, **kwargs)

        return run

    @functools.wraps(function)
    def run_now(*args: Any, **kwargs: Any) -> Any:
        span = _start(_itself, function)
        if span is None:
            return function(*args, **kwargs)
        with span:
            return function(*args, **kwargs)

    return run_now


def _itself(function: Any) -> Any:
    return function


@guarded
def _start(function_of: Callable[[Any], Any], task: Any) -> Any:
    """Return a span under that of the request whose task it is, which may run yet; None where there is no such request.

    What the task does is not the request's time.
    """
    request = current.get()
    if request is None or request.entry is None:
        return None
    entry = request.entry
    current.set(None)
    function = function_of(task)
    name = f"BackgroundTask {getattr(function, '__name__', type(function).__name__)}"
    span = here.start_span(name, here.with_span(here.get_current(), entry), links=[Link(entry)])
    return None if span is None else _in_span(span, here.within(span))


@contextmanager
def _in_span(span: Any, inside: AbstractContextManager[Any]) -> Iterator[None]:
    """Let a span be the current one in the block, and end with it; an exception of the block is recorded on it."""
    try:
        with inside:
            yield
    except Exception as error:
        _fail(span, error)
        raise
    finally:
        _end(span)


@guarded
def _fail(span: Any, error: Exception) -> None:
    limits.record(span, error)
    here.set_error(span, limits.description_of(error))


@guarded_end
def _end(span: Any) -> None:
    span.end()
