"""Litestar: the route of a request, and its background tasks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.protocols.asgi import task_in_span
from stagetrace.request.current import current

if TYPE_CHECKING:
    from types import ModuleType

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def patch_background_tasks(module: ModuleType) -> None:
    """Wrap the running of a background task."""
    module.BackgroundTask.__call__ = task_in_span(module.BackgroundTask.__call__, _function_of)


def patch_router(module: ModuleType) -> None:
    """Wrap the router's lookup of the route of a path."""
    router = module.ASGIRouter
    if "handle_routing" in router.__slots__:  # with a cache for each router
        router.__init__ = _caching(router.__init__)
    else:
        router.handle_routing = _noting(router.handle_routing)


def _caching(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        cached = self.handle_routing
        self.handle_routing = functools.partial(_noting(lambda _router, **asked: cached(**asked)), self)

    return __init__


def _noting(original: Any) -> Any:
    @functools.wraps(original)
    def handle_routing(self: Any, path: str, method: str | None) -> Any:
        try:
            found = original(self, path=path, method=method)
        except Exception as error:
            if type(error).__name__ == "MethodNotAllowedException":
                _note_other_methods(original, self, path)
            raise
        _note(self, path, found)
        return found

    return handle_routing


@guarded
def _note(router: Any, path: str, found: Any) -> None:
    request: Any = current.get()
    if not hasattr(request, "set_route"):
        return
    template = found[-1]
    if template:
        request.set_route(template)
    else:
        mounts = [mount for mount in router._mount_routes if path.startswith(mount)]
        request.enter_mount(max(mounts, key=len, default="").rstrip("/"))


@guarded
def _note_other_methods(original: Any, router: Any, path: str) -> None:
    for method in METHODS:
        try:
            found = original(router, path=path, method=method)
        except Exception:  # noqa: BLE001, S112 -- there is none for this method
            continue
        _note(router, path, found)
        return


def _function_of(task: Any) -> Any:
    """Return the function of a task as the service defined it: Litestar wraps synchronous ones."""
    return getattr(task.fn, "func", None) or task.fn
