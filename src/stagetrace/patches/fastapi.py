"""FastAPI: requests under a server without a patch, and FastAPI's own telemetry.

Where FastAPI's own telemetry has a provider, its entry span is adopted; else it is kept from starting one.
"""

from __future__ import annotations

import functools
from typing import Any

from stagetrace.guard import guarded, switch
from stagetrace.instrumentation.base import after, patching
from stagetrace.protocols.asgi import pass_on
from stagetrace.request.context import here, meet_otel
from stagetrace.request.current import current

# In effect public: FastAPI's own telemetry ignores a request with this key in its scope.
NATIVE_KEY = "fastapi.telemetry"
ADOPTS = "_stagetrace_adopts"  # on an application: whether the entry spans come from its own telemetry


def _outermost(original: Any) -> Any:
    patch = switch(__name__)

    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        if patch.off:
            return await original(self, scope, receive, send)
        adopts = vars(self).get(ADOPTS)
        if not (_adopts(self) if adopts is None else adopts) and scope["type"] != "lifespan":
            scope.setdefault(NATIVE_KEY, None)
        return await pass_on(original, self, scope, receive, send)

    return __call__


def _adopts(app: Any) -> bool:
    adopts: bool | None = vars(app).get(ADOPTS)
    return bool(_adopts_uncached(app)) if adopts is None else adopts


@guarded
def _adopts_uncached(app: Any) -> bool:
    adopts = _has_entry_span(app)
    setattr(app, ADOPTS, adopts)
    return adopts


def _has_entry_span(app: Any) -> bool:
    native = getattr(app, "_telemetry", None) or {}
    return bool(native.get("tracing", True) and native.get("tracer_provider") is not None)


def _insert_context(stack: Any, app: Any) -> None:
    if _adopts(app):
        # Inside the outermost ServerErrorMiddleware, whose type opentelemetry-instrumentation-fastapi insists on.
        stack.app = _InContext(stack.app)


# On the class: applications made before and subclasses are covered too.
patch_applications = patching(
    {"FastAPI.__call__": _outermost, "FastAPI.build_middleware_stack": after(_insert_context)}
)


class _InContext:
    """The innermost middleware: the entry span is open here, and the application sees it as a RequestSpan."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = _attach() if scope["type"] == "http" else None
        try:
            await self.app(scope, receive, send)
        finally:
            if token is not None:
                here.detach(token)


@guarded
def _attach() -> Any:
    if not meet_otel() or getattr(here.current_span(), "is_of_request", False):
        return None
    from stagetrace.bridge.entry import adopted_here

    found = adopted_here()
    if found is None:
        return None
    request, around = found
    current.set(request)
    return here.attach(around)
