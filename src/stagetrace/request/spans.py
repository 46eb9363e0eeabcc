"""Turn a closed request into finished spans, without opening any SDK span."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, TraceFlags

import stagetrace
from stagetrace.semconv import ML_STAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import Event

    from stagetrace.request.stages import Segment

SCOPE = InstrumentationScope("stagetrace", stagetrace.__version__)
UNSET = Status()


class FinishedSpan(ReadableSpan):
    """A finished span with more attributes than the SDK's, which are frozen; its counts of dropped items are kept."""

    def __init__(
        self,
        span: ReadableSpan,
        attributes: Mapping[str, Any],
        context: SpanContext | None = None,
        counts: ReadableSpan | None = None,
        events: Sequence[Event] | None = None,
        links: Sequence[Link] | None = None,
    ) -> None:
        super().__init__(
            name=span.name,
            context=context or span.context,
            parent=span.parent,
            resource=span.resource,
            attributes={**(span.attributes or {}), **attributes},
            events=span.events if events is None else events,
            links=span.links if links is None else links,
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self._source = counts or span

    @property
    def dropped_attributes(self) -> int:
        return self._source.dropped_attributes

    @property
    def dropped_events(self) -> int:
        return self._source.dropped_events

    @property
    def dropped_links(self) -> int:
        return self._source.dropped_links


def sampled(context: SpanContext) -> SpanContext:
    """Return the context with its sampled flag set."""
    flags = TraceFlags(context.trace_flags | TraceFlags.SAMPLED)
    return SpanContext(context.trace_id, context.span_id, context.is_remote, flags, context.trace_state)


def child(parent: SpanContext) -> SpanContext:
    """Return the context of a new span under another one of this process."""
    span_id = random.getrandbits(64) or 1
    flags, state = parent.trace_flags, parent.trace_state
    return SpanContext(parent.trace_id, span_id, is_remote=False, trace_flags=flags, trace_state=state)


def link_to(context: SpanContext | None) -> tuple[Link, ...]:
    """Return the links of a span that has one link at most."""
    return () if context is None else (Link(context),)


def stage_span(segment: Segment, entry: ReadableSpan, extra: Mapping[str, Any]) -> ReadableSpan:
    """Return one stage as a child of the entry span."""
    parent = entry.context
    context = segment.context or child(parent)
    attributes = {ML_STAGE: segment.stage, **segment.attributes, **extra}
    if segment.coalesced:
        attributes.update(segment.visits())
    return ReadableSpan(
        name=segment.stage,
        context=context,
        parent=parent,
        resource=entry.resource,
        attributes=attributes,
        links=link_to(segment.link),
        status=UNSET,
        start_time=segment.start,
        end_time=segment.end,
        instrumentation_scope=SCOPE,
    )
