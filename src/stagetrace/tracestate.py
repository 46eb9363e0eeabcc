"""OpenTelemetry's consistent probability sampling: what `ot=th:...` in a tracestate says of how likely a trace is kept.

A trace is kept whose random value, 56 bits, is no less than the threshold: `th`, up to 14 hexadecimal digits without
trailing zeros. The value is `rv` where the root gave one, else the last 56 bits of the trace id.
https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/
"""

from __future__ import annotations

import re
from typing import Final

KEY: Final = "ot"
_DIGITS: Final = 14
_ALL: Final = 1 << 4 * _DIGITS
_THRESHOLD: Final = re.compile(rf"(?:^|;)th:([0-9a-f]{{1,{_DIGITS}}})(?:;|$)", re.ASCII)
_LOW: Final = (1 << 64) - 1


def probability(value: str) -> float | None:
    """Return how likely a trace is kept by the value of `ot`; None where it says none, or nothing that is one."""
    found = _THRESHOLD.search(value.strip(" \t"))
    if found is None:
        return None
    return (_ALL - int(found[1].ljust(_DIGITS, "0"), 16)) / _ALL


def value_of(trace_id: int, bound: int) -> str | None:
    """Return the value of `ot` for a trace that was kept since its id's last 64 bits are below `bound`.

    That is what TraceIdRatioBased goes by, not the specification's comparison: `rv` says the random value by which both
    come to the same. None for a bound too low to be said.
    """
    if bound < 1 << 8:
        return None
    threshold = ((1 << 64) - bound) >> 8
    digits = f"{threshold:0{_DIGITS}x}".rstrip("0") or "0"
    return f"th:{digits};rv:{(~trace_id & _LOW) >> 8:0{_DIGITS}x}"
