"""The one writer of a local store: acknowledge once in the log, move to the table in the background."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.errors import StoreError
from stagetrace.otlp.decoder import Decoded, decode
from stagetrace.otlp.decoder_columns import arrow
from stagetrace.store.local import delta, parquet, wal
from stagetrace.store.local.tail import Tail
from stagetrace.store.local.view import FORMAT, TABLE, WAL, View

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from stagetrace.store.local.reader import LocalReader

FORMAT_VERSION: Final = 1
FLUSH_ROWS: Final = 65_536
FLUSH_BYTES: Final = 32 * 1024 * 1024
FLUSH_S: Final = 10.0
PENDING_BYTES: Final = 4 * FLUSH_BYTES  # beyond, `append` waits for the table
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreFull(StoreError):  # noqa: N818 - reads as what it says
    """Say that the disk has no room: nothing of the request was kept, and it may be sent again later."""


class Appended(NamedTuple):
    """What became of a request: spans on disk, spans refused and why."""

    accepted: int
    rejected: int
    reason: str | None


class LocalStore:
    """The open store. Safe to use from several threads; close it, or the next open replays the log."""

    def __init__(self, folder: Path, lock: int) -> None:
        """Use `open`."""
        self.folder = folder
        self._lock_file = lock
        self._table = folder / TABLE
        self._state = threading.Condition()  # guards the four below
        self._snapshot = delta.load(self._table)
        self._tail = Tail()
        self._flushing: Tail | None = None
        self._closing = False
        self._flush_lock = threading.Lock()
        self._flush_due = 0.0
        self._flush_error: OSError | None = None
        self._recover()
        self._wal: wal.Wal[Decoded] = wal.Wal(folder / WAL, self._last_sequence() + 1, self._on_durable)
        self._flusher = threading.Thread(target=self._flush_when_due, name="stagetrace-flush", daemon=True)
        self._flusher.start()

    @classmethod
    def open(cls, folder: Path, *, retention_s: float | None = None, retention_bytes: int | None = None) -> LocalStore:
        """Open or make the store in `folder`. Raise StoreError if it is taken, not writable or of a newer format."""
        arrow()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _lock(folder)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            _check_format(folder)
            (folder / WAL).mkdir(exist_ok=True)
            if (
                not (folder / TABLE / delta.LOG / f"{0:020d}.json").exists()
                and not (folder / TABLE / delta.LOG / "_last_checkpoint").exists()
            ):
                delta.create(folder / TABLE, parquet.delta_schema())
            return cls(folder, lock)
        except OSError as error:
            os.close(lock)
            raise _unusable(folder, error) from error
        except BaseException:
            os.close(lock)
            raise

    def append(self, request: bytes) -> Appended:
        """Store one serialized ExportTraceServiceRequest; return when it is on disk.

        Raise StoreFull where the disk has no room, MalformedRequest where the request is no OTLP.
        """
        decoded = decode(request)
        if decoded.accepted:
            self._wait_for_room()
            try:
                self._wal.append(request, decoded)
            except OSError as error:
                raise _refusal(self.folder, error) from error
        return Appended(decoded.accepted, decoded.rejected, decoded.reason)

    def reader(self) -> LocalReader:
        """Return a reader that sees everything acknowledged."""
        from stagetrace.store.local.reader import LocalReader

        return LocalReader(self.folder, self.view)

    def view(self) -> View:
        """Return the present state, for a reader in this process."""
        with self._state:
            tails = [tail for tail in (self._flushing, self._tail) if tail is not None]
            return View(self._table, self._snapshot, tuple(table for tail in tails for table in tail.tables()))

    def flush(self) -> None:
        """Move everything acknowledged into the table."""
        with self._flush_lock:
            with self._wal.lock:
                self._wal.close_segment()
                with self._state:
                    if self._flushing is None:
                        self._flushing, self._tail = self._tail, Tail()
                    moving = self._flushing
            if moving.rows:
                self._move(moving)
            with self._state:
                self._flushing = None
                self._state.notify_all()
            for path in wal.obsolete(self.folder / WAL, self._snapshot.stored):
                path.unlink(missing_ok=True)

    def _move(self, moving: Tail) -> None:
        """Write a tail into the table."""
        pa = arrow()
        spans = pa.concat_tables(moving.tables()).unify_dictionaries()
        added = [parquet.write(self._table, part, entry=entry) for entry, part in parquet.partitions(spans)]
        snapshot = delta.commit(self._table, self._snapshot, added, (), moving.last)
        with self._state:
            self._snapshot = snapshot
            self._flushing = None

    def close(self) -> None:
        """Move everything into the table and let go of the folder."""
        with self._state:
            if self._closing:
                return
            self._closing = True
            self._state.notify_all()
        self._flusher.join()
        try:
            self.flush()
        except OSError:
            pass  # what is in the log stays there, and the next open reads it
        finally:
            self._wal.close_segment()
            os.close(self._lock_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

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
        late = tail.rows > 0 and time.monotonic() >= self._flush_due
        return late or tail.rows >= FLUSH_ROWS or tail.bytes >= FLUSH_BYTES

    def _wait_for_room(self) -> None:
        with self._state:
            while self._tail.bytes >= PENDING_BYTES and not self._closing:
                if self._flush_error is not None:
                    raise _refusal(self.folder, self._flush_error)
                self._state.wait(1)

    def _flush_when_due(self) -> None:
        while True:
            with self._state:
                while not self._closing and not self._is_due():
                    self._state.wait(max(0.0, self._flush_due - time.monotonic()) if self._tail.rows else None)
                if self._closing:
                    return
            try:
                self.flush()
                self._flush_error = None
            except OSError as error:
                self._flush_error = error
                time.sleep(1)

    def _recover(self) -> None:
        """Take up what was acknowledged and did not reach the table."""
        for _, path in wal.segments(self.folder / WAL):
            for sequence, request in wal.read(path, self._snapshot.stored):
                self._tail.add(sequence, decode(request), len(request))
                if self._tail.bytes >= FLUSH_BYTES:
                    self._move(self._tail)
                    self._tail = Tail()
        if self._tail.rows:
            self._move(self._tail)
            self._tail = Tail()
        for _, path in wal.segments(self.folder / WAL):
            path.unlink()

    def _last_sequence(self) -> int:
        return self._snapshot.stored


def _lock(folder: Path) -> int:
    """Return the file that marks the folder as taken; StoreError if it is."""
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        message = (
            f"cannot write to the store in {folder}: process {holder} does already\n"
            "stop that process, or name another folder; reading needs no lock"
        )
        raise StoreError(message) from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file


def _check_format(folder: Path) -> None:
    """Write the format's version into a new folder, or refuse one that is newer than this code."""
    path = folder / FORMAT
    try:
        version = json.loads(path.read_text("utf-8"))["version"]
    except FileNotFoundError:
        temporary = folder / f".{FORMAT}"
        temporary.write_text(json.dumps({"version": FORMAT_VERSION}), "utf-8")
        temporary.rename(path)
        return
    if version > FORMAT_VERSION:
        message = (
            f"cannot open the store in {folder}: its format is {version}, this stagetrace knows up to {FORMAT_VERSION}\n"
            "update stagetrace, or name another folder"
        )
        raise StoreError(message)


def _unusable(folder: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return _refusal(folder, error)
    return StoreError(f"cannot use {folder} as a store: {error.strerror or error}\nname a folder that you may write to")


def _refusal(folder: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreFull(f"no room for spans in {folder}: {error.strerror}\nfree some, or lower the retention")
    return StoreError(f"cannot write to the store in {folder}: {error.strerror or error}")
