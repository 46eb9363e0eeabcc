"""The order in which spooled batches are delivered: the spool's, but one that fails by itself holds up no other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.otlp.spool import Spool

STUCK_AFTER: Final = 3  # failures in a row: it may be the batch, so others have their turn
_LIST_AGAIN_AFTER_S: Final = 10.0


class Backlog:
    """The names of the batches in a spool.

    While a receiver is away, whatever is tried fails, and the first breaches would end up behind all else. So once
    something is delivered each has its place again, but only once: what then still fails is at fault itself.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: list[str] = []  # the next one last
        self._listed_at = 0.0
        self._failures: dict[str, int] = {}
        self._acquitted: set[str] = set()

    def turn(self) -> Iterator[str]:
        """Give the names, each once before any comes again; those that are given are in the caller's care."""
        if not self._names or time.monotonic() - self._listed_at > _LIST_AGAIN_AFTER_S:
            self._list()
        while self._names:
            yield self._names.pop()

    def _list(self) -> None:
        names = self._spool.names()
        self._failures = {name: self._failures[name] for name in names if name in self._failures}
        self._acquitted.intersection_update(names)
        # Stable: else as they are.
        self._names = sorted(names, key=lambda name: self._failures.get(name, 0) >= STUCK_AFTER)[::-1]
        self._listed_at = time.monotonic()

    def failed(self, name: str) -> None:
        """Note that a batch is not delivered, by its own fault or the receiver's."""
        self._failures[name] = self._failures.get(name, 0) + 1
        self._names = []

    def works_again(self) -> None:
        """Note that the receiver has taken something after failures."""
        acquitted = self._failures.keys() - self._acquitted
        if acquitted:
            self._acquitted |= acquitted
            for name in acquitted:
                del self._failures[name]
            self._names = []
