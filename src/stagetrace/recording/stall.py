"""A stall: a stack that was sampled while a request was late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from stagetrace.sources.stacks import Stack

# Whose stack it is.
REQUEST: Final = "request"
BLOCKER: Final = "blocker"  # what ran on the event loop or the thread that the request waited for
RIVAL: Final = "rival"  # the thread that computed while the request waited for a lock or the GIL
POOL: Final = "pool"  # a thread of the pool that had none free
RESUMED: Final = "resumed"  # a block of `resume` in another process, which the request may not have waited for
KINDS: Final = (REQUEST, BLOCKER, RIVAL, POOL, RESUMED)
MOST_KEPT: Final = 64  # of a request: of a stream, each late chunk has samples
# What a thread did there.
UNKNOWN: Final = 0
RAN: Final = 1  # it computed, or waited for a CPU
WAITED: Final = 2  # in the kernel, or as a coroutine


class Stall(NamedTuple):
    """One stack at one time, in nanoseconds since the epoch."""

    at: int
    of: str  # one of the words above
    stack: Stack
    gil_ns: int = 0  # for how long the sampler could not run Python before it, since another thread held the GIL
    threads: int = 1  # that stood there
    out_of: int = 1  # so many threads
    held_ns: int = 0  # of `gil_ns`: it stood there for so long before, as it held the GIL itself
    state: int = UNKNOWN
