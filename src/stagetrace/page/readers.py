"""Readers of the store, each used by one thread at a time and then kept for the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagetrace.store.base import Reader


class Readers:
    """Thread-safe."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._open = open_reader
        self._idle: SimpleQueue[Reader] = SimpleQueue()

    @contextmanager
    def one(self) -> Iterator[Reader]:
        """Yield a reader for exclusive use; after an error it is closed, not kept."""
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = self._open()
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        self._idle.put(reader)

    def close(self) -> None:
        """Close the idle readers."""
        while not self._idle.empty():
            self._idle.get().close()
