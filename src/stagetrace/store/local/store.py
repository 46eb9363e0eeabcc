"""The one writer of a local store: acknowledge once in the log, move to the table in the background."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.columns import arrow, join_tables
from stagetrace.otlp.decode.request import decode
from stagetrace.store.base import Closing, Mark
from stagetrace.store.database import close
from stagetrace.store.local import delta, marks, relation, wal
from stagetrace.store.local.counts import CountStore, Point
from stagetrace.store.local.delta import ARCHIVED, Clock
from stagetrace.store.local.folder import TABLE, WAL, Tail, View, announce, prepare
from stagetrace.store.local.relation import DistinctTail
from stagetrace.store.local.table import Table, recover

if TYPE_CHECKING:
    from stagetrace.otlp.decode.spans import Decoded
    from stagetrace.store.local.delta import File
    from stagetrace.store.local.reader import LocalReader

T = TypeVar("T")

_MMAP_THRESHOLD: Final = -3  # of <malloc.h>
_BYTES: Final = 1024 * 1024


def keep_large_blocks_apart() -> None:
    """Have Arrow take its memory from the C library, and glibc map each larger block on its own; elsewhere do nothing.

    Arrow's own pool keeps much of what it once had. glibc by itself stops doing so for all sizes up to 32 MiB as soon
    as one such block has been freed: a store under attributes of a mebibyte each then took twice the memory, half of it
    holes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _BYTES)
        arrow().set_memory_pool(arrow().system_memory_pool())


def give_back() -> None:
    """Return free memory to the system."""
    arrow().default_memory_pool().release_unused()


FLUSH_ROWS: Final = 65_536
FLUSH_BYTES: Final = 16 * 1024 * 1024
FLUSH_S: Final = 10.0
PENDING: Final = 2  # times as much, and `append` waits for the table
RESERVE_BYTES: Final = 64 * 1024 * 1024  # of the disk stay free: room to move the log into the table
TIDY_S: Final = 30.0
RETENTION_SLACK: Final = 0.1  # of the age, within which spans of one file are received: it is dropped as a whole
ARCHIVE_SPREAD_MS: Final = 3_600_000  # within which they are where files go into an archive: each is there that late
_CLAIMED: Final = 16  # files at a time, which no merge takes while they are copied
_RETRY_S: Final = 1.0
COUNTS: Final = (
    *("requests", "spans_accepted", "spans_rejected", "spans_duplicate", "spans_expired"),
    "files_merged",
)
MAKE_ROOM: Final = "free some, or keep less with --retention; stored spans can still be read"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreFull(StoreError):  # noqa: N818 - a state, not a fault
    """Say that the disk has no room: nothing of the request was kept, and it may be sent again later."""


class Limits(NamedTuple):
    """Limits of a store: what it may keep, and the disk space that it leaves."""

    retention_s: float | None
    retention_bytes: int | None
    reserve_bytes: int
    archived: bool = False


class Appended(NamedTuple):
    """The outcome of a request: spans on disk, what was refused and why."""

    accepted: int
    rejected: int
    reason: str | None


