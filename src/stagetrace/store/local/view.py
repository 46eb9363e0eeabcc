"""What a reader sees of a folder at one moment: files of one version of the table, and the log behind it.

The log's spans, acknowledged and not in the table yet, are a `Tail`: Arrow tables that grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagetrace.otlp.decode.arrow_table import repeated, table
from stagetrace.otlp.decode.columns import SEQUENCE
from stagetrace.store.local import delta, parquet, wal
from stagetrace.store.local.snapshot import Snapshot

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.otlp.decode.request import Decoded
    from stagetrace.store.local.snapshot import File

TABLE: Final = "spans"
WAL: Final = "wal"
FORMAT: Final = "format.json"
_ATTEMPTS: Final = 20
# Arrow takes a fifth of the memory of Python's lists. Not too much at once: what was one large block of memory is, once
# free, full of holes.
_SEALED_ROWS: Final = 8192
_SEALED_BYTES: Final = 1 * 1024 * 1024


@dataclass(frozen=True)
class View:
    """One consistent state. `tail` holds what is not in the files; a span may be in both where it came twice."""

    table: Path
    snapshot: Snapshot
    tail: tuple[pa.Table, ...] = ()
    last: int = 0  # number of the newest request
    lost: int = 0  # requests that are missing from the log

    def files(self, since_ns: int, until_ns: int, *, entry: bool | None = None) -> list[File]:
        """Return the files that may hold spans which start in [since_ns, until_ns), but damaged ones."""
        return self.split(since_ns, until_ns, entry=entry)[0]

    def split(self, since_ns: int, until_ns: int, *, entry: bool | None = None) -> tuple[list[File], list[File]]:
        """Return the files as `files` does, and those of the same times that are missing or damaged."""
        found = [
            file
            for file in self.snapshot.files.values()
            if file.max_start >= since_ns and file.min_start < until_ns and entry in (None, file.entry)
        ]
        damaged = [file for file in found if not parquet.is_whole(self.table / file.path)]
        return [file for file in found if file not in damaged], damaged


class Tail:
    """Requests in order of their numbers. Not safe for several threads."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.last = 0  # number of the newest request
        self._tables: list[pa.Table] = []
        self._open: list[tuple[int, Decoded]] = []
        self._open_rows = self._open_bytes = 0

    def add(self, sequence: int, decoded: Decoded, size: int) -> None:
        """Take in one request of `size` bytes."""
        self._open.append((sequence, decoded))
        self._open_rows += decoded.accepted
        self._open_bytes += size
        self.rows += decoded.accepted
        self.bytes += size
        self.last = sequence
        if self._open_rows >= _SEALED_ROWS or self._open_bytes >= _SEALED_BYTES:
            self._seal()

    def replay(self, frame: wal.Frame) -> None:
        """Take in one request of the log. Raise MalformedRequest."""
        from stagetrace.otlp.decode.request import decode  # a command that finds an empty log does without
        from stagetrace.otlp.decode.spans import EVER

        decoded = decode(frame.request, latest=EVER if frame.latest is None else frame.latest)
        self.add(frame.sequence, decoded, len(frame.request))

    def over(self, rows: int, size: int) -> bool:
        """Return whether it holds at least so many spans or bytes."""
        return self.rows >= rows or self.bytes >= size

    def tables(self) -> list[pa.Table]:
        """Return all spans."""
        self._seal()
        return list(self._tables)

    def _seal(self) -> None:
        if self._open_rows:
            self._tables.append(with_sequence(self._open))
        self._open, self._open_rows, self._open_bytes = [], 0, 0


def with_sequence(requests: Sequence[tuple[int, Decoded]]) -> pa.Table:
    """Return the spans of some requests with the number of theirs."""
    spans = table([decoded for _, decoded in requests])
    return spans.append_column(SEQUENCE, repeated([(number, one.accepted) for number, one in requests], "q"))


class Outside:
    """The state of a folder that another process may write to, read from its files. Not for several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = folder / TABLE
        self._snapshot = Snapshot()
        self._tail = Tail()
        self._behind = 0  # the tail holds what comes after this number
        self._lost = 0  # requests that the log lacks behind it

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
        return View(self._table, self._snapshot, tuple(self._tail.tables()), last, self._lost)

    def _follow(self) -> None:
        """Bring the tail up to date: drop what the table has, decode what is new."""
        from stagetrace.otlp.decode.request import MalformedRequest

        if self._behind != self._snapshot.stored:
            self._tail, self._behind, self._lost = Tail(), self._snapshot.stored, 0
        replay = wal.Replay(self._folder / WAL, max(self._behind, self._tail.last))
        for frame in replay:
            try:
                self._tail.replay(frame)
            except MalformedRequest:  # noqa: PERF203 -- cannot have been acknowledged, and must not stop the others
                continue
        self._lost += replay.lost
