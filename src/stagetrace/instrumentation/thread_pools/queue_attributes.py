"""The attributes of a wait for a thread of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.semconv import QUEUE_POOL_SIZE, QUEUE_REASON, QUEUE_WAITERS

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CACHED = 4_096
crowded: dict[str, int] = {}  # by reason: how many waits began while others waited
_waits: dict[tuple[str, Any, int], dict[str, Any]] = {}


def wait(reason: str, size: Any, waiters: int) -> Mapping[str, Any]:
    """Return the attributes, not to be changed, of a wait that begins now; `size` is None where the pool has none."""
    if waiters:
        crowded[reason] = crowded.get(reason, 0) + 1
    key = (reason, size, waiters)
    attributes = _waits.get(key)
    if attributes is None:
        attributes = {QUEUE_REASON: reason}
        if isinstance(size, int):  # not infinite, not unknown
            attributes.update({QUEUE_POOL_SIZE: size, QUEUE_WAITERS: waiters})
        if len(_waits) >= MAX_CACHED:
            _waits.clear()
        _waits[key] = attributes
    return attributes
