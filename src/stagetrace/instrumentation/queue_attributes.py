"""The attributes of a wait for a thread of a pool."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stagetrace.process_status.counts import crowded_waits
from stagetrace.semconv import QUEUE_POOL_SIZE, QUEUE_REASON, QUEUE_WAITERS

if TYPE_CHECKING:
    from collections.abc import Mapping


def wait(reason: str, size: Any, waiters: int) -> Mapping[str, Any]:
    """Return the attributes, not to be changed, of a wait that begins now; `size` is None where the pool has none."""
    if waiters:
        crowded_waits[reason] = crowded_waits.get(reason, 0) + 1
    return _wait(reason, size, waiters)


@lru_cache(4_096)
def _wait(reason: str, size: Any, waiters: int) -> Mapping[str, Any]:
    is_known = isinstance(size, int)  # not infinite, not unknown
    return {QUEUE_REASON: reason, **({QUEUE_POOL_SIZE: size, QUEUE_WAITERS: waiters} if is_known else {})}
