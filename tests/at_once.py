"""Run a function in threads of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

A = TypeVar("A")
T = TypeVar("T")


def at_once(work: Callable[[A], T], arguments: Collection[A]) -> list[T]:
    """Call `work` with all arguments at the same time, each in a thread; return the results in their order."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(work, arguments))


def in_a_thread(work: Callable[[], T]) -> T:
    """Return the result of `work` in a new thread, which has ended by then."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
