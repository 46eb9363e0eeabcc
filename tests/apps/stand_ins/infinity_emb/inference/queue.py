"""The list that items wait in, and who waits for their futures."""

import threading
from collections.abc import Iterator
from typing import Any


class CustomFIFOQueue:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: list[Any] = []
        self._sync_event = threading.Event()

    def extend(self, items: list[Any]) -> None:
        with self._lock:
            self._queue.extend(items)
        self._sync_event.set()

    def pop_optimal_batches(self, size: int, timeout: float = 0.2) -> Iterator[list[Any]]:
        if not self._queue and not self._sync_event.wait(timeout):
            return
        with self._lock:
            taken, self._queue = self._queue[: size * 8], self._queue[size * 8 :]
            if not self._queue:
                self._sync_event.clear()
        items = [one.item for one in sorted(taken, key=lambda one: one.priority) if not one.item.future.done()]
        for at in range(0, len(items), size):
            yield items[at : at + size]


class ResultKVStoreFuture:
    async def wait_for_response(self, item: Any) -> Any:
        return await item.future
