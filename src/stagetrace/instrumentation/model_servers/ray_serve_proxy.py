"""Ray Serve's proxy: a request of it has the route that Ray finds; what only asks for its health is none."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import request_in
from stagetrace.runtime.runtime import runtime
from stagetrace.service_name import name_service

if TYPE_CHECKING:
    from types import ModuleType

NAME = "ray-serve-proxy"  # of the service, where the environment gives none


def patch_proxy(module: ModuleType) -> None:
    """Wrap what makes a proxy for HTTP, and what finds out who answers a request. Ray kills the process at its end."""
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
        _leave_out(*args, **kwargs)
        found = original(self, *args, **kwargs)
        _note_route(found, *args, **kwargs)
        return found

    return _get_response_handler_info


@guarded
def _leave_out(proxy_request: Any) -> None:
    """Record nothing of what asks whether the proxy is well, or for its routes."""
    if proxy_request.is_health_request or proxy_request.is_route_request:
        request = request_in(getattr(proxy_request, "scope", {}))  # gRPC has none
        if hasattr(request, "leave_out"):
            request.leave_out()


@guarded
def _note_route(found: Any, proxy_request: Any) -> None:
    request = request_in(getattr(proxy_request, "scope", {}))
    if found.metadata.route and hasattr(request, "serve_by"):
        request.serve_by(found.metadata.route)
