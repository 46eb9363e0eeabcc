"""BlackSheep: the route and the mounts of a request or websocket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.base import after, patching
from stagetrace.request.current import current

if TYPE_CHECKING:
    from types import ModuleType

FALLBACK = b"*"  # the pattern of the fallback, which serves requests without a route


def patch_routing(module: ModuleType) -> None:
    """Wrap the methods that find the route of a request."""
    cached = module.Router.get_match_by_method_and_path
    # Where routes have filters, the second method is called for each.
    names = ("Router.get_match_by_method_and_path", "RouterFiltersMixin.get_match")
    patching(dict.fromkeys(names, after(_note)))(module)
    for name in ("cache_info", "cache_clear", "cache_parameters"):  # of `lru_cache`
        if hasattr(cached, name):
            setattr(module.Router.get_match_by_method_and_path, name, getattr(cached, name))


def _note(match: Any, *_: Any, **__: Any) -> None:
    request: Any = current.get()
    if match is not None and match.pattern != FALLBACK and hasattr(request, "set_route"):
        request.set_route(match.pattern.decode())


def _note_mount(_: Any, _mixin: Any, _scope: Any, match: Any) -> None:
    request: Any = current.get()
    if hasattr(request, "enter_mount"):
        request.enter_mount(match.pattern.decode().removesuffix("/*"))


patch_application = patching({"MountMixin.handle_mount_path": after(_note_mount)})
