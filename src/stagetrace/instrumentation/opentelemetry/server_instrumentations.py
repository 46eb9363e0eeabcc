"""OpenTelemetry's own instrumentations of servers and frameworks: where one is active, its entry span is adopted.

All of them, of ASGI and WSGI, Django, Flask and others, start it by one function, which makes a SERVER span where no
span is open. With ours open it would become a part of ours. So ours gives way first, unless somebody has seen it, or
theirs would be sent nowhere (docs/decisions/023). What the ASGI middleware was told to leave out, by an argument, is
left out by us, too.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import request_in
from stagetrace.instrumentation.http.metrics import Counted
from stagetrace.instrumentation.opentelemetry.providers import is_silent
from stagetrace.recording.context import RequestSpan, StandIn
from stagetrace.recording.current_timeline import current, entries, recording

if TYPE_CHECKING:
    from types import ModuleType

NAME = "_start_internal_or_server_span"


def patch_asgi(module: ModuleType) -> None:
    """Wrap the ASGI middleware, whose argument `excluded_urls` holds for our entry spans, too."""
    middleware = module.OpenTelemetryMiddleware
    middleware.__call__ = _leaving_out(middleware.__call__, module.get_host_port_url_tuple)


def patch_utils(module: ModuleType) -> None:
    """Wrap the function that starts entry spans, under every name by which it was imported already."""
    original = getattr(module, NAME)
    wrapped = _giving_way(original)
    for name, user in list(sys.modules.items()):
        if name.startswith("opentelemetry.instrumentation.") and getattr(user, NAME, None) is original:
            setattr(user, NAME, wrapped)
    setattr(module, NAME, wrapped)


def _giving_way(original: Any) -> Any:
    @functools.wraps(original)
    def start(*args: Any, **kwargs: Any) -> Any:
        stand_in = _stand_in(kwargs.get("tracer", args[0] if args else None))
        if stand_in is not None:
            return stand_in, None
        token = _hide(kwargs.get("context_carrier", args[3] if len(args) > 3 else None))  # noqa: PLR2004
        try:
            span, own_token = original(*args, **kwargs)
        except BaseException:
            if token is not None:
                otel_context.detach(token)
            raise
        # Theirs would go back to where ours is hidden.
        return _seen_with_stages(span), own_token if token is None else token

    return start


def _leaving_out(original: Any, address: Any) -> Any:
    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:
        _leave_out(self, scope, address)
        await original(self, scope, receive, send)

    return __call__


@guarded
def _leave_out(middleware: Any, scope: Any, address: Any) -> None:
    request = request_in(scope)
    urls = middleware.excluded_urls
    if hasattr(request, "leave_out") and urls and urls.url_disabled(address(scope)[2]):
        request.leave_out()


@guarded
def _stand_in(tracer: Any) -> Any:
    """Return what to take, within a request that is recorded, for a span of a tracer whose spans are sent nowhere."""
    request: Any = recording()
    if request is None or not is_silent(tracer):
        return None
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return None
    if isinstance(request, Counted):
        request.leave_to_others()
    begin = getattr(getattr(tracer, "span_processor", None), "start_next", None)
    if begin is not None:  # of ours: for a processor that looks at spans as they begin alone
        begin(span, otel_context.get_current())
    return StandIn(span)


@guarded
def _hide(carrier: Any) -> Any:
    """Hide the entry span that was opened for this very request, if it may give way; return the token."""
    request: Any = current.get()
    if request is None or carrier is None or request_in(carrier) is not request:
        return None
    if not hasattr(request, "hides") or not request.hides():  # WSGI finds out beforehand
        return None
    return otel_context.attach(trace.set_span_in_context(trace.INVALID_SPAN))


@guarded_end
def _view(span: Any) -> Any:
    timeline = entries.get(span.get_span_context().span_id)
    if timeline is None:
        return span
    current.set(timeline)
    return RequestSpan(span, timeline)


def _seen_with_stages(span: Any) -> Any:
    """Return a span that was started, as its request's code is to see it if it is an entry span."""
    return _view(span) or span
