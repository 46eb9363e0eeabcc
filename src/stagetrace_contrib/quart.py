"""Quart: the route of a request, and its background tasks."""

from __future__ import annotations

import functools
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.protocols.asgi import in_span
from stagetrace.protocols.base import request_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

METHOD_NOT_ALLOWED = 405


def patch_app(module: ModuleType) -> None:
    """Wrap the method that takes background tasks."""
    module.Quart.add_background_task = _adding(module.Quart.add_background_task)


def patch_ctx(module: ModuleType) -> None:
    """Wrap the method that finds the rule of a request or websocket."""
    context, asked = getattr(module, "_BaseRequestWebsocketContext", None), "request_websocket"
    if context is None:  # from 0.23 on there is one kind of context
        context, asked = module.AppContext, "_request_websocket"
    context.match_request = _noting(context.match_request, attrgetter(asked))


def _noting(original: Any, asked_of: Callable[[Any], Any]) -> Any:
    @functools.wraps(original)
    def match_request(self: Any) -> Any:
        result = original(self)
        _note(self, asked_of)
        return result

    return match_request


@guarded
def _note(context: Any, asked_of: Callable[[Any], Any]) -> None:
    asked = asked_of(context)
    request = request_in(asked.scope)
    if not hasattr(request, "set_route"):
        return
    rule = asked.url_rule
    if rule is None and getattr(asked.routing_exception, "code", None) == METHOD_NOT_ALLOWED:
        rule = _rule_of_another_method(context.url_adapter, asked.routing_exception)
    if rule is not None:
        request.set_route(rule.rule)


def _rule_of_another_method(adapter: Any, refusal: Any) -> Any:
    method = next(iter(refusal.valid_methods or ()), None)  # none of a websocket
    return adapter.match(method=method, return_rule=True)[0] if method else None


def _adding(original: Any) -> Any:
    @functools.wraps(original)
    def add_background_task(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, _in_span(func) or func, *args, **kwargs)

    return add_background_task


@guarded
def _in_span(function: Any) -> Any:
    return in_span(function)
