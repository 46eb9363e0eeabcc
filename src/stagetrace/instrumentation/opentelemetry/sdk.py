"""Join each TracerProvider of the process: that of stagetrace, of opentelemetry-instrument, of the service."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.sla.process import counter, follow, policy

if TYPE_CHECKING:
    from types import ModuleType


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
    processor = SLASpanProcessor(policy(), provider._active_span_processor, counter=counter())
    follow(processor)
    provider._active_span_processor = processor
    provider.sampler = KeepBreaches(provider.sampler)
