"""The lag of asyncio event loops: how late a loop runs what is due, measured by a timer of each loop with requests.

The timer is set when a request begins, and again each EVERY_S while further requests begin; an idle loop has none. It
keeps no loop running, and holds no reference to a request.
"""

from __future__ import annotations

import os
import sys
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded
from stagetrace.real_threads import local

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S: Final = 0.1
IDLE_AFTER_NS: Final = 5_000_000_000  # since the last request began
_own = local()  # of each thread: the loop whose timer is set, and when a request began

take: Callable[[int], None] | None = None  # takes each measurement in nanoseconds; None where none is wanted


def _begin_anew() -> None:
    """Forget the parent's, in a forked child."""
    global _own  # noqa: PLW0603
    _own = local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@guarded
def watch() -> None:
    """Measure the loop that runs in this thread, since a request begins on it now."""
    if take is None:
        return
    asyncio: Any = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()  # noqa: SLF001 -- as in recording.working
    _own.began_at = time.monotonic_ns()
    if loop is not None and getattr(_own, "loop", None) is not loop:  # the one before has ended
        _set(loop)
        _own.loop = loop


def _set(loop: Any) -> None:
    due = time.monotonic_ns() + int(EVERY_S * 1e9)
    loop.call_later(EVERY_S, _measure, loop, due, context=Context())  # that of the request would keep its record


@guarded
def _measure(loop: Any, due: int) -> None:
    now, taken = time.monotonic_ns(), take
    _own.loop = None
    if taken is None:
        return
    taken(max(now - due, 0))
    if now - _own.began_at < IDLE_AFTER_NS:
        _set(loop)
        _own.loop = loop
