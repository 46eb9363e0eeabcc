"""The fate of a provider's spans: whether stagetrace has joined the provider, and whether they are sent anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagetrace.sla.processor import SLASpanProcessor


def joined(provider: Any) -> SLASpanProcessor | None:
    """Return our processor of a provider; None if it could not be joined, or OTEL_SDK_DISABLED silences it."""
    from stagetrace.sla.processor import SLASpanProcessor

    processor = getattr(provider, "_active_span_processor", None)
    return processor if isinstance(processor, SLASpanProcessor) and not provider._disabled else None  # noqa: SLF001


def is_silent(tracer: Any) -> bool:
    """Return whether the spans of a tracer are exported nowhere, as far as that can be found out.

    Spans of the global provider are exported: by the service, or by stagetrace once a server starts.
    """
    from opentelemetry import trace

    from stagetrace.sla.processor import SLASpanProcessor, exports

    if isinstance(tracer, trace.ProxyTracer):
        return False
    if isinstance(tracer, trace.NoOpTracer):
        return True
    processor = getattr(tracer, "span_processor", None)  # of an SDK tracer
    if processor is getattr(trace.get_tracer_provider(), "_active_span_processor", None):
        return False
    if isinstance(processor, SLASpanProcessor):
        return not processor.sends
    return processor is not None and not exports(processor)
