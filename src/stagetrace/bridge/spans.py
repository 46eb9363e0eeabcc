"""Our spans as an SDK knows them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from stagetrace.bridge.contexts import span_context
from stagetrace.request.details import placed_details
from stagetrace.request.spans import SCOPE, child, sampled
from stagetrace.request.stages import coalesced
from stagetrace.semconv import ML_STAGE, SLA_UPGRADED, stage_total_ms
from stagetrace.tracing import span as own

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stagetrace.request.details import Detail
    from stagetrace.request.request import Request
    from stagetrace.request.stages import Segment, Stages
    from stagetrace.tracing.span_context import SpanContext

_SCOPE = InstrumentationScope(SCOPE.name, SCOPE.version)
_UNSET = Status()

# What 1.20 lacks: it does not count what events and links have lost, and its scopes have no attributes.
for _kind, _name, _value in (
    (Event, "dropped_attributes", 0),
    (Link, "dropped_attributes", 0),
    (InstrumentationScope, "attributes", None),
):
    if not hasattr(_kind, _name):
        setattr(_kind, _name, _value)


class _NothingLost:
    dropped_attributes = dropped_events = dropped_links = 0


class FinishedSpan(ReadableSpan):
    """A finished span that counts as lost what `counts` does; the SDK 1.20 finds that in its own classes alone."""

    def __init__(self, counts: Any = _NothingLost, **parts: Any) -> None:
        super().__init__(**parts)
        self._counts = counts

    @property
    def dropped_attributes(self) -> int:
        return int(self._counts.dropped_attributes)

    @property
    def dropped_events(self) -> int:
        return int(self._counts.dropped_events)

    @property
    def dropped_links(self) -> int:
        return int(self._counts.dropped_links)


def readable(span: Any) -> ReadableSpan:
    """Return a finished span of ours, or of an SDK, as the SDK's."""
    if isinstance(span, ReadableSpan):
        return span
    made = FinishedSpan(
        span,
        name=span.name,
        context=span_context(span.context),
        parent=None if span.parent is None else span_context(span.parent),
        resource=resource(span.resource),
        attributes=dict(span.attributes or {}),
        events=_events(span.events),
        links=_links(span.links),
        kind=SpanKind(span.kind.value),
        status=status(span.status),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=_scope(span.instrumentation_scope),
    )
    if getattr(span, "of_breach", False):
        made.of_breach = True  # type: ignore[attr-defined]
    return made


def status(given: Any) -> Status:
    """Return a status of ours, or of OpenTelemetry, as OpenTelemetry's."""
    return given if isinstance(given, Status) else Status(StatusCode(given.status_code.value), given.description)


@functools.lru_cache(maxsize=4)
def _of_process(own_resource: own.Resource) -> Resource:
    return Resource(dict(own_resource.attributes), own_resource.schema_url)


def resource(given: Any) -> Resource:
    """Return a resource, ours or an SDK's, as the SDK's."""
    return _of_process(given) if isinstance(given, own.Resource) else given


def _scope(given: Any) -> InstrumentationScope | None:
    if not isinstance(given, own.Scope):
        return given  # type: ignore[no-any-return]
    return _SCOPE if given is SCOPE else InstrumentationScope(given.name, given.version, given.schema_url)


def _with_count(attributes: Any, dropped: int) -> Any:
    if not dropped:
        return dict(attributes or {})
    made = BoundedAttributes(attributes=dict(attributes or {}), immutable=False)
    made.dropped = dropped
    return made


def _events(events: Iterable[Any]) -> list[Any]:
    return [_event(one) if isinstance(one, own.Event) else one for one in events]


def _event(event: own.Event) -> Event:
    return Event(event.name, _with_count(event.attributes, event.dropped_attributes), event.timestamp)


def _links(links: Iterable[Any]) -> list[Any]:
    return [_link(one) if isinstance(one, own.Link) else one for one in links]


def _link(link: own.Link) -> Link:
    return Link(span_context(link.context), _with_count(link.attributes, link.dropped_attributes))


def entry(request: Request) -> ReadableSpan:
    """Return the entry span of a request that we record, which has ended, with what was set on it."""
    notes, identity = request.notes, request.identity
    parts: dict[str, Any] = {
        "name": request.name,
        "context": span_context(identity.context),
        "parent": None if identity.parent is None else span_context(identity.parent),
        "resource": resource(request.recorder.resource if request.recorder is not None else None),
        "attributes": dict(request.attributes),
        "kind": SpanKind.SERVER,
        "status": status(request.status),
        "start_time": request.started,
        "end_time": request.end,
        "instrumentation_scope": _SCOPE,
    }
    if notes is None:
        return FinishedSpan(**parts)
    return FinishedSpan(notes, events=_events(notes.events), links=_links(notes.links), **parts)


def request_spans(
    span: ReadableSpan,
    stages: Stages,
    request: Request,
    known: Mapping[str, Any],
    verdict: Mapping[str, Any],
    events: Sequence[own.Event] = (),
    *,
    upgraded: bool,
) -> list[Any]:
    """Return a request as SDK spans. The last is the entry span: `span`, which has ended, with attributes and events.

    `upgraded`: the head sampler dropped the request, and it is a breach.
    """
    details = placed_details(request, stages, _context_of(span))
    attributes = {stage_total_ms(stage): took / 1e6 for stage, took in stages.totals().items()}
    own_attributes = span.attributes or {}  # which the request's code may have set: that wins
    attributes.update({key: value for key, value in stages.model.items() if key not in own_attributes})
    attributes.update(known)
    attributes.update(verdict)
    mark = {SLA_UPGRADED: True} if upgraded else {}
    segments = coalesced(stages.segments(), request.cuts)
    spans: list[ReadableSpan] = [
        *(_detail_span(detail, span.resource, mark) for detail in details),
        *(stage_span(segment, span, mark) for segment in segments),
        readable(own.ChangedSpan(span, attributes, events=[*span.events, *_events(events)] if events else None)),
    ]
    return [readable(own.ChangedSpan(one, {}, sampled(_context_of(one)))) for one in spans] if upgraded else spans


def _context_of(span: ReadableSpan) -> SpanContext:
    context: Any = span.context
    return context  # type: ignore[no-any-return]


def stage_span(segment: Segment, of_entry: ReadableSpan, extra: Mapping[str, Any]) -> ReadableSpan:
    """Return one stage as a child of the entry span."""
    attributes = {ML_STAGE: segment.stage, **segment.attributes, **extra}
    if segment.coalesced:
        attributes.update(segment.visits())
    return FinishedSpan(
        name=segment.stage,
        context=span_context(segment.context or child(_context_of(of_entry))),
        parent=of_entry.context,
        resource=of_entry.resource,
        attributes=attributes,
        links=() if segment.link is None else (Link(span_context(segment.link)),),
        status=_UNSET,
        start_time=segment.start,
        end_time=segment.end,
        instrumentation_scope=_SCOPE,
    )


def _detail_span(detail: Detail, resource: Resource, extra: Mapping[str, Any]) -> ReadableSpan:
    return FinishedSpan(
        name=detail.name,
        context=span_context(child(detail.parent)),
        parent=span_context(detail.parent),
        resource=resource,
        attributes={**detail.attributes, **extra},
        status=_UNSET,
        start_time=detail.start,
        end_time=detail.end,
        instrumentation_scope=_SCOPE,
    )
