"""What the thread of an event loop did recently: a CPU sample every few milliseconds, when requests begin on it.

A suspended task resumes late because of what it awaits, or because the loop was busy. The loop's thread shows which:
while it is idle, every task that can run has run.
"""

from __future__ import annotations

import os
import sys
import time
from contextvars import Context
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded
from stagetrace.sources.thread_cpu import AT, between, sample, with_native_threads
from stagetrace.system.threads import local

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.sources.thread_cpu import CpuSample, Share

EVERY_NS: Final = 5_000_000
MAX_KEPT: Final = 128
NEAR_PART: Final = 64  # within so small a part of a request's time before its end, a sample is as good as a new one

# --- The lag of asyncio event loops: how late a loop runs what is due, measured by a timer of each loop with requests.
#
# The timer is set when a request begins, and again each EVERY_S while further requests begin; an idle loop has none. It
# keeps no loop running, and holds no reference to a request.

_own = local()


def _begin_anew() -> None:
    """Forget the parent's, in a forked child."""
    global _own  # noqa: PLW0603
    _own = local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def record(now: int) -> None:
    """Take a CPU sample of the calling thread, which runs a loop, unless one was taken just before."""
    if not 0 <= now - getattr(_own, "recorded_at", 0) < EVERY_NS:
        _own.recorded_at = now
        _record(now)


def _record(now: int | None) -> None:
    if now is not None:
        watch()
    kept: list[CpuSample] | None = getattr(_own, "kept", None)
    if kept is None:
        kept = _own.kept = []
    taken = sample(now)
    if taken is None:
        return
    kept.append(with_native_threads(kept[-1], taken) if kept else taken)
    if len(kept) > MAX_KEPT:
        del kept[: MAX_KEPT // 2 : 2]  # every second one of the older half


def recent_shares(start: int, end: int) -> list[tuple[int, int, Share]]:
    """Return how the time of the calling thread has divided from `start` to `end`: begin, end and share of each part.

    The first part may begin before, and the last one end after. Empty where nothing was recorded, or it has no loop.
    """
    kept: list[CpuSample] = getattr(_own, "kept", [])
    if kept and (end - kept[-1][AT]) * NEAR_PART > end - start:  # many requests may end at once
        _record(None)
    known: dict[tuple[int, int], Share | None] = _own.__dict__.setdefault("shares", {})
    if len(known) > 2 * MAX_KEPT:
        known.clear()
    found = []
    for last, first in pairwise(reversed(kept)):
        since, until = first[AT], last[AT]
        if until <= start:
            break
        if since >= end:
            continue
        try:
            share = known[since, until]
        except KeyError:
            share = known[since, until] = between(first, last)
        if share is not None:
            found.append((since, until, share))
    return found


EVERY_S: Final = 0.1
IDLE_AFTER_NS: Final = 5_000_000_000  # since the last request began
_timers = local()  # of each thread: the loop whose timer is set, and when a request began

take: Callable[[int], None] | None = None  # takes each measurement in nanoseconds; None where none is wanted


def _forget_timers() -> None:
    """Forget the parent's, in a forked child."""
    global _timers  # noqa: PLW0603
    _timers = local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_timers)


@guarded
def watch() -> None:
    """Measure the loop that runs in this thread, since a request begins on it now."""
    if take is None:
        return
    asyncio: Any = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()  # noqa: SLF001 -- as in recording.working
    _timers.began_at = time.monotonic_ns()
    if loop is not None and getattr(_timers, "loop", None) is not loop:  # the one before has ended
        _set(loop)
        _timers.loop = loop


def _set(loop: Any) -> None:
    due = time.monotonic_ns() + int(EVERY_S * 1e9)
    loop.call_later(EVERY_S, _measure, loop, due, context=Context())  # that of the request would keep its record


@guarded
def _measure(loop: Any, due: int) -> None:
    now, taken = time.monotonic_ns(), take
    _timers.loop = None
    if taken is None:
        return
    taken(max(now - due, 0))
    if now - _timers.began_at < IDLE_AFTER_NS:
        _set(loop)
        _timers.loop = loop
