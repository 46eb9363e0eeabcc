"""The write-ahead log: requests as they came, on disk before they are acknowledged.

A segment is `MAGIC` and frames of (length, checksum, sequence number, request). One fsync serves all requests that
wait for it. Numbers follow each other without a gap, so that a request which is missing is noticed. A frame of the
number 0 holds no request but the latest start (`decode`) of spans that the next one was accepted with.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from stagetrace.store.local.durable import PRIVATE_FILE, sync_folder, write_all

MAGIC: Final = b"STWAL001"
_FRAME: Final = struct.Struct("<IIQ")
_NUMBER: Final = struct.Struct("<Q")
_SUFFIX: Final = ".wal"
_MOST_BROKEN: Final = 1000  # frames in a row behind which a whole one is looked for

T = TypeVar("T")


@dataclass
class Item(Generic[T]):
    """One request with what the caller wants to know it by; `_file_lock` of its log guards what is not given."""

    request: bytes
    payload: T
    latest: int | None = None  # start of its spans, where others of it were refused
    sequence: int = 0
    is_done: bool = False
    failure: OSError | None = None


class Wal(Generic[T]):
    """The one writer of a folder of segments. Safe to use from several threads."""

    def __init__(self, folder: Path, next_sequence: int, on_durable: Callable[[Sequence[Item[T]]], None]) -> None:
        """Number requests from `next_sequence`; call `on_durable` with each group, in order, once it is on disk."""
        self._folder = folder
        self._on_durable = on_durable
        self._queue_lock = threading.Lock()  # guards _queue
        self._queue: list[Item[T]] = []
        self._file_lock = threading.Lock()  # guards the rest
        self._next = next_sequence
        self._file: int | None = None
        self._end = 0

    def append(self, request: bytes, payload: T, latest: int | None = None) -> int:
        """Write one request and return its number once it is on disk. Raise OSError if it is not, and nothing of it."""
        item = Item(request, payload, latest)
        with self._queue_lock:
            self._queue.append(item)
        with self._file_lock:
            if not item.is_done:  # else another thread wrote it along with its own
                self._write_queue()
        if item.failure is not None:
            raise item.failure
        return item.sequence

    def _write_queue(self) -> None:
        with self._queue_lock:
            group, self._queue = self._queue, []
        for number, item in enumerate(group, self._next):
            item.sequence, item.is_done = number, True
        try:
            self._write(group)
        except OSError as error:
            for item in group:
                item.failure = error
        else:
            self._next += len(group)
            self._on_durable(group)

    def _write(self, group: Sequence[Item[T]]) -> None:
        """Write a group at the end of the segment, or leave the segment as it was."""
        frames = bytearray()
        for item in group:
            if item.latest is not None:
                frames += _frame(0, _NUMBER.pack(item.latest))
            frames += _frame(item.sequence, item.request)
        if self._file is None:
            self._file, self._end = _create(self._folder, group[0].sequence)
        try:
            write_all(self._file, frames)
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
        return [(path, last) for (_, path), last in zip(found, [*following, self._next - 1], strict=False)]

    def close(self) -> None:
        """Close the file of the present segment."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def lock(self) -> threading.Lock:
        """While this is held, nothing is written and `on_durable` is not called."""
        return self._file_lock


def _frame(sequence: int, content: bytes) -> bytes:
    return _FRAME.pack(len(content), zlib.crc32(content, sequence & 0xFFFFFFFF), sequence) + content


def _create(folder: Path, first: int) -> tuple[int, int]:
    """Return an open new segment and where its frames begin."""
    path = folder / f"{first:020d}{_SUFFIX}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, PRIVATE_FILE)
    try:
        write_all(file, MAGIC)
        sync_folder(folder)
    except OSError:
        os.close(file)
        path.unlink(missing_ok=True)
        raise
    return file, len(MAGIC)


def segments(folder: Path) -> list[tuple[int, Path]]:
    """Return (first number, path) of each segment, in order."""
    return sorted((int(path.stem), path) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())


class Frame(NamedTuple):
    """One request of a log, and the latest start that its spans were accepted with, where some were refused."""

    sequence: int
    request: bytes
    latest: int | None


class Replay:
    """The requests of a log behind a number, in order; `lost` counts those that are missing or damaged among them."""

    def __init__(self, folder: Path, after: int) -> None:
        """Read the segments of a folder, from the request behind `after` on."""
        self.segments = segments(folder)
        self.lost = 0
        self._last = after

    def __iter__(self) -> Iterator[Frame]:
        """Yield the requests. Raise FileNotFoundError where a segment is deleted meanwhile."""
        for at, (first, path) in enumerate(self.segments):
            if at + 1 < len(self.segments) and self.segments[at + 1][0] <= self._last + 1:
                continue
            for frame in _frames(path.read_bytes(), first - 1):
                if frame.sequence > self._last:
                    self.lost += frame.sequence - self._last - 1
                    self._last = frame.sequence
                    yield frame


def _frames(data: bytes, last: int) -> Iterator[Frame]:
    """Yield the whole frames of a segment whose first one follows the number `last`.

    Bytes behind the last of them are of a request that was never acknowledged.
    """
    at: int | None = len(MAGIC)
    latest = None
    while at is not None:
        frame, after = _frame_at(data, at)
        if frame is None:
            at = _next_whole(data, at, last)
            continue
        at = after
        if frame.sequence:
            yield frame._replace(latest=latest)
            last, latest = frame.sequence, None
        else:
            (latest,) = _NUMBER.unpack(frame.request)


def _frame_at(data: bytes, at: int) -> tuple[Frame | None, int]:
    """Return the frame that begins at a place and where it ends, or None if there is none that is whole."""
    first = at + _FRAME.size
    if first > len(data):
        return None, at
    size, checksum, sequence = _FRAME.unpack_from(data, at)
    content = data[first : first + size]
    is_whole = len(content) == size and zlib.crc32(content, sequence & 0xFFFFFFFF) == checksum
    # Zeros, which a power failure leaves, would pass for frames without content.
    return Frame(sequence, content, None) if is_whole and (sequence or size == _NUMBER.size) else None, first + size


def _next_whole(data: bytes, at: int, last: int) -> int | None:
    """Return where the next whole frame begins behind a damaged one, or None if there is none."""
    numbered = at + _FRAME.size - _NUMBER.size  # where a frame has its number
    for sequence in range(last + 1, last + 1 + _MOST_BROKEN if len(data) > numbered else 0):
        place = numbered
        while (place := data.find(_NUMBER.pack(sequence), place + 1)) >= 0:
            begin = place - numbered + at
            if _frame_at(data, begin)[0] is not None:
                return begin
    return None


def lost_requests(count: int) -> str:
    """Return the sentence for requests that were acknowledged and are not there."""
    return f"{count} requests are missing: their part of the log, or the commit with them, was damaged or deleted"
