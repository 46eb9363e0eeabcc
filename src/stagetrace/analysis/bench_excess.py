"""Where the time lies of requests that were over the limit: in which stage of the server, or outside it.

The excess of a request is its latency above the limit. It is shared among the parts of the latency in proportion to how
much longer each took than it typically takes: than its median in the requests within the limit or, where these are
fewer than 20, than the least tenth of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from stagetrace.analysis.arrays import Floats

GENERATOR: Final = "generator"  # from when a request was due until it was sent
OUTSIDE: Final = "outside"  # sent, and not in the server's entry span: network, connecting, waiting to be accepted
_TYPICAL: Final = 20


@dataclass(frozen=True)
class Excess:
    """How the excess divides among parts: stages, OUTSIDE and GENERATOR; greatest share first, shares add up to 1."""

    over: int  # requests above the limit whose server spans are known
    total_ms: float
    shares: Mapping[str, float]


def parts_of(
    latency_ms: Floats,
    late_ms: Floats,
    server_ms: Floats,
    stages_ms: Mapping[str, Floats],
) -> dict[str, Floats]:
    """Return each part of the latencies, in ms. Stages that a request lacks are 0, as are negative parts."""
    outside = np.maximum(0.0, latency_ms - late_ms - server_ms)
    parts = {GENERATOR: np.maximum(0.0, late_ms), OUTSIDE: outside}
    return {**{stage: np.nan_to_num(values, nan=0.0) for stage, values in stages_ms.items()}, **parts}


def excess(latency_ms: Floats, parts: Mapping[str, Floats], limit_ms: float) -> Excess | None:
    """Return where the excess of answered requests lies; None where none is above the limit or no part is longer."""
    over = latency_ms > limit_ms
    if not over.any():
        return None
    more = {}
    for part, values in parts.items():
        within = values[~over]
        typical = np.median(within) if len(within) >= _TYPICAL else np.quantile(values, 0.1)
        more[part] = np.maximum(0.0, values[over] - typical)
    longer = np.sum(list(more.values()), axis=0)
    beyond = latency_ms[over] - limit_ms
    known = longer > 0
    total = float(beyond[known].sum())
    if total <= 0:
        return None
    shares = {
        part: float((beyond[known] * values[known] / longer[known]).sum() / total) for part, values in more.items()
    }
    ranked = sorted(((part, share) for part, share in shares.items() if share > 0), key=lambda one: (-one[1], one[0]))
    return Excess(int(over.sum()), total, dict(ranked))
