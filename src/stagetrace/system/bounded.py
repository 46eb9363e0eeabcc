"""Collections in bounded memory: a cache, and what was kept of late."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections import deque

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(dict[K, V]):
    """A dictionary that is emptied when it is full: made-up keys cost no more than what is computed again.

    Entries are added by `cache[key] = value` alone. Safe to use from several threads, which may exceed `limit` by one
    each.
    """

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= self.limit:
            self.clear()
        super().__setitem__(key, value)


T = TypeVar("T")


def copied(kept: deque[T]) -> list[T]:
    """Return what is kept now, the latest last.

    With the GIL nobody appends meanwhile. Without it another thread may, or the garbage collector's callback in this
    one: so rarely that the next try succeeds.
    """
    while True:
        with suppress(RuntimeError):  # "deque mutated during iteration"
            return list(kept)
