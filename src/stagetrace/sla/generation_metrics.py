"""`gen_ai.server.*` metrics of the semantic conventions, if the service has set a meter provider.

One measurement a request that called generative models in this process, from its arrival on, before any sampling.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded

if TYPE_CHECKING:
    from stagetrace.request.generation import Generation


@functools.cache
@guarded
def wanted() -> Any:
    """Return the metrics; None if no meter provider is set at the first request that generates."""
    if "opentelemetry.metrics" not in sys.modules:
        return None
    from importlib import import_module

    return import_module("stagetrace.bridge.metrics").generation_metrics()


@guarded
def conclude(generation: Generation | None, start: int, end: int) -> None:
    """Record a request that has ended."""
    measured = wanted()
    if measured is not None and generation is not None and generation.calls:
        measured.record(generation, start, end)
