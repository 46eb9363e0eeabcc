"""Starlette, and the parts of FastAPI that replace Starlette's: route and background tasks of a request.

Under a server without a patch, the request itself is recorded here.
"""

from __future__ import annotations

import functools
from functools import partial
from operator import attrgetter
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report, switch
from stagetrace.instrumentation.base import patching, wrap_all
from stagetrace.protocols.asgi import task_in_span
from stagetrace.protocols.base import request_in
from stagetrace.request.current import SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def patch_routing(module: ModuleType) -> None:
    """Wrap `handle` of the routes and mounts that the module defines: a request goes through each that it matches."""
    notes = {"Mount": _note_mount, **dict.fromkeys(("Route", "WebSocketRoute", "APIRoute"), _note_route)}
    classes = [(vars(module).get(name), partial(_noting, note=note)) for name, note in notes.items()]
    wrap_all((cls, "handle", wrap) for cls, wrap in classes if _defines(cls, module))


def _defines(cls: Any, module: ModuleType) -> bool:
    return cls is not None and cls.__module__ == module.__name__ and "handle" in vars(cls)


def _outermost(original: Any) -> Any:
    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        if (
            type(scope.get(SCOPE_KEY, "")) is not str
        ):  # recorded by the patch of the server, or of FastAPI, which calls this one
            return await original(self, scope, receive, send)
        pass_on = _serving()
        if pass_on is None:
            return await original(self, scope, receive, send)
        return await pass_on(original, self, scope, receive, send)

    return __call__


@functools.cache
@guarded
def _serving() -> Callable[..., Any]:
    """Return the function that serves a request with recording; None if it cannot be imported."""
    from stagetrace.protocols.asgi import pass_on

    return pass_on


def _noting(original: Any, note: Any) -> Any:
    patch = switch(__name__)

    @functools.wraps(original)
    def handle(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        request = scope.get(SCOPE_KEY)
        if request is not None and not patch.off:
            try:
                if type(request) is str:
                    request = None  # lest this fails
                    request = request_in(scope)
                if getattr(request, "handler", self) is not self:  # FastAPI's `handle` calls Starlette's
                    request.handler = self
                    note(self, scope, request)
            except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
                report(__name__, error)
        work = original(self, scope, receive, send)
        if request is not None and type(work) is CoroutineType and request.step is None:
            return _of_another_task(work, request)
        return work

    return handle


def _of_another_task(work: Any, request: Any) -> Any:
    """Return a coroutine that awaits `work` in another task of the request, such as a middleware starts."""
    try:
        from stagetrace.request.loop_blockers import stepped

        return stepped(work, request)
    except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
        report(__name__, error)
        return work


def _note_mount(mount: Any, _scope: Any, request: Any) -> None:
    request.enter_mount(mount.path)


def _note_route(route: Any, scope: Any, request: Any) -> None:
    # FastAPI from 0.137 on: a route of an included router does not contain the router's prefix.
    included = (scope.get("fastapi") or {}).get("effective_route_context")
    if included is not None and included.original_route is route:
        route = included
    request.set_route(route.path)


patch_applications = patching({"Starlette.__call__": _outermost})  # under a server that is not patched
# A background task begins when the response is complete.
patch_background = patching({"BackgroundTask.__call__": partial(task_in_span, function_of=attrgetter("func"))})
