"""The order in which spooled batches are delivered: the spool's, but one that fails by itself holds up no other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.otlp.export.spool import Spool

STUCK_AFTER: Final = 3  # failures in a row: it may be the batch, so others have their turn
_LIST_AGAIN_AFTER_S: Final = 10.0


class ReplayOrder:
    """The names of the batches in a spool.

    While a receiver is away, each batch that is tried fails, and those are the first breaches. So that they do not end
    up behind all others, a batch that has failed often is only suspected; an empty request then shows whether the
    receiver takes anything at all.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: list[str] = []  # the next one last
        self._listed_at = 0.0
        self._failures: dict[str, int] = {}
        self._blamed: set[str] = set()

    def turn(self) -> Iterator[str]:
        """Yield the names, each once before any comes again; the caller settles those that it has taken."""
        if not self._names or time.monotonic() - self._listed_at > _LIST_AGAIN_AFTER_S:
            self._list()
        while self._names:
            yield self._names.pop()

    def _list(self) -> None:
        names = self._spool.names()
        self._failures = {name: self._failures[name] for name in names if name in self._failures}
        self._blamed.intersection_update(names)
        self._names = sorted(names, key=self._blamed.__contains__)[::-1]  # stable: else as they are
        self._listed_at = time.monotonic()

    def suspects(self, name: str) -> bool:
        """Return whether a batch has failed so often that it may be its own fault."""
        return self._failures.get(name, 0) >= STUCK_AFTER

    def failed(self, name: str) -> None:
        """Note that a batch is not delivered: if it was suspected, at a time when the receiver takes others."""
        if self.suspects(name):
            self._blamed.add(name)
        self._failures[name] = self._failures.get(name, 0) + 1
        self._names = []

    def away(self) -> None:
        """Note that the receiver takes nothing at all."""
        self._names = []
