"""BlackSheep: the route and the mounts of a request or websocket."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.protocols.scope import adapter_of
from stagetrace.request.current import current

if TYPE_CHECKING:
    from types import ModuleType

FALLBACK = b"*"  # the pattern of the fallback, which serves requests without a route


def patch_application(module: ModuleType) -> None:
    """Wrap the method that passes a request to a mounted application."""
    module.MountMixin.handle_mount_path = _mounting(module.MountMixin.handle_mount_path)


def patch_routing(module: ModuleType) -> None:
    """Wrap the methods that find the route of a request."""
    cached = module.Router.get_match_by_method_and_path
    module.Router.get_match_by_method_and_path = _noting(cached)
    for name in ("cache_info", "cache_clear", "cache_parameters"):  # of `lru_cache`
        if hasattr(cached, name):
            setattr(module.Router.get_match_by_method_and_path, name, getattr(cached, name))
    # Where routes have filters, this method is called for each.
    module.RouterFiltersMixin.get_match = _noting(module.RouterFiltersMixin.get_match)


def _noting(original: Any) -> Any:
    @functools.wraps(original)
    def get_match(*args: Any, **kwargs: Any) -> Any:
        match = original(*args, **kwargs)
        _note(match)
        return match

    return get_match


@guarded
def _note(match: Any) -> None:
    request: Any = adapter_of(current.get())
    if match is not None and match.pattern != FALLBACK and hasattr(request, "set_route"):
        request.set_route(match.pattern.decode())


def _mounting(original: Any) -> Any:
    @functools.wraps(original)
    def handle_mount_path(self: Any, scope: Any, route_match: Any) -> Any:
        result = original(self, scope, route_match)
        _note_mount(route_match)
        return result

    return handle_mount_path


@guarded
def _note_mount(match: Any) -> None:
    request: Any = adapter_of(current.get())
    if hasattr(request, "enter_mount"):
        request.enter_mount(match.pattern.decode().removesuffix("/*"))
