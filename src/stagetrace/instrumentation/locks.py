"""Locks and semaphores of asyncio and AnyIO: the wait of a request for one that other requests have is a `queue`.

A lock of a library is not looked at: it may stand for anything, as where one of the callers of an HTTP/2 connection
reads for all of them.
"""

from __future__ import annotations

import functools
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import wrap_all
from stagetrace.request.current import current, recording
from stagetrace.request.stages import GAP
from stagetrace.semconv import QUEUE, QUEUE_REASON

if TYPE_CHECKING:
    from types import FrameType, ModuleType

    from stagetrace.request.request import Request

REASONS = {"Lock": "lock", "Semaphore": "semaphore"}
LONG_NS = 1_000_000  # shorter waits stay in their stage
_BETWEEN = ("asyncio", "anyio", "contextlib", "stagetrace")  # what stands between a lock and the code that wants it
_current = current.get


def patch_locks(module: ModuleType) -> None:
    """Wrap `acquire` of the locks that the module has; AnyIO has none in its back ends before 4.5."""
    wrap_all(
        (getattr(module, name), "acquire", functools.partial(_acquiring, reason))
        for name, reason in REASONS.items()
        if hasattr(module, name)
    )


def _acquiring(reason: str, original: Any) -> Any:
    @functools.wraps(original)
    async def acquire(self: Any) -> Any:
        request = None if _current() is None else _waiting(self)
        if request is None:
            return await original(self)
        since = time_ns()
        try:
            return await original(self)
        finally:
            _note(request, reason, since)

    return acquire


@guarded
def _waiting(lock: Any) -> Request | None:
    """Return the request that will wait for a lock: its own code wants it, between its other stages; else None."""
    request = recording()
    if request is None or request.step is None or request.is_batch or not _is_taken(lock):
        return None
    return request if _is_wanted_by_application() and request.so_far()[-1].stage == GAP else None


def _is_taken(lock: Any) -> bool:
    return bool(lock.locked() if hasattr(lock, "locked") else lock.value == 0)


def _is_wanted_by_application() -> bool:
    from stagetrace.causes.code import is_library

    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    return frame is not None and not is_library(frame.f_code.co_filename)


@guarded_end
def _note(request: Request, reason: str, since: int) -> None:
    """Note the wait, unless another step of the request ended meanwhile: then the request has waited for itself."""
    now = time_ns()
    if now - since >= LONG_NS and request.suspended_at - since < LONG_NS:
        request.visit(QUEUE, (since, now), {QUEUE_REASON: reason})
