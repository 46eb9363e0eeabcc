"""What a reader sees of a folder at one moment: files of one version of the table, and the log behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagetrace.store.local import delta, wal
from stagetrace.store.local.tail import Tail

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.store.local.delta import File, Snapshot

TABLE: Final = "spans"
WAL: Final = "wal"
FORMAT: Final = "format.json"
_ATTEMPTS: Final = 20


@dataclass(frozen=True)
class View:
    """One consistent state. `tail` holds what is not in the files; a span may be in both where it came twice."""

    table: Path
    snapshot: Snapshot
    tail: tuple[pa.Table, ...] = ()
    last: int = 0  # number of the newest request

    def files(self, since_ns: int, until_ns: int, *, entry: bool | None = None) -> list[File]:
        """Return the files that may hold spans which start in [since_ns, until_ns)."""
        return [
            file
            for file in self.snapshot.files.values()
            if file.max_start >= since_ns and file.min_start < until_ns and entry in (None, file.entry)
        ]


class Outside:
    """The state of a folder that another process may write to, read from its files. Not for several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = folder / TABLE
        self._snapshot = delta.Snapshot()
        self._tail = Tail()
        self._behind = 0  # the tail holds what comes after this number

    def view(self) -> View:
        """Return the present state."""
        for _ in range(_ATTEMPTS):
            self._snapshot = delta.load(self._table, self._snapshot)
            try:
                self._follow()
            except FileNotFoundError:
                continue  # its spans went into the table in between
            # Whatever left the log while it was read is in a newer version than was looked at before.
            if delta.load(self._table, self._snapshot).stored == self._snapshot.stored:
                break
        last = max(self._snapshot.stored, self._tail.last)
        return View(self._table, self._snapshot, tuple(self._tail.tables()), last)

    def _follow(self) -> None:
        """Bring the tail up to date: drop what the table has, decode what is new."""
        from stagetrace.otlp.decode.request import MalformedRequest, decode

        if self._behind != self._snapshot.stored:
            self._tail, self._behind = Tail(), self._snapshot.stored
        seen = max(self._behind, self._tail.last)
        found = wal.segments(self._folder / WAL)
        for at, (_, path) in enumerate(found):
            if at + 1 < len(found) and found[at + 1][0] <= seen + 1:
                continue
            for sequence, request in wal.read(path, seen):
                try:
                    self._tail.add(sequence, decode(request), len(request))
                except MalformedRequest:  # noqa: PERF203 -- cannot have been acknowledged, and must not stop the others
                    continue
