"""The context of the service's OpenTelemetry: requests are in it from when this module is imported.

It needs the API alone, of 1.20 or newer. What one version lacks is worked around in this package.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation import _SPAN_KEY

from stagetrace.bridge import entry
from stagetrace.bridge.contexts import attach, context_of, get_current, span_context
from stagetrace.bridge.propagators import take_from_file
from stagetrace.request.context import Surroundings, here
from stagetrace.request.context import _context as _before
from stagetrace.request.own_span import OwnSpan
from stagetrace.tracing import propagation
from stagetrace.tracing import span as own
from stagetrace.tracing.propagation import SPAN
from stagetrace.tracing.span import NO_RESOURCE
from stagetrace.tracing.span_context import SpanContext

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager


# The keys that suppress_instrumentation() and suppress_http_instrumentation() of opentelemetry-instrumentation set.
SUPPRESS = "suppress_instrumentation"
_SUPPRESS_KEYS = tuple(dict.fromkeys((getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", SUPPRESS), SUPPRESS)))
_SUPPRESS_HTTP_KEY = getattr(otel_context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "suppress_http_instrumentation")


class Bridge(Surroundings):
    """What is around requests where the service has imported OpenTelemetry."""

    has_otel = True

    @property
    def fields(self) -> frozenset[str]:  # type: ignore[override]
        """The headers that the propagators of the process read, in lower case."""
        return _fields(propagate.get_global_textmap())

    def resource(self) -> Any:
        """Return the resource of this process's spans, which may be of a provider of the service."""
        if self.recorder is not None:
            return super().resource()
        return getattr(trace.get_tracer_provider(), "resource", NO_RESOURCE)

    def sampler_text(self) -> str | None:
        """Return the head sampler, as OpenTelemetry describes it; None where it is not known."""
        if self.recorder is not None:
            return super().sampler_text()
        used = getattr(trace.get_tracer_provider(), "sampler", None)
        root = getattr(used, "root", used)
        return None if root is None else str(root.get_description())

    def detach(self, token: Any) -> None:
        """Restore the context that was there before `attach` returned this."""
        if getattr(token, "var", None) is _before:
            _before.reset(token)  # the service has imported OpenTelemetry meanwhile
        else:
            otel_context.detach(token)

    def around(self, request: Any, parent: Mapping[str, Any]) -> Any:
        """Return the context of a request's code, in which its entry span is the current one."""
        seen = entry.SeenSpan(request) if request.recorder is not None else entry.seen(request)
        if not parent:
            return Context({_SPAN_KEY: seen})
        return Context({**(parent if type(parent) is Context else context_of(parent)), _SPAN_KEY: seen})

    def is_suppressed(self, context: Mapping[str, Any], *, http: bool = True) -> bool:
        """Return whether code asks by its context that nothing, or nothing of HTTP, is recorded."""
        return any(context.get(key) for key in _SUPPRESS_KEYS) or (http and bool(context.get(_SUPPRESS_HTTP_KEY)))

    def parent_of_call(self, request: Any) -> Any:  # noqa: ARG002
        """Return the identity of the current span; None where there is none: the service has left the request."""
        context = trace.get_current_span().get_span_context()
        return context if context.is_valid else None

    def extract(self, carrier: Mapping[str, str | list[str]]) -> Mapping[str, Any]:
        """Return the context that headers carry, as the propagators of the process read them."""
        return propagate.get_global_textmap().extract(carrier, context=Context())

    def headers(self, request: Any | None, span: SpanContext) -> dict[str, str]:  # noqa: ARG002
        """Return the headers that carry a span, as the propagators of the process write them."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(NonRecordingSpan(span_context(span))))
        return carrier

    def carrier(self, request: Any | None) -> dict[str, str]:  # noqa: ARG002
        """Return W3C's headers for the current span and baggage, whatever OTEL_PROPAGATORS names."""
        context = trace.get_current_span().get_span_context()
        return propagation.headers(SpanContext(*context[:5]), baggage.get_all())

    def current_span(self) -> Any:
        """Return the span object that the code that runs sees."""
        return trace.get_current_span()

    def around_span(self, span: Any, parent: Mapping[str, Any]) -> Any:
        """Return a context in which a span is the current one."""
        seen = entry.ApiSpan(span) if isinstance(span, own.Span) else span
        return trace.set_span_in_context(seen, context_of(parent))

    def span_in(self, context: Mapping[str, Any]) -> Any:
        """Return the identity of the span in a context; None where there is none."""
        mine = context.get(SPAN)
        if mine is not None:
            return mine
        span = context.get(_SPAN_KEY)
        return None if span is None else span.get_span_context()

    def with_span(self, context: Mapping[str, Any], span: SpanContext) -> Any:
        """Return a context with a span in it."""
        return Context({**context_of(context), _SPAN_KEY: NonRecordingSpan(span_context(span))})

    def in_full(self, context: Mapping[str, Any]) -> Any:
        """Return a context that was read by W3C's rules as one that can be attached."""
        return context_of(context)

    def baggage_in(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the baggage in a context."""
        return baggage.get_all(context_of(context))

    def start_span(
        self,
        name: str,
        parent: Mapping[str, Any],
        kind: own.SpanKind = own.SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        *,
        links: Iterable[own.Link] = (),
        start: int | None = None,
    ) -> Any:
        """Start a span that is no entry span, at the provider of the service where that records."""
        if self.recorder is not None:
            return super().start_span(name, parent, kind, attributes, links=links, start=start)
        return trace.get_tracer("stagetrace").start_span(
            name,
            context_of(parent),
            SpanKind(kind.value),
            attributes,
            [trace.Link(span_context(one.context), one.attributes) for one in links],
            start,
        )

    def add(self, span: own.Span) -> None:
        """Send a span of ours that has ended, by the provider of the service where that records."""
        if self.recorder is not None:
            super().add(span)
            return
        provider: Any = trace.get_tracer_provider()
        processor = getattr(provider, "_active_span_processor", None)  # as in docs/decisions/003
        if processor is not None:
            span.resource = provider.resource
            processor.on_end(import_module("stagetrace.bridge.spans").readable(span))

    def set_error(self, span: Any, description: str | None) -> None:
        """Set the status of a span to an error."""
        if isinstance(span, OwnSpan | own.Span):
            super().set_error(span, description)
        else:
            span.set_status(Status(StatusCode.ERROR, description))

    def within(self, span: Any) -> AbstractContextManager[Any]:
        """Let a span be the current one in the block."""
        seen: Any = entry.ApiSpan(span) if isinstance(span, own.Span) else span
        return trace.use_span(seen, record_exception=False, set_status_on_exception=False)


@functools.lru_cache(maxsize=4)
def _fields(textmap: Any) -> frozenset[str]:
    return frozenset(field.lower() for field in textmap.fields)


here.__class__ = Bridge
here.attach, here.get_current = attach, get_current
take_from_file()
