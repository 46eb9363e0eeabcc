"""Files of archives on this machine's disk: each is fetched once, and the least recently used ones make room."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace import settings
from stagetrace.store.local import durable
from stagetrace.store.local.folder import is_whole

if TYPE_CHECKING:
    from stagetrace.store.base import Progress
    from stagetrace.store.local.delta import File
    from stagetrace.store.s3.archive import Archive

MOST_BYTES: Final = 10 << 30
_AT_ONCE: Final = 8
_IN_USE_S: Final = 600  # after its last use a file may still be read by another command


class Taken(NamedTuple):
    """The files of a time window that are here now, and why there are not more; None where all are."""

    files: list[File]
    reason: str | None


def folder() -> Path:
    """Return the folder of all archives' files."""
    return Path(settings.CACHE_HOME.read() or Path.home() / ".cache") / "stagetrace" / "archive"


class Cache:
    """The files of one archive in `folder`, below the folder of all archives."""

    def __init__(self, archive: Archive, most: int = MOST_BYTES) -> None:
        """Keep up to `most` bytes, and at most half of what the disk has free beside them."""
        self._archive = archive
        self._most = most
        self._root = folder()
        self.folder = self._root / archive.place
        durable.make_folder(self.folder)

    def take(self, files: Sequence[File], progress: Progress, most: int | None = None) -> Taken:
        """Fetch those files that are not here yet, the first ones as far as there is room, or up to `most` bytes.

        Raise StoreError.
        """
        chosen: list[File] = []
        size, most = 0, min(self._room(), self._most if most is None else most)
        for file in files:
            size += file.size
            if size > most:
                break
            chosen.append(file)
        new = []
        for file in chosen:
            path = self.folder / file.path
            if is_whole(path) and path.stat().st_size == file.size:
                os.utime(path)
            else:
                new.append(file)
        self._make_room(sum(file.size for file in new), {self.folder / file.path for file in chosen})
        whole, done = sum(file.size for file in new), 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            getting = {pool.submit(self._archive.get, file.path, self.folder / file.path): file for file in new}
            for count, one in enumerate(as_completed(getting), 1):
                one.result()
                done += getting[one].size
                progress(count, "files", done / max(1, whole))
        return Taken(chosen, _reason(files, chosen, most))

    def _room(self) -> int:
        """Return how many bytes the files of a question may take."""
        disk = os.statvfs(self._root)
        here = sum(size for _, size, _ in self._here())
        return min(self._most, here + disk.f_bavail * disk.f_frsize // 2)

    def _make_room(self, size: int, wanted: set[Path]) -> None:
        """Delete files that have not been used for longest, until so much more is within the limit."""
        here = sorted(self._here())
        total, latest = size + sum(size for _, size, _ in here), time.time() - _IN_USE_S
        for used, its_size, path in here:
            if total <= self._most or used > latest:
                break
            if path not in wanted:
                path.unlink(missing_ok=True)
                total -= its_size

    def _here(self) -> list[tuple[float, int, Path]]:
        """Return when each file was used last, its size and path."""
        found = []
        for path in self._root.rglob("*.parquet"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found


def _reason(files: Sequence[File], chosen: Sequence[File], most: int) -> str | None:
    if len(chosen) == len(files):
        return None
    rows = sum(file.rows for file in files) - sum(file.rows for file in chosen)
    return (
        f"of {len(files)} files of the archive the newest {len(chosen)} were read, at most "
        f"{most / 2**30:.2f} GiB: {rows} spans are missing (ask for less time)"
    )
