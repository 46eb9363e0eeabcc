"""OpenTelemetry: its tracer providers, the encoder of its exporters, its instrumentations of servers and frameworks.

Each provider of the process is joined: that of stagetrace, of opentelemetry-instrument, of the service. Official OTLP
exporters that a service makes itself get an encoder that makes the same message in a tenth of the time; those of
stagetrace's own set-up send bytes (otlp/export).

Where one of the instrumentations is active, its entry span is adopted. All of them (ASGI, WSGI, Django, Flask and
others) start it by one function, which makes a SERVER span if no span is open, and an INTERNAL one below the open span
otherwise. So our entry span gives way first, unless other code has seen it, or their span would not be exported
(docs/decisions/012). URLs that an argument of the ASGI middleware excludes are excluded by us, too.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from stagetrace.bridge.entry import RequestSpan, StandIn
from stagetrace.bridge.provider import is_silent
from stagetrace.guard import guarded, guarded_end, report
from stagetrace.instrumentation.base import patching, then
from stagetrace.protocols.base import request_in
from stagetrace.request.current import current, entries, recording
from stagetrace.runtime.runtime import runtime
from stagetrace.sla.process import counter, follow, policy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from opentelemetry.sdk.trace import ReadableSpan


def _join(provider: Any) -> None:
    """Wrap the processors and the sampler of a provider as soon as it is made, before any tracer copies them."""
    from stagetrace.bridge.processor import SLASpanProcessor
    from stagetrace.bridge.sampling import KeepBreaches

    # Private, and the only place at which a processor can stand before those that export (docs/decisions/003).
    processor = SLASpanProcessor(policy(), provider._active_span_processor, counter=counter())
    follow(processor)
    provider._active_span_processor = processor
    provider.sampler = KeepBreaches(provider.sampler)


patch_trace = patching({"TracerProvider.__init__": then(_join)})


def patch_api(module: ModuleType) -> None:  # noqa: ARG001
    """Let the service's OpenTelemetry and ours know of each other."""
    runtime.meet_otel()


def patch_metrics(module: ModuleType) -> None:  # noqa: ARG001
    """Offer our counts as metrics."""
    runtime.offer_metrics()


# --- exporters


def patch_trace_encoder(module: ModuleType) -> None:
    """Replace `encode_spans` of trace_encoder; where ours fails, the official one does the work."""
    official: Any = module.encode_spans

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from stagetrace.otlp.encode import encode_spans as ours

    def encode_spans(sdk_spans: Sequence[ReadableSpan]) -> Any:
        try:
            return ExportTraceServiceRequest.FromString(ours(sdk_spans))
        except Exception as error:  # noqa: BLE001 -- whatever it is, the spans are not lost for it
            report("stagetrace.otlp.encode", error)
            return official(sdk_spans)

    module.encode_spans = encode_spans  # type: ignore[attr-defined]


# --- instrumentations


NAME = "_start_internal_or_server_span"


def patch_asgi(module: ModuleType) -> None:
    """Wrap the ASGI middleware, whose argument `excluded_urls` holds for our entry spans, too."""

    @guarded
    def exclude(middleware: Any, scope: Any) -> None:
        request = request_in(scope)
        urls = middleware.excluded_urls
        if hasattr(request, "exclude") and urls and urls.url_disabled(module.get_host_port_url_tuple(scope)[2]):
            request.exclude()

    def excluding(original: Any) -> Any:
        # Not by `before`, which takes any arguments: uvicorn calls an application without any, to see if that fails.
        @functools.wraps(original)
        async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:
            exclude(self, scope)
            await original(self, scope, receive, send)

        return __call__

    patching({"OpenTelemetryMiddleware.__call__": excluding})(module)


def patch_utils(module: ModuleType) -> None:
    """Wrap the function that starts entry spans, under every name by which it was imported already."""
    original = getattr(module, NAME)
    wrapped = _hiding_ours(original)
    for name, user in list(sys.modules.items()):
        if name.startswith("opentelemetry.instrumentation.") and getattr(user, NAME, None) is original:
            setattr(user, NAME, wrapped)
    setattr(module, NAME, wrapped)


def _hiding_ours(original: Any) -> Any:
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
        # Their own token would restore the context in which our span is hidden.
        return _seen_with_stages(span), own_token if token is None else token

    return start


@guarded
def _stand_in(tracer: Any) -> Any:
    """Return a stand-in for a span whose tracer exports nothing, inside a recorded request; None for any other."""
    request: Any = recording()
    if request is None or not is_silent(tracer):
        return None
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return None
    if hasattr(request, "leave_to_others"):
        request.leave_to_others()
    begin = getattr(getattr(tracer, "span_processor", None), "start_next", None)
    if begin is not None:  # SLASpanProcessor: passes the start on to processors that only look at starts
        begin(span, otel_context.get_current())
    return StandIn(span)


@guarded
def _hide(carrier: Any) -> Any:
    """Hide our entry span of this very request, if it may give way; return the token of the context."""
    request: Any = current.get()
    if request is None or carrier is None:
        return None
    if getattr(request, "carrier", None) is not carrier and request_in(carrier) is not request:
        return None
    if not hasattr(request, "hides") or not request.hides():  # the WSGI adapter decides before it opens a span
        return None
    return otel_context.attach(trace.set_span_in_context(trace.INVALID_SPAN))


@guarded_end
def _view(span: Any) -> Any:
    request = entries.get(span.get_span_context().span_id)
    if request is None:
        return span
    current.set(request)
    return RequestSpan(span, request)


def _seen_with_stages(span: Any) -> Any:
    """Return a started span, or its RequestSpan, which the code of the request sees, if it is an entry span."""
    return _view(span) or span
