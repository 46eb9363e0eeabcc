"""Join every TracerProvider of the process: ours, opentelemetry-instrument's, the user's own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.sla.process import counter, policy

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.sla.processor import SLASpanProcessor


def patch_trace(module: ModuleType) -> None:
    """Wrap the processors and the sampler of each provider as soon as it is made, before any tracer copies them."""
    provider = module.TracerProvider
    original = provider.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _join(self)

    provider.__init__ = __init__


@guarded
def _join(provider: Any) -> None:
    from stagetrace.sla.processor import SLASpanProcessor
    from stagetrace.sla.sampling import KeepBreaches

    # Private, and the only place at which a processor can stand before those that export (docs/decisions/003).
    provider._active_span_processor = SLASpanProcessor(policy(), provider._active_span_processor, counter=counter())
    provider.sampler = KeepBreaches(provider.sampler)


def joined(provider: Any) -> SLASpanProcessor | None:
    """Return our processor of a provider; None if it could not be joined, or OTEL_SDK_DISABLED silences it."""
    from stagetrace.sla.processor import SLASpanProcessor

    processor = getattr(provider, "_active_span_processor", None)
    return processor if isinstance(processor, SLASpanProcessor) and not provider._disabled else None


def is_silent(tracer: Any) -> bool:
    """Return whether the spans of a tracer are sent nowhere, as far as that can be told.

    Those of the process's provider, whoever has set it, are sent: else by us, from when a server starts.
    """
    from opentelemetry import trace

    from stagetrace.sla.processor import SLASpanProcessor, exports

    if isinstance(tracer, trace.ProxyTracer):
        return False
    if isinstance(tracer, trace.NoOpTracer):
        return True
    processor = getattr(tracer, "span_processor", None)  # of the SDK's
    if processor is getattr(trace.get_tracer_provider(), "_active_span_processor", None):
        return False
    if isinstance(processor, SLASpanProcessor):
        return not processor.sends
    return processor is not None and not exports(processor)
