"""Parts that were made a moment ago, for all who ask the same: a hundred viewers of a board are one query."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, NamedTuple

KEPT_S: Final = 2.0  # at least; and as long as it took to make
_MOST: Final = 256
_BYTES: Final = 32 << 20


class Made(NamedTuple):
    """A part as it is sent, and how long the store took for it."""

    body: bytes
    status: int
    took_s: float
    type: str = "text/html"
    file: str | None = None  # as which a browser saves it


class Cache:
    """Thread-safe. Who asks while a part is made waits for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the next two
        self._entries: OrderedDict[str, tuple[float, Future[Made]]] = OrderedDict()  # until when
        self._bytes = 0

    def get(self, key: str, make: Callable[[], Made]) -> Made:
        """Return the part of this key, made now if it is not there."""
        future: Future[Made] = Future()
        with self._lock:
            until, kept = self._entries.get(key, (0.0, future))
            is_ours = kept is future or (kept.done() and until <= self._clock())
            if is_ours:
                self._drop(key)
                self._entries[key] = (0.0, future)
        if not is_ours:
            return kept.result()
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                self._drop(key)
            future.set_exception(error)
            raise
        with self._lock:
            if made.status == 200 and self._entries.get(key, (0.0, None))[1] is future:  # noqa: PLR2004
                self._entries[key] = (self._clock() + max(KEPT_S, made.took_s), future)
                self._bytes += len(made.body)
            future.set_result(made)
            if made.status != 200:  # noqa: PLR2004
                self._drop(key)
            self._make_room()
        return made

    def _drop(self, key: str) -> None:
        _, old = self._entries.pop(key, (0.0, None))
        if old is not None and old.done() and old.exception() is None and old.result().status == 200:  # noqa: PLR2004
            self._bytes -= len(old.result().body)

    def _make_room(self) -> None:
        for key in list(self._entries):
            if len(self._entries) <= _MOST and self._bytes <= _BYTES:
                return
            if self._entries[key][1].done():
                self._drop(key)
