"""Lines that a client can cause as often as it likes: of each kind at most one in ten seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from stagetrace import log

_INTERVAL_S: Final = 10


class ThrottledLog:
    """Logs the first line of a kind, then how many there were since. `_lock` guards `_kinds`."""

    def __init__(self, interval_s: float = _INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}  # kind -> (when its next line may come, how many came since)

    def warning(self, kind: str, message: str) -> None:
        """Log `message`, unless a line of this kind was logged less than the interval ago."""
        self._log(log.warning, kind, message)

    def error(self, kind: str, message: str) -> None:
        """Log `message` as an error, likewise."""
        self._log(log.error, kind, message)

    def _log(self, write: Callable[[str], None], kind: str, message: str) -> None:
        unlogged = self.due(kind)
        if unlogged is not None:
            write(f"{message} ({unlogged} more since the last such line)" if unlogged else message)

    def due(self, kind: str) -> int | None:
        """Return how many of a kind were not logged since its last line if it is time for the next, else None."""
        now = time.monotonic()
        with self._lock:
            due, unlogged = self._kinds.get(kind, (now, 0))
            if now < due:
                self._kinds[kind] = (due, unlogged + 1)
                return None
            self._kinds[kind] = (now + self._interval_s, 0)
            return unlogged
