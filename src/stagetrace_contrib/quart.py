"""Quart: the route of a request, and its background tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.instrumentation.base import before, patching, then
from stagetrace.protocols.asgi import in_span
from stagetrace.protocols.base import request_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

METHOD_NOT_ALLOWED = 405


def patch_ctx(module: ModuleType) -> None:
    """Wrap the method that finds the rule of a request or websocket."""
    context, asked = getattr(module, "_BaseRequestWebsocketContext", None), "request_websocket"
    if context is None:  # from 0.23 on there is one kind of context
        context, asked = module.AppContext, "_request_websocket"
    context.match_request = then(_noting(asked))(context.match_request)


def _noting(name: str) -> Callable[[Any], None]:
    def note(context: Any) -> None:
        asked = getattr(context, name)
        request = request_in(asked.scope)
        if not hasattr(request, "set_route"):
            return
        rule = asked.url_rule
        if rule is None and getattr(asked.routing_exception, "code", None) == METHOD_NOT_ALLOWED:
            rule = _rule_of_another_method(context.url_adapter, asked.routing_exception)
        if rule is not None:
            request.set_route(rule.rule)

    return note


def _rule_of_another_method(adapter: Any, refusal: Any) -> Any:
    method = next(iter(refusal.valid_methods or ()), None)  # none of a websocket
    return adapter.match(method=method, return_rule=True)[0] if method else None


def _in_span(app: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    return (app, in_span(function), *args), kwargs


patch_app = patching({"Quart.add_background_task": before(_in_span)})
