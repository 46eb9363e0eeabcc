"""Stage spans and an inline SLA verdict for every request of an ML service.

Nothing is imported before a name is used: this package is loaded at interpreter start by the activation file.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` takes longer than all of this package's start
if TYPE_CHECKING:
    from typing import Any

    from stagetrace.api.carrier import batch, carry, resume
    from stagetrace.api.tokens import note_tokens
    from stagetrace.bridge.processor import SLASpanProcessor
    from stagetrace.bridge.sampling import KeepBreaches
    from stagetrace.errors import PolicyError, StagetraceError, StoreError
    from stagetrace.instrumentation.models.instrument import instrument
    from stagetrace.policy.policy import Policy
    from stagetrace.request.stage import stage

__all__ = [
    "KeepBreaches",
    "Policy",
    "PolicyError",
    "SLASpanProcessor",
    "StagetraceError",
    "StoreError",
    "__version__",
    "batch",
    "carry",
    "instrument",
    "note_tokens",
    "resume",
    "stage",
]

__version__ = "0.1.0"

_HOMES = {
    "KeepBreaches": "stagetrace.bridge.sampling",
    "Policy": "stagetrace.policy.policy",
    "PolicyError": "stagetrace.errors",
    "SLASpanProcessor": "stagetrace.bridge.processor",
    "StagetraceError": "stagetrace.errors",
    "StoreError": "stagetrace.errors",
    "batch": "stagetrace.api.carrier",
    "carry": "stagetrace.api.carrier",
    "instrument": "stagetrace.instrumentation.models.instrument",
    "note_tokens": "stagetrace.api.tokens",
    "resume": "stagetrace.api.carrier",
    "stage": "stagetrace.request.stage",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        message = f"module 'stagetrace' has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(home), name)  # so that it is looked for once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
