"""Major page faults of the process, which waited for a disk: read as `machine.pressure` is, every few seconds."""

from __future__ import annotations

from stagetrace import settings
from stagetrace.sources.base import Source
from stagetrace.sources.machine import Meter

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SOURCE = Source(
    __name__,
    "page faults",
    settings.USAGE,
    lambda: None if resource is not None else "this platform has no getrusage",
)


def count_major_faults() -> int:
    """Return how many page faults of this process have waited for a disk since it began."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_majflt)


major_faults = Meter(SOURCE, count_major_faults)
