"""FastAPI: open a timeline around each request, get an entry span, and put the request's view of it in context.

The entry span comes from opentelemetry-instrumentation-fastapi. Where the user or opentelemetry-instrument has
installed that already, or gave FastAPI's own telemetry a provider, theirs is adopted and none is added.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from stagetrace import distro
from stagetrace.guard import guarded
from stagetrace.instrumentation.asgi import timed_receive, timed_send
from stagetrace.recording.context import RequestSpan, current, entries, recording
from stagetrace.recording.timeline import Timeline

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.instrumentation.asgi import Receive, Send

OTEL_PACKAGE = "opentelemetry.instrumentation."
STABLE_NAMES = "OTEL_SEMCONV_STABILITY_OPT_IN"
# What opentelemetry-instrumentation's suppress_http_instrumentation() sets; we need it for a part of the context only.
SUPPRESS_KEY = otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY
# In the scope, which a mounted app shares with the app around it, and a later request of the connection does not.
SCOPE_KEY = "stagetrace.request"
# Public in spirit: FastAPI's own telemetry leaves a request alone that carries this key in its scope.
NATIVE_KEY = "fastapi.telemetry"


def hook(module: ModuleType) -> None:
    """Wrap two methods on the class: apps made before and subclasses are covered too."""
    app_class = module.FastAPI
    app_class.__call__ = _outermost(app_class.__call__)
    app_class.build_middleware_stack = _stack_builder(app_class.build_middleware_stack)


def _outermost(original: Any) -> Any:
    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await original(self, scope, receive, _lifespan_send(send))
            return
        timeline = _open(scope) if kind == "http" else None
        if timeline is None:
            await original(self, scope, receive, send)
            return
        if not distro.ready():
            await distro.prepare()  # a server without lifespan: the first request pays
        current.set(timeline)  # each request has a task, and so a context, of its own
        token = _enter(timeline)
        try:
            await original(self, scope, timed_receive(timeline, receive), timed_send(timeline, send))
        finally:
            if token is not None:
                otel_context.detach(token)

    return __call__


@guarded
def _open(scope: Any) -> Timeline | None:
    """Return the timeline of a request that comes in here; None if it is inside one already."""
    outer = None if SCOPE_KEY in scope else recording()
    if SCOPE_KEY in scope or (outer is not None and current.get() is outer):
        # A mounted app, or a call within the process: part of the request around it.
        scope.setdefault(NATIVE_KEY, None)
        return None
    scope[SCOPE_KEY] = True
    return outer or Timeline()  # outer: somebody's entry span is open around the whole app


@guarded
def _enter(timeline: Timeline) -> Any:
    """Attach the context in which the request is to begin, if it is not the one at hand; return the token."""
    if timeline.bound:
        # An entry span is open around the whole app: keep the instrumentation inside it from adding another.
        return otel_context.attach(otel_context.set_value(SUPPRESS_KEY, value=True))
    if getattr(trace.get_current_span(), "end_time", None) is not None:
        # asyncio keeps the context of the task that resumed reading a connection, and its later requests begin in it
        # (cpython#140947): this span ended with an earlier request and is no parent of ours.
        return otel_context.attach(otel_context.Context())
    return None


def _lifespan_send(send: Send) -> Send:
    async def wrapped(message: Any) -> None:
        kind = message.get("type")
        if kind == "lifespan.startup.complete":
            # After the user's start-up code, which may have set a provider of its own.
            await distro.prepare()
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            # uvicorn re-raises SIGTERM after this, so that atexit never runs: the last chance to deliver.
            await distro.flush()
        await send(message)

    return wrapped


def _stack_builder(original: Any) -> Any:
    @functools.wraps(original)
    def build_middleware_stack(self: Any) -> Any:
        if _instrument(self):
            return self.build_middleware_stack()  # theirs now, which comes back here for the inner part
        stack = original(self)
        _insert_context(stack)
        return stack

    return build_middleware_stack


@guarded
def _instrument(app: Any) -> bool:
    """Give the app an entry span; return whether that replaced its stack builder."""
    if recording() is not None or _has_entry_span(app):
        return False
    if "http" not in os.environ.get(STABLE_NAMES, ""):
        os.environ[STABLE_NAMES] = ",".join(filter(None, (os.environ.get(STABLE_NAMES), "http")))
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(app, exclude_spans=["receive", "send"])
    return "build_middleware_stack" in vars(app)


def _has_entry_span(app: Any) -> bool:
    native = getattr(app, "_telemetry", None) or {}
    return (
        getattr(app, "_is_instrumented_by_opentelemetry", False)
        or (native.get("tracing", True) and native.get("tracer_provider") is not None)
        or any(getattr(middleware.cls, "__module__", "").startswith(OTEL_PACKAGE) for middleware in app.user_middleware)
    )


@guarded
def _insert_context(stack: Any) -> None:
    # Inside the outermost ServerErrorMiddleware, whose type opentelemetry-instrumentation-fastapi insists on, and
    # inside the middleware that opens the entry span, where the user has added one.
    place = layer = stack
    while layer is not None:
        if type(layer).__module__.startswith(OTEL_PACKAGE):
            place = layer
        layer = getattr(layer, "app", None)
    place.app = _InContext(place.app)


class _InContext:
    """Innermost part of ours: the entry span is open, and the application sees it through RequestSpan."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        token = _attach(scope) if scope["type"] == "http" else None
        try:
            await self.app(scope, receive, send)
        finally:
            if token is not None:
                otel_context.detach(token)


@guarded
def _attach(scope: Any) -> Any:
    span: Any = trace.get_current_span()
    timeline = entries.get(span.get_span_context().span_id)
    if timeline is None or isinstance(span, RequestSpan):
        return None
    current.set(timeline)
    if scope.get(NATIVE_KEY) is None and "http.route" not in getattr(span, "attributes", ()):
        _set_route(span, scope)
    context = otel_context.set_value(SUPPRESS_KEY, value=False)
    return otel_context.attach(trace.set_span_in_context(RequestSpan(span, timeline), context))


@guarded
def _set_route(span: Any, scope: Any) -> None:
    """Give an adopted entry span its route: OpenTelemetry's plain ASGI middleware knows none."""
    from opentelemetry.instrumentation.fastapi import _get_route_details

    route = _get_route_details(scope)
    if route:
        span.set_attribute("http.route", route)
