"""A cache in bounded memory, for what `functools.lru_cache` cannot remember: its caller computes the value."""

from __future__ import annotations

from typing import TypeVar

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
