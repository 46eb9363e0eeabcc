"""What the service does with OpenTelemetry's API where it has no SDK: its spans are ours. And an SDK's head sampler."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, get_current_span

from stagetrace.bridge.contexts import context_of
from stagetrace.bridge.entry import ApiSpan, SeenSpan
from stagetrace.guard import guarded
from stagetrace.request.current import current
from stagetrace.sla.call_request import CallRequest
from stagetrace.sla.head_sampler import HeadSampler, RandomIds
from stagetrace.tracing import span as own

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stagetrace.request.own_span import Recorder
    from stagetrace.request.request import Request


class OwnTracerProvider(trace.TracerProvider):
    """The tracer provider of a process in which no SDK is: what its tracers start is sent as our own spans are."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    @property
    def resource(self) -> Any:
        """What spans come from."""
        return self.recorder.resource

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        """Return a tracer."""
        scope = own.Scope(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        return OwnTracer(self.recorder, scope)


class OwnTracer(trace.Tracer):
    """Starts spans of ours."""

    def __init__(self, recorder: Any, scope: own.Scope) -> None:
        self._recorder = recorder
        self._scope = scope

    def start_span(
        self,
        name: str,
        context: Any = None,
        kind: Any = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Any:
        """Start a span below that of a context, by default the current one; a SERVER span is a request."""
        del record_exception, set_status_on_exception  # `use_span` does that
        return self._start(name, context, kind, attributes, links, start_time) or trace.INVALID_SPAN

    @guarded
    def _start(self, name: str, context: Any, kind: Any, attributes: Any, links: Any, start_time: int | None) -> Any:
        parent: Any = get_current_span(context).get_span_context()
        if not parent.is_valid:
            request = current.get() if context is None else None  # which began before OpenTelemetry was imported
            parent = None if request is None or request.closed else request.stage_context()
        if kind is SpanKind.SERVER and (parent is None or parent.is_remote):
            request = CallRequest(name, dict(attributes or {}), context_of(context), self._recorder, start=start_time)
            return EntrySpan(request)
        of_kind = own.SpanKind(kind.value)
        found = [own.Link(one.context, one.attributes) for one in links or ()]
        return ApiSpan(
            self._recorder.start_span(
                name, parent, of_kind, attributes, links=found, start=start_time, scope=self._scope
            )
        )

    @contextmanager
    def start_as_current_span(  # type: ignore[override]  # noqa: PLR0913, PLR0917 -- as the API's
        self,
        name: str,
        context: Any = None,
        kind: Any = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[Any]:
        """Start a span that is the current one in the block, and end it with that."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span


class EntrySpan(SeenSpan):
    """A SERVER span that the service's own code has started, and ends."""

    request: CallRequest

    def end(self, end_time: int | None = None) -> None:
        """End the request."""
        self.request.finish(end_time)


# --- The sampler and the generator of ids of an SDK's provider.


class ForeignSampler:
    """A sampler of the service's own."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def ask(
        self, request: Request, trace_id: int, given: dict[str, Any]
    ) -> tuple[bool, bool, Any, Mapping[str, Any] | None]:
        """Return whether an entry span is sampled, whether it is recorded, its tracestate, and what it is to have."""
        result = self._sampler.should_sample(
            context_of(request.parent_context), trace_id, request.name, SpanKind.SERVER, given
        )
        decision = result.decision
        return decision.is_sampled(), decision.is_recording(), result.trace_state, result.attributes

    def get_description(self) -> str:
        """Return it in words."""
        return str(self._sampler.get_description())


def head_sampler_of(provider: Any) -> HeadSampler:
    """Return the head sampler of an SDK's provider."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    from stagetrace.bridge.sampling import known

    sampler = getattr(provider.sampler, "root", provider.sampler)
    ids = provider.id_generator
    usual = known(sampler)
    return HeadSampler(
        ForeignSampler(sampler) if usual is None else usual, RandomIds() if type(ids) is RandomIdGenerator else ids
    )
