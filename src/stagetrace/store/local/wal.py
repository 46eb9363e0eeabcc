"""The write-ahead log: requests as they came, on disk before they are acknowledged.

A segment is `MAGIC` and frames of (length, checksum, sequence number, request). One fsync serves all requests that
wait for it. What follows the first broken frame of a segment was never acknowledged.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

MAGIC: Final = b"STWAL001"
_FRAME: Final = struct.Struct("<IIQ")
_SUFFIX: Final = ".wal"

T = TypeVar("T")


@dataclass(frozen=True)
class Item(Generic[T]):
    """One request under its number, with what the caller wants to know it by."""

    sequence: int
    request: bytes
    payload: T


class Wal(Generic[T]):
    """The one writer of a folder of segments. Safe to use from several threads."""

    def __init__(self, folder: Path, next_sequence: int, on_durable: Callable[[Sequence[Item[T]]], None]) -> None:
        """Number requests from `next_sequence`; call `on_durable` with each group, in order, once it is on disk."""
        self._folder = folder
        self._on_durable = on_durable
        self._queue_lock = threading.Lock()  # guards _next and _queue
        self._next = next_sequence
        self._queue: list[Item[T]] = []
        self._file_lock = threading.Lock()  # guards the rest
        self._file: int | None = None
        self._end = 0
        self._durable = next_sequence - 1
        self._failed: dict[int, OSError] = {}

    def append(self, request: bytes, payload: T) -> int:
        """Write one request and return its number once it is on disk. Raise OSError if it is not, and nothing of it."""
        with self._queue_lock:
            sequence = self._next
            self._next += 1
            self._queue.append(Item(sequence, request, payload))
        with self._file_lock:
            if self._durable < sequence:  # else another thread wrote it along with its own
                self._write_queue()
            failure = self._failed.pop(sequence, None)
        if failure is not None:
            raise failure
        return sequence

    def _write_queue(self) -> None:
        with self._queue_lock:
            group, self._queue = self._queue, []
        try:
            self._write(group)
        except OSError as error:
            self._failed.update((item.sequence, error) for item in group)
        else:
            self._on_durable(group)
        self._durable = group[-1].sequence

    def _write(self, group: Sequence[Item[T]]) -> None:
        """Write a group at the end of the segment, or leave the segment as it was."""
        frames = bytearray()
        for item in group:
            checksum = zlib.crc32(item.request, item.sequence & 0xFFFFFFFF)
            frames += _FRAME.pack(len(item.request), checksum, item.sequence)
            frames += item.request
        if self._file is None:
            self._file, self._end = _create(self._folder, group[0].sequence)
        try:
            _write_all(self._file, frames)
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        self._end += len(frames)

    def rotate(self) -> list[tuple[Path, int]]:
        """Close the segment, so that the next request opens another; return all with the last number each may hold.

        The caller holds `lock`.
        """
        self.close()
        found = segments(self._folder)
        following = [first - 1 for first, _ in found[1:]]
        return [(path, last) for (_, path), last in zip(found, [*following, self._durable], strict=False)]

    def close(self) -> None:
        """Close the file of the present segment."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def lock(self) -> threading.Lock:
        """While this is held, nothing is written and `on_durable` is not called."""
        return self._file_lock


def _create(folder: Path, first: int) -> tuple[int, int]:
    """Return an open new segment and where its frames begin."""
    path = folder / f"{first:020d}{_SUFFIX}"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(file, MAGIC)
        sync_folder(folder)
    except OSError:
        os.close(file)
        path.unlink(missing_ok=True)
        raise
    return file, len(MAGIC)


def _write_all(file: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def segments(folder: Path) -> list[tuple[int, Path]]:
    """Return (first number, path) of each segment, in order."""
    return sorted((int(path.stem), path) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())


def read(path: Path, after: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number, request) of the whole frames of a segment whose number is above `after`."""
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        return
    at = len(MAGIC)
    while at + _FRAME.size <= len(data):
        size, checksum, sequence = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        request = data[at : at + size]
        if len(request) < size or zlib.crc32(request, sequence & 0xFFFFFFFF) != checksum:
            return
        at += size
        if sequence > after:
            yield sequence, request
