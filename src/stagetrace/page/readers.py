"""Readers of the store, each used by one thread at a time and then kept for the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from stagetrace.store import database

if TYPE_CHECKING:
    from stagetrace.store.base import Reader


class Readers:
    """Thread-safe. `_lock` guards `_busy`."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._open = open_reader
        self._idle: SimpleQueue[Reader] = SimpleQueue()
        self._lock = threading.Lock()
        self._busy: dict[int, Reader] = {}  # thread -> what it asks

    @contextmanager
    def one(self) -> Iterator[Reader]:
        """Yield a reader for exclusive use; after an error it is closed, not kept."""
        try:
            reader = self._idle.get_nowait()
        except Empty:
            reader = self._open()
        thread = threading.get_ident()
        with self._lock:
            self._busy[thread] = reader
        release = reader.close
        try:
            yield reader
            release = partial(self._idle.put, reader)
        finally:
            with self._lock:
                del self._busy[thread]
            release()

    def interrupt(self) -> None:
        """Have the questions that are being asked fail, which are the last ones."""
        with self._lock:
            for reader in self._busy.values():
                reader.interrupt()
            database.interrupt(set(self._busy))

    def close(self) -> None:
        """Close the idle readers."""
        while not self._idle.empty():
            self._idle.get().close()
