"""Coroutines in a thread: while a browser runs, the main thread has the event loop of Playwright."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def run_alone(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns, run on a loop of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
