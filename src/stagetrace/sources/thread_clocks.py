"""Which threads that run Python computed between two moments: their CPU clocks, read from another thread.

A reading opens no file and does not let go of the GIL.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from stagetrace.sources.native_threads import computed_ns

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST: Final = 256  # threads that are read


def read() -> dict[int, int]:
    """Return the CPU time of each thread that Python knows, in nanoseconds by its ident; empty where there is none."""
    clocks = {}
    for ident, thread in _threads():
        try:
            clocks[ident] = computed_ns(thread.native_id)
        except (OSError, TypeError):  # noqa: PERF203 -- it has ended, or not begun; a function for it takes as long again
            continue
    return clocks


def by_ident(clocks: Mapping[int, int]) -> dict[int, int]:
    """Return the CPU times of threads by their numbers as those of the threads that Python knows, by their ident."""
    return {ident: clocks[thread.native_id] for ident, thread in _threads() if thread.native_id in clocks}


def _threads() -> list[tuple[int, Any]]:
    return list(getattr(threading, "_active", {}).items())[:MOST]  # `enumerate` waits for a lock


def computed(first: Mapping[int, int], last: Mapping[int, int]) -> dict[int, int]:
    """Return for how long each thread computed between two readings that both have it."""
    return {thread: now - first[thread] for thread, now in last.items() if now > first.get(thread, now)}
