"""What the thread of an event loop did lately: its account every few milliseconds, as requests begin on it.

A task that is suspended is late for what it awaits, or since the loop was busy. Which of them, only the loop's thread
tells: while that is idle, each task that could go on has done so.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from stagetrace.real_threads import local
from stagetrace.sources.thread_cpu import AT, account, between, looked

if TYPE_CHECKING:
    from stagetrace.sources.thread_cpu import Reading, Share

EVERY_NS: Final = 5_000_000
MAX_KEPT: Final = 128
_own = local()


def _begin_anew() -> None:
    """Forget the parent's, in a forked child."""
    global _own  # noqa: PLW0603
    _own = local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def note(now: int) -> None:
    """Note the account of the calling thread, which has a loop, unless one was noted just before."""
    if not 0 <= now - getattr(_own, "noted_at", 0) < EVERY_NS:
        _own.noted_at = now
        _note(now)


def _note(now: int | None) -> None:
    kept: list[Reading] | None = getattr(_own, "kept", None)
    if kept is None:
        kept = _own.kept = []
    taken = account(now)
    if taken is None:
        return
    kept.append(looked(kept[-1], taken) if kept else taken)
    if len(kept) > MAX_KEPT:
        del kept[: MAX_KEPT // 2 : 2]  # the older ones grow apart


def lately(start: int, end: int) -> list[tuple[int, int, Share]]:
    """Return how the time of the calling thread has divided from `start` to `end`: begin, end and share of each part.

    The first part may begin before, and the last one end after. Empty where nothing was noted, or it has no loop.
    """
    if getattr(_own, "kept", None):
        _note(None)
    found = []
    for last, first in pairwise(reversed(getattr(_own, "kept", ()))):
        if last[AT] <= start:
            break
        if first[AT] < end and (share := between(first, last)) is not None:
            found.append((first[AT], last[AT], share))
    return found
