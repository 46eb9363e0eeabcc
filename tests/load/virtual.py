"""An event loop with a clock of its own: waiting takes no time, and every timer is exact."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import TypeVar

    T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Moves the clock on in place of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def run(main: Coroutine[Any, Any, T]) -> T:
    loop = _Loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


class Exchange:
    def __init__(self, sent_s: float, timer: asyncio.TimerHandle) -> None:
        self.sent_s: float | None = sent_s
        self._timer = timer

    def cancel(self) -> None:
        self._timer.cancel()


class Server:
    """Answers request `number`, sent at `at`, at the time that `answered_at(number, at)` says; at once, or late."""

    def __init__(self, answered_at: Callable[[int, float], float], failure: Callable[[int], str | None]) -> None:
        self._answered_at = answered_at
        self._failure = failure
        self.traceparents: list[str] = []

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def send(self, number: int, traceparent: str, done: Callable[[str | None], None]) -> Exchange:
        loop = asyncio.get_running_loop()
        self.traceparents.append(traceparent)
        at = self._answered_at(number, loop.time())
        return Exchange(loop.time(), loop.call_at(at, done, self._failure(number)))
