"""What a blocked thread waits for: another thread of this process, or something outside the process.

The kernel keeps no record of that. So a native thread asks it, every few milliseconds, in which system call each thread
is that may serve a request: a thread that waits for the GIL, a lock or a queue is in `futex`. It never takes the GIL
and sleeps while no request runs. Without the part in C (`native/blocked_threads.c`) there is none, and nothing is seen.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from stagetrace.native import native

if TYPE_CHECKING:
    from collections.abc import Callable

ENOUGH: Final = 2  # samples
_native = native("blocked_threads")

claim: Callable[[int], int] = getattr(_native, "claim_place", lambda _: -1)
touch: Callable[[int], int] = getattr(_native, "touch_place", lambda _: 0)
leave: Callable[[int], None] = getattr(_native, "leave_place", lambda _: None)
release: Callable[[int], None] = getattr(_native, "release_place", lambda _: None)

if hasattr(_native, "forget_places"):
    os.register_at_fork(after_in_child=_native.forget_places)


def for_threads(before: int, after: int) -> float | None:
    """Return in which share of the samples between two `touch`es a blocked thread waited for another; None if few."""
    locks = (after >> 32) - (before >> 32) & 0xFFFFFFFF
    others = after - before & 0xFFFFFFFF
    return locks / (locks + others) if locks + others >= ENOUGH else None
