"""What was kept of late, in a deque to which any thread may append at any time."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections import deque

T = TypeVar("T")


def copied(kept: deque[T]) -> list[T]:
    """Return what is kept now, the latest last.

    With the GIL nobody appends meanwhile. Without it another thread may, or the garbage collector's callback in this
    one: so rarely that the next try succeeds.
    """
    while True:
        with suppress(RuntimeError):  # "deque mutated during iteration"
            return list(kept)
