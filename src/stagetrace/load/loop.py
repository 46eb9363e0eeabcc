"""An event loop whose timers are punctual to tens of microseconds; epoll alone rounds up to whole milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from select import select
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a new loop. uvloop is not used: its timers are of whole milliseconds, too."""
    loop = asyncio.SelectorEventLoop(_selector())
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            loop.run_until_complete(_cancel_rest())
        finally:
            loop.close()


async def _cancel_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def _selector() -> selectors.BaseSelector:
    if not hasattr(selectors, "EpollSelector"):
        return selectors.DefaultSelector()  # kqueue takes nanoseconds

    class Punctual(selectors.EpollSelector):
        """Waits for the epoll instance with select(2), whose timeout has microseconds, then asks it without waiting."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select([self.fileno()], (), (), timeout)
                timeout = 0
            return super().select(timeout)

    return Punctual()
