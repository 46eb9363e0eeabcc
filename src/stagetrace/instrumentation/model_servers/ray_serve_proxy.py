"""Ray Serve's proxy: its requests have the route that Ray finds; health checks are not recorded."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import request_in
from stagetrace.runtime.runtime import runtime
from stagetrace.service_name import name_service

if TYPE_CHECKING:
    from types import ModuleType

NAME = "ray-serve-proxy"  # the service's name, if the environment gives none


def patch_proxy(module: ModuleType) -> None:
    """Wrap the constructor of the HTTP proxy, and the method that finds the route. Ray kills the process at its end."""
    proxy, http = module.GenericProxy, module.HTTPProxy
    made, found = http.__init__, proxy._get_response_handler_info
    http.__init__ = _naming(made)
    proxy._get_response_handler_info = _noting(found)


def _naming(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _note_process()
        original(self, *args, **kwargs)

    return __init__


@guarded
def _note_process() -> None:
    name_service(NAME)
    runtime.deliver_immediately()


def _noting(original: Any) -> Any:
    @functools.wraps(original)
    def _get_response_handler_info(self: Any, *args: Any, **kwargs: Any) -> Any:
        _exclude(*args, **kwargs)
        found = original(self, *args, **kwargs)
        _note_route(found, *args, **kwargs)
        return found

    return _get_response_handler_info


@guarded
def _exclude(proxy_request: Any) -> None:
    """Exclude requests for the health or the routes of the proxy."""
    if proxy_request.is_health_request or proxy_request.is_route_request:
        request = request_in(getattr(proxy_request, "scope", {}))  # gRPC has none
        if hasattr(request, "exclude"):
            request.exclude()


@guarded
def _note_route(found: Any, proxy_request: Any) -> None:
    request = request_in(getattr(proxy_request, "scope", {}))
    if found.metadata.route and hasattr(request, "set_route"):
        request.set_route(found.metadata.route)
