"""Folders that DuckDB writes to where memory is short: private to this user, and deleted with their database.

DuckDB makes such files readable by everyone, so each database has a folder that nobody else can enter. A lock on the
folder lasts as long as its process, so that the next one finds and deletes what a killed process left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing cleared away
    fcntl = None  # type: ignore[assignment]

PREFIX: Final = "stagetrace-spill-"
MOST_BYTES: Final = 16 * 1024**3  # of one database, and at most half of what the disk has free
_ATTEMPTS: Final = 5
_cleared: set[Path] = set()  # parents in which this process has looked for what others left


class Folder(NamedTuple):
    """A folder with its lock; `process` made it, and a fork of that must not delete it."""

    path: Path
    lock: int
    process: int

    @property
    def limit(self) -> str:
        """Return how much may be written here, as DuckDB takes it."""
        return f"{min(MOST_BYTES, shutil.disk_usage(self.path).free // 2) >> 10}KiB"

    def remove(self) -> None:
        """Delete the folder."""
        if os.getpid() == self.process:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.lock)


def make(store: Path | None = None) -> Folder | None:
    """Return a new folder: in the folder of a store of this user's, else among temporary files; None where neither is.

    A store's disk has room for what is computed of it, while temporary files are often in memory.
    """
    for parent in _parents(store):
        with suppress(OSError):
            _clear(parent)
            return _make_folder(parent)
    return None


def _parents(store: Path | None) -> list[Path]:
    parents = []
    with suppress(OSError):
        if store is not None and os.name == "posix" and store.stat().st_uid == os.geteuid():
            parents.append(store)
    with suppress(OSError):  # there may be no folder for temporary files
        parents.append(Path(tempfile.gettempdir()))
    return parents


def _make_folder(parent: Path) -> Folder:
    for _ in range(_ATTEMPTS):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # with mode 0700
        lock = os.open(path, os.O_RDONLY)
        if _locked(lock) and path.exists():  # else another process took it for one that was left
            return Folder(path, lock, os.getpid())
        os.close(lock)
    raise FileNotFoundError(parent)


def _locked(folder: int) -> bool:
    """Lock an open folder; return False where another process has it. Some file systems lock nothing."""
    try:
        if fcntl is not None:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _clear(parent: Path) -> None:
    """Delete what processes of this user left that were killed."""
    if parent in _cleared or fcntl is None:
        return
    _cleared.add(parent)
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(folder).st_uid == os.geteuid():
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(folder)
