"""What is around the requests of this process: who records them, and OpenTelemetry's context, if the service has it."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stagetrace.tracing import propagation
from stagetrace.tracing.propagation import FIELDS, NO_CONTEXT
from stagetrace.tracing.span import NO_RESOURCE, SpanKind, Status, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from stagetrace.request.own_span import Entry, Recorder
    from stagetrace.tracing.span import Link, Span
    from stagetrace.tracing.span_context import SpanContext

BRIDGE = "stagetrace.bridge.opentelemetry"
_context: ContextVar[Mapping[str, Any]] = ContextVar("stagetrace.context", default=NO_CONTEXT)


class Surroundings:
    """The recorder of this process, and what there is of OpenTelemetry's context.

    That is nothing until the service imports it: then the methods are those of `stagetrace.bridge.opentelemetry`.
    """

    recorder: Recorder | None = None  # of entry spans; None: a provider of the service has them, or nothing is recorded
    has_otel = False  # whether the bridge is there
    has_provider = False  # whether the service has set a tracer provider of its own
    fields: frozenset[str] = FIELDS  # the headers in which contexts come and go, in lower case

    def __init__(self) -> None:
        # Set the context of the code that runs, and return it: empty, where the service has no OpenTelemetry.
        self.attach: Callable[[Any], Any] = _context.set
        self.get_current: Callable[[], Mapping[str, Any]] = _context.get

    @property
    def records(self) -> bool:
        """Whether entry spans are recorded: by us, or at the service's own provider."""
        return self.recorder is not None or self.has_provider

    def resource(self) -> Any:
        """Return the resource of this process's spans: another one after a fork."""
        return NO_RESOURCE if self.recorder is None else self.recorder.resource

    def sampler_text(self) -> str | None:
        """Return the head sampler, as OpenTelemetry describes it; None where it is not known."""
        return None if self.recorder is None else self.recorder.sampler_text

    def detach(self, token: Any) -> None:
        """Restore the context that was there before `attach` returned this."""
        _context.reset(token)

    def around(self, request: Entry, parent: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """Return the context of a request's code, whose request has brought along `parent`."""
        return NO_CONTEXT

    def is_suppressed(self, context: Mapping[str, Any], *, http: bool = True) -> bool:  # noqa: ARG002
        """Return whether code asks by its context that nothing, or nothing of HTTP, is recorded."""
        return False

    def parent_of_call(self, request: Entry) -> SpanContext | None:
        """Return the span under which a call of the code that runs belongs; None where it has left the request."""
        return request.stage_context()

    def extract(self, carrier: Mapping[str, str | list[str]]) -> Mapping[str, Any]:
        """Return the context that headers carry, by their names in lower case."""
        if self.fields is not FIELDS:
            carrier = {name: value for name, value in carrier.items() if name in self.fields}
        return propagation.extract(carrier)

    def headers(self, request: Entry | None, span: SpanContext) -> dict[str, str]:
        """Return the headers that carry a span of a request to another service."""
        found = propagation.headers(span, None if request is None else self.baggage_in(request.parent_context))
        return found if self.fields is FIELDS else {name: found[name] for name in found if name in self.fields}

    def carrier(self, request: Entry | None) -> dict[str, str]:
        """Return W3C's headers for the span that is the current one, whatever OTEL_PROPAGATORS names."""
        span = None if request is None else request.stage_context()
        return {} if span is None else propagation.headers(span, self.baggage_in(request.parent_context))  # type: ignore[union-attr]

    def current_span(self) -> Any:
        """Return the span object that the code that runs sees; None where there is none."""
        return None

    def around_span(self, span: Any, parent: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """Return a context in which a span is the current one."""
        return parent

    def span_in(self, context: Mapping[str, Any]) -> SpanContext | None:
        """Return the span in a context; None where there is none."""
        return propagation.span_in(context)

    def with_span(self, context: Mapping[str, Any], span: SpanContext) -> Any:
        """Return a context with a span in it."""
        return propagation.with_span(context, span)

    def in_full(self, context: Mapping[str, Any]) -> Any:
        """Return a context that was read by W3C's rules as one that can be attached."""
        return context

    def baggage_in(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the baggage in a context."""
        found: Mapping[str, Any] = context.get(propagation.PAIRS, {})
        return found

    def start_span(
        self,
        name: str,
        parent: Mapping[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        *,
        links: Iterable[Link] = (),
        start: int | None = None,
    ) -> Any:
        """Start a span that is no entry span, below that of the context `parent`; None where nothing is recorded."""
        recorder = self.recorder
        if recorder is None:
            return None
        return recorder.start_span(name, self.span_in(parent), kind, attributes, links=links, start=start)

    def add(self, span: Span) -> None:
        """Send a span of ours that has ended, and is of no request."""
        if self.recorder is not None:
            self.recorder.add_span(span)

    def set_error(self, span: Any, description: str | None) -> None:
        """Set the status of a span to an error."""
        span.set_status(Status(StatusCode.ERROR, description))

    def within(self, _span: Any) -> AbstractContextManager[Any]:
        """Let a span be the current one in the block."""
        return nullcontext()


here = Surroundings()


def meet_otel() -> bool:
    """Load the bridge if the service has imported OpenTelemetry; return whether it is there."""
    if not here.has_otel and "opentelemetry.trace" in sys.modules:
        import_module(BRIDGE)
    return here.has_otel


def open_entry(
    request: Entry, name: str, parent: Mapping[str, Any], recorder: Recorder | None, *, late: bool = False
) -> None:
    """Begin the entry span of a request, ours if there is a recorder, else one at the service's own provider.

    `parent` is the context that the request has brought along; `late` as for `bridge.entry.SdkSpan`.
    """
    request.name = request.label = name
    request.parent_context = parent
    request.bound = True
    if recorder is None:
        request.backend = import_module("stagetrace.bridge.entry").SdkSpan(request, late=late)
    else:
        request.recorder, request.own = recorder, True
