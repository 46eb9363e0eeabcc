"""A folder in which batches outlive the Collector's absence and this process; all workers of a service share it.

Each file is one serialized ExportTraceServiceRequest, so that any OTLP receiver takes it by hand as well. Its name says
class, time, number of spans and checksum, and sorts in the order of delivery: breaches first, the oldest first.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.otlp.export.response import STUCK_AFTER
from stagetrace.system.access import open_own
from stagetrace.system.threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stagetrace.otlp.export.response import Outcome

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEFAULT_MAX_BYTES: Final = 1 << 30
BREACH: Final = "breach"
GOOD: Final = "good"
_SUFFIX: Final = ".otlp"
_DAMAGED: Final = ".damaged"
_UNFINISHED: Final = ".tmp"
_COUNTS: Final = "counts.json"
_COUNTS_LOCK: Final = ".counts.lock"
_DELIVERY_LOCK: Final = ".delivery.lock"
_ABANDONED_AFTER_S: Final = 60.0  # an unfinished file; writing one takes milliseconds
_LOOK_AFTER: Final = 100  # the part of `max_bytes` after whose writing the folder is measured again
# The counts in `counts.json`, in spans: each was in the folder or was to go there, and reached no receiver.
LOSSES: Final = ("dropped", "dropped_breaches", "damaged", "refused")


_counting = allocate_lock()  # see `_holding`


class Spooled(NamedTuple):
    """One batch in the folder."""

    path: Path
    spans: int
    breach: bool
    checksum: int


class Spool:
    """Batches in `folder`, in at most about `max_bytes`; when it is full, the oldest good ones are dropped first.

    The folder is made (0700) when it is needed; files are 0600. Methods raise OSError where the disk does.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock = allocate_lock()  # guards the two below: the delivering thread and the one that writes come here
        self._size = 0
        self._unseen: int | None = None  # bytes written since the folder was measured; None: never was
        self._delivery: int | None = None  # the lock file's descriptor while it is ours to deliver

    def anew(self) -> Spool:
        """Return one for a forked child, which has not delivered from the folder yet."""
        return Spool(self.folder, self.max_bytes)

    def replay(self, send: Callable[[bytes], Outcome]) -> Replay:
        """Return what delivers the batches by `send`."""
        return Replay(self, send)

    def write(self, request: bytes, spans: int, *, breach: bool, at: int | None = None) -> Path | None:
        """Put a batch on disk; return its path, or None if there was no room for it and it was counted as dropped.

        Of one class they are delivered by `at`, in nanoseconds since 1970, which is now where it is not given.
        """
        with self._lock:
            if not self._has_room(len(request), breach=breach):
                self.count(**{"dropped_breaches" if breach else "dropped": spans})
                return None
            self._size += len(request)
            self._unseen = (self._unseen or 0) + len(request)
        kind = BREACH if breach else GOOD
        name = f"{kind}-{at or time.time_ns():020d}-{spans}-{zlib.crc32(request):08x}-{secrets.token_hex(4)}{_SUFFIX}"
        path = self.folder / name
        unfinished = self.folder / f".{name}{_UNFINISHED}"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write(unfinished, request)
            unfinished.rename(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise
        _sync_folder(self.folder)  # before that, a power failure could take the name back
        return path

    def _has_room(self, size: int, *, breach: bool) -> bool:
        """Make room for a file, from the folder's own size: other processes write there too."""
        if self._unseen is None or self._unseen > self.max_bytes // _LOOK_AFTER:
            self._size, self._unseen = _size(self.folder), 0
        if self._size + size <= self.max_bytes:
            return True
        goal = self.max_bytes - self.max_bytes // _LOOK_AFTER - size
        self._size, self._unseen = _size(self.folder), 0
        for file in self._droppable(breach=breach):
            if self._size <= goal:
                break
            self._drop(file)
        return self._size + size <= self.max_bytes

    def _droppable(self, *, breach: bool) -> Iterator[Path]:
        """Yield the files that may be dropped for such a batch: damaged, good, and breaches for a breach only."""
        yield from sorted(self.folder.glob(f"*{_DAMAGED}"))
        yield from sorted(self.folder.glob(f"{GOOD}-*{_SUFFIX}"))
        if breach:
            yield from sorted(self.folder.glob(f"{BREACH}-*{_SUFFIX}"))

    def _drop(self, file: Path) -> None:
        try:
            size = file.stat().st_size
            file.unlink()
        except FileNotFoundError:  # delivered, or dropped by another process: the one that removes it counts it
            return
        self._size -= size
        spooled = _parsed(file)
        if spooled is not None:  # else it is damaged, and was counted when that was found
            self.count(**{"dropped_breaches" if spooled.breach else "dropped": spooled.spans})

    def claim(self) -> bool:
        """Make delivering from the folder ours alone; return False while a living process has it."""
        if self._delivery is not None:
            return True
        descriptor = _locked(self.folder / _DELIVERY_LOCK)
        self._delivery = descriptor
        return descriptor is not None

    def release(self) -> None:
        """Give up the claim. In a forked child: close the inherited lock, or the claim outlives the parent."""
        if self._delivery is not None:
            os.close(self._delivery)
            self._delivery = None

    def names(self) -> list[str]:
        """Return the names of the batches in the order of delivery; remove old files that are half written."""
        found = []
        for name in _names(self.folder):
            if name.endswith(_SUFFIX):
                found.append(name)
            elif name.endswith(_UNFINISHED):
                self._clear_away(self.folder / name)
        found.sort()
        return found

    def spooled(self, name: str) -> Spooled | None:
        """Return the batch of this name, or None if it is none of ours."""
        return _parsed(self.folder / name)

    def _clear_away(self, unfinished: Path) -> None:
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > _ABANDONED_AFTER_S:
                unfinished.unlink()

    def read(self, spooled: Spooled) -> bytes | None:
        """Return a batch, or None if it is gone or damaged; a damaged one is set aside and counted."""
        try:
            request = spooled.path.read_bytes()
        except FileNotFoundError:
            return None
        if zlib.crc32(request) == spooled.checksum:
            return request
        with suppress(FileNotFoundError):
            spooled.path.rename(spooled.path.with_name(spooled.path.name + _DAMAGED))
            self.count(damaged=spooled.spans)
        return None

    def settle(self, spooled: Spooled, *, refused: int) -> None:
        """Remove a batch that the receiver has accepted or refused for good; count the spans that it refused."""
        if not self.remove(spooled.path):  # dropped meanwhile for want of room, and counted so: it was not lost
            self.count(**{"dropped_breaches" if spooled.breach else "dropped": -spooled.spans})
        if refused:
            self.count(refused=refused)

    def remove(self, path: Path) -> bool:
        """Remove a batch that reached its end; return whether it still was there."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def count(self, **losses: int) -> None:
        """Add to the losses, in a way that outlives this process. Keys are those of LOSSES."""
        with _holding(self.folder / _COUNTS_LOCK):
            counts = _counts(self.folder)
            for key, spans in losses.items():
                counts[key] = counts.get(key, 0) + spans
            new = self.folder / f".{_COUNTS}{_UNFINISHED}"
            new.unlink(missing_ok=True)  # of a process that was killed
            _write(new, json.dumps(counts).encode())
            new.rename(self.folder / _COUNTS)


def state(folder: Path) -> dict[str, int]:
    """Return what is in a spool (`breach_spans`, `good_spans`, `files`, `bytes`) and the LOSSES, in spans.

    Zero throughout where there is no such folder.
    """
    found = dict.fromkeys((f"{BREACH}_spans", f"{GOOD}_spans", "files", "bytes", *LOSSES), 0)
    found |= _counts(folder)
    for name in _names(folder):
        spooled = _parsed(folder / name)
        if spooled is not None:
            found[f"{BREACH if spooled.breach else GOOD}_spans"] += spooled.spans
            found["files"] += 1
    found["bytes"] = _size(folder)
    return found


def supported() -> bool:
    """Return whether this system has what workers need to share a folder."""
    return fcntl is not None


def _parsed(path: Path) -> Spooled | None:
    """Return the batch that a file's name describes, or None if it is none of ours."""
    if path.suffix != _SUFFIX:
        return None
    parts = path.stem.split("-")
    try:
        kind, _, spans, checksum, _ = parts
        return Spooled(path, int(spans), {BREACH: True, GOOD: False}[kind], int(checksum, 16))
    except (ValueError, KeyError):
        return None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 -- names are all that is needed, and there may be thousands
    except FileNotFoundError:
        return []


def _size(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total


def _counts(folder: Path) -> dict[str, int]:
    try:
        counts = json.loads((folder / _COUNTS).read_bytes())
        return {key: int(counts.get(key, 0)) for key in LOSSES}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Return the descriptor of a lock that ends with it, and so with the process; None if another process has it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    """Hold a lock that a forked child does not inherit, against other processes and our own threads."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _counting:
        descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


# --- The order in which spooled batches are delivered: the spool's, but one that fails by itself holds up no other.

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


# --- Deliver the batches of a spool, one at a time and no faster than a service can bear.

LOOK_AGAIN_AFTER_S: Final = 30.0  # into an empty spool, to which other workers write as well
CLAIM_AGAIN_AFTER_S: Final = 5.0
_PACE: Final = 3  # pauses, as long as the delivery of a batch took, so that the service has the CPU
_SHORTEST_PAUSE_S: Final = 0.02


class Replay:
    """Takes batches out of `spool`, and sends them by `send`, which also decides when to try again after a failure."""

    def __init__(self, spool: Spool, send: Callable[[bytes], Outcome]) -> None:
        self._spool = spool
        self._send = send
        self._order = ReplayOrder(spool)
        self.delivered = 0  # spans, whichever process spooled them
        self.refused = 0

    @property
    def again_after_s(self) -> float:
        """After how many seconds to look into an empty folder, or one whose disk has failed, again."""
        return LOOK_AGAIN_AFTER_S

    def next(self) -> float:
        """Deliver one batch, if no other process delivers; return after how many seconds to call this again.

        Raise OSError where the disk fails.
        """
        spool, order = self._spool, self._order
        if not spool.claim():
            return CLAIM_AGAIN_AFTER_S
        started = time.monotonic()
        for name in order.turn():
            spooled = spool.spooled(name)
            request = spool.read(spooled) if spooled is not None else None
            if spooled is None or request is None:
                continue
            if order.suspects(name) and self._send(b"").retryable:  # the receiver takes no request at all
                order.away()
                spool.release()
                return 0.0  # with the next try
            outcome = self._send(request)
            if outcome.retryable:
                order.failed(name)
                spool.release()
                return 0.0  # with the next try
            refused = min(outcome.rejected, spooled.spans) if outcome.delivered else spooled.spans
            spool.settle(spooled, refused=refused)
            self.delivered += spooled.spans - refused
            self.refused += refused
            return max(_SHORTEST_PAUSE_S, _PACE * (time.monotonic() - started))
        spool.release()
        return self.again_after_s