class LocalStore(Closing):
    """The open store. Safe to use from several threads; one that is not closed is recovered by the next open."""

    def __init__(self, folder: Path, lock: int, limits: Limits) -> None:
        """Use `open`."""
        self.folder = folder
        self._lock_file = lock
        self._limits = limits
        self._state = threading.Condition()  # guards the seven below
        self._tail = Tail()
        self._moving: Tail | None = None  # is being written to the table
        self._snapshot = delta.load(folder / TABLE)
        self._flush_due = 0.0
        self._flush_error: OSError | None = None
        self._closing = False
        self._counts = dict.fromkeys(COUNTS, 0)
        self._table_lock = threading.Lock()  # guards the table; taken before any other
        self._clock = Clock(self._snapshot, limits.retention_s)
        age_s = limits.retention_s
        spreads = [] if age_s is None else [max(1, int(age_s * 1000 * RETENTION_SLACK))]
        spreads += [ARCHIVE_SPREAD_MS] if limits.archived else []
        self._table = Table(folder / TABLE, self._snapshot, self._clock, min(spreads, default=None))
        self._table.delete_strays()
        recover(folder / WAL, self._table, FLUSH_BYTES)
        self._snapshot = self._table.snapshot
        self._database = relation.database(folder, relation.MEMORY)
        self._distinct = DistinctTail()
        self._exact = CountStore(folder, limits.retention_s, self._clock.now)
        self._wal: wal.Wal[Decoded] = wal.Wal(folder / WAL, self._snapshot.stored + 1, self._on_durable)
        self._flusher = threading.Thread(target=self._work, name="stagetrace-store", daemon=True)
        self._flusher.start()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        retention_s: float | None = None,
        retention_bytes: int | None = None,
        reserve_bytes: int = RESERVE_BYTES,
        archived: bool = False,
    ) -> LocalStore:
        """Open or make the store in `folder`. Raise StoreTaken, StoreError if not writable or of a newer format.

        Spans that were received longer than `retention_s` ago are dropped (some a tenth of that later), and the oldest
        files of what takes more than `retention_bytes`. With `archived`, files are made that `claim` gives in time.
        """
        arrow()
        keep_large_blocks_apart()
        lock = None
        try:
            lock = prepare(folder)
            return cls(folder, lock, Limits(retention_s, retention_bytes, reserve_bytes, archived))
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, OSError):
                raise _refusal(folder, error) from error
            raise

    def announce(self, control: Path) -> None:
        """Tell others, by the folder's lock, of a socket through which they may write."""
        announce(self._lock_file, control)

    def append(self, request: bytes, check: Callable[[], None] | None = None) -> Appended:
        """Store one serialized ExportTraceServiceRequest; return when it is on disk.

        `check` is as in `decode`. Resources and scopes without a span count as refused, and so does a span that starts
        more than an hour ahead of this machine's time. Raise StoreFull where the disk has no room, MalformedRequest
        where the request is no OTLP.
        """
        latest = self._clock.latest_start_ns()
        decoded = decode(request, check, latest)
        if decoded.accepted:
            self._wait_for_room(len(request))
            try:
                self._wal.append(request, decoded, latest if decoded.rejected else None)
            except OSError as error:
                raise _refusal(self.folder, error) from error
        with self._state:
            self._counts["requests"] += 1
            self._counts["spans_accepted"] += decoded.accepted
            self._counts["spans_rejected"] += decoded.rejected
        reasons = [decoded.reason or "", f"{decoded.empty} resources or scopes have no span" * bool(decoded.empty)]
        refused = decoded.rejected + decoded.empty
        return Appended(decoded.accepted, refused, "; ".join(filter(None, reasons)) or None)

    def append_counts(self, points: Sequence[Point]) -> None:
        """Store the counts that services have sent; return when they are on disk. Raise StoreError."""
        self._exact.append(points)

    def mark(self, text: str) -> Mark:
        """Name this moment; return when that is on disk. Raise StoreError."""
        with self._table_lock:
            return marks.add(self.folder, Mark(time.time_ns(), text))

    def reader(self) -> LocalReader:
        """Return a reader that sees everything acknowledged."""
        from stagetrace.store.local.reader import LocalReader

        return LocalReader(self.folder, self.view, self._database.cursor(), self._distinct)

    def view(self) -> View:
        """Return the present state, for a reader in this process."""
        with self._state:
            tails = [tail for tail in (self._moving, self._tail) if tail is not None and tail.rows]
            parts = tuple(table for tail in tails for table in tail.tables())
            last = max(self._snapshot.stored, *(tail.last for tail in tails), 0)
            return View(self.folder / TABLE, self._snapshot, parts, last)

    def flush(self) -> None:
        """Move everything acknowledged into the table. Raise OSError if that fails; then the log still has it."""
        with self._table_lock:
            with self._wal.lock:
                segments = self._wal.rotate()
                with self._state:
                    if self._moving is None:
                        self._moving, self._tail = self._tail, Tail()
                    moving = self._moving
            if moving.rows:
                self._table.append(join_tables(moving.tables()), moving.last)
            with self._state:
                self._snapshot, self._moving = self._table.snapshot, None
                self._counts["spans_duplicate"] = self._table.duplicates
                self._state.notify_all()
            for path, last in segments:
                if last <= self._table.snapshot.stored:
                    path.unlink(missing_ok=True)

    def compact(self) -> None:
        """Merge small files into large ones."""
        self._change(Table.compact)

    def prune(self, before_ns: int) -> int:
        """Drop all spans that started before; return how many."""
        self.flush()
        return self._change(lambda table: table.prune(before_ns))

    @property
    def table(self) -> Path:
        """Return the folder of the table."""
        return self.folder / TABLE

    def claim(self) -> list[File]:
        """Return files that an archive lacks and that stay as they are, as `Table.claim`. Raise StoreError."""
        keep = self._limits.retention_bytes
        return self._change(lambda table: [] if self._closing else table.claim(keep, _CLAIMED))

    def note_archived(self, path: str) -> None:
        """Record that an archive has a file. Raise StoreError."""
        self._change(lambda table: None if self._closing else table.note_archived(path))

    def stats(self) -> dict[str, int]:
        """Return counts since the store was opened, and its present size; with an archive also what that lacks."""
        with self._state:
            files = self._snapshot.files.values()
            tails = [tail for tail in (self._moving, self._tail) if tail is not None]
            waiting = [file for file in files if file.archive != ARCHIVED] if self._limits.archived else []
            lacking = {
                "unarchived_files": len(waiting),
                "unarchived_spans": sum(file.rows for file in waiting),
                "spans_expired_unarchived": self._table.unarchived,
            }
            return {
                **self._counts,
                **(lacking if self._limits.archived else {}),
                "files": len(files),
                "spans": sum(file.rows for file in files) + sum(tail.rows for tail in tails),
                "bytes": sum(file.size for file in files),
                "pending_spans": sum(tail.rows for tail in tails),
                "pending_bytes": sum(tail.bytes for tail in tails),
                "version": self._snapshot.version,
            }

    def close(self) -> None:
        """Move everything into the table and let go of the folder."""
        with self._state:
            if self._closing:
                return
            self._closing = True
            self._state.notify_all()
        self._flusher.join()
        try:
            # Requests that stay in the log for want of room are read at the next open.
            with contextlib.suppress(OSError):
                self.flush()
            self._table.vacuum(0)
        finally:
            self._wal.close()
            self._table.close()
            close(self._database)
            self._exact.close()
            os.close(self._lock_file)

    def _change(self, change: Callable[[Table], T]) -> T:
        """Change the table and let readers see it."""
        with self._table_lock:
            try:
                return change(self._table)
            except OSError as error:
                raise _refusal(self.folder, error) from error
            finally:
                with self._state:
                    self._snapshot = self._table.snapshot

    def _on_durable(self, group: Sequence[wal.Item[Decoded]]) -> None:
        with self._state:
            if not self._tail.rows:
                self._flush_due = time.monotonic() + FLUSH_S
                self._state.notify_all()
            for item in group:
                self._tail.add(item.sequence, item.payload, len(item.request))
            if self._is_due():
                self._state.notify_all()

    def _is_due(self) -> bool:
        tail = self._tail
        late = (tail.rows > 0 or self._moving is not None) and time.monotonic() >= self._flush_due
        return late or tail.over(FLUSH_ROWS, FLUSH_BYTES)

    def _wait_for_room(self, size: int) -> None:
        """Return when a request may be taken in. Raise StoreFull where the disk or memory has no room for it."""
        free = shutil.disk_usage(self.folder).free
        if free < self._limits.reserve_bytes + size:
            raise StoreFull(f"no room for spans in {self.folder}: {free >> 20} MiB are free\n{MAKE_ROOM}")
        with self._state:
            while self._tail.over(PENDING * FLUSH_ROWS, PENDING * FLUSH_BYTES) and not self._closing:
                if self._flush_error is not None:
                    raise _refusal(self.folder, self._flush_error)
                self._state.wait(1)

    def _work(self) -> None:
        """Move spans to the table when it is time, and keep the table in order."""
        while True:
            with self._state:
                while not self._closing and not self._is_due():
                    waiting = self._tail.rows or self._moving is not None
                    self._state.wait(max(0.01, self._flush_due - time.monotonic()) if waiting else TIDY_S)
                    if not waiting and not self._is_due():
                        break
                if self._closing:
                    return
                due = self._is_due()
            try:
                if due:
                    self.flush()
                self._tidy()
                self._flush_error = None
            except Exception as error:  # noqa: BLE001 -- the log goes on as long as this thread does
                self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        """Remember that the table could not be written, and try again in a while."""
        if self._flush_error is None:
            log.warning(f"the store in {self.folder} keeps spans in its log, as its table cannot be written: {error}")
        with self._state:
            self._flush_error = error if isinstance(error, OSError) else OSError(str(error))
            self._flush_due = time.monotonic() + _RETRY_S
            self._state.notify_all()
        time.sleep(_RETRY_S)

    def _tidy(self) -> None:
        """Drop spans beyond the limits of age and size and merge small files: as much as appends may wait for."""
        limits = self._limits
        dropped = merged = 0
        if limits.retention_s is not None:
            age_ms = int(limits.retention_s * 1000)
            dropped += self._change(lambda table: table.expire(age_ms))
        if limits.retention_bytes is not None:
            keep = limits.retention_bytes
            dropped += self._change(lambda table: table.drop_oldest(keep))
        while more := self._change(Table.compact_once):
            merged += more
            with self._state:
                if self._closing or self._is_due():
                    break
        with self._table_lock:
            self._table.vacuum()
        give_back()
        with self._state:
            self._counts["spans_expired"] += dropped
            self._counts["files_merged"] += merged


def _refusal(folder: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreFull(f"no room for spans in {folder}: {error.strerror}\n{MAKE_ROOM}")
    return StoreError(
        f"cannot use the store in {folder}: {error.strerror or error}\nname a folder that you may write to"
    )
