"""The objective of a benchmark: a percentile and its limit. Needs no library."""

from __future__ import annotations

from typing import NamedTuple


class Objective(NamedTuple):
    """A percentile in (0, 1) of the latency, and its limit in ms."""

    percentile: float
    limit_ms: float

    def __str__(self) -> str:
        """Return it as options write it: `p99:50ms`."""
        return f"{name_of(self.percentile)}:{self.limit_ms:g}ms"


def name_of(percentile: float) -> str:
    """Return `p99.9` of 0.999."""
    return f"p{100 * percentile:.10g}"
