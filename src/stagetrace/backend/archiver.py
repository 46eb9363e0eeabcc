"""Copies files of the local store to its archive, in a thread of its own: what fails there delays no span."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stagetrace.store.local import LocalStore
    from stagetrace.store.local.delta import File
    from stagetrace.store.s3.archive import Archive

INTERVAL_S: Final = 30.0
_FIRST_RETRY_S: Final = 1.0  # then twice as long each time, up to the interval
_CLOSING_S: Final = 5.0  # for a copy in progress; the next process makes one that was cut off again


def copy_closed(store: LocalStore, archive: Archive) -> Iterator[File]:
    """Copy some of the files that are closed, one after another, and yield each. Raise StoreError.

    A process that is killed meanwhile copies the same file again, to the same name.
    """
    for file in store.claim():
        path = store.table / file.path
        if path.exists() and path.stat().st_size != file.size:
            log.once(str(path), f"{path} is damaged and is not archived; put it back from a copy")
            continue
        try:
            archive.put(file, path)
        except FileNotFoundError:  # retention dropped it, or it was written anew without some of its spans
            continue
        store.note_archived(file.path)
        yield file


class Archiver:
    """Copies as long as it is open. Only its thread writes the counts, so nothing guards them."""

    def __init__(self, store: LocalStore, archive: Archive) -> None:
        """Start at once."""
        self._store = store
        self._archive = archive
        self._stop = threading.Event()
        self._has_begun = False
        self._failed = 0  # times in a row
        self._counts = {"archive_copied_files": 0, "archive_copied_bytes": 0, "archive_failures": 0}
        self._thread = threading.Thread(target=self._work, name="stagetrace-archive", daemon=True)
        self._thread.start()

    @property
    def gauges(self) -> dict[str, Callable[[], int]]:
        """Return what is counted, by name."""
        return {name: lambda name=name: self._counts[name] for name in self._counts}  # type: ignore[misc]

    def close(self) -> None:
        """Stop; a copy in progress has a few seconds."""
        self._stop.set()
        self._thread.join(_CLOSING_S)

    def _work(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                copied = self._copy()
            except Exception as error:  # noqa: BLE001, PERF203 -- it may fail in any way, and has to go on
                self._note_failure(error)
                wait_s = min(INTERVAL_S, _FIRST_RETRY_S * 2 ** min(self._failed - 1, 10))
            else:
                if self._failed:
                    log.warning(f"{self._archive.url} can be written again, after {self._failed} failures")
                self._failed = 0
                wait_s = 0.0 if copied else INTERVAL_S

    def _copy(self) -> bool:
        """Copy some of the files that are closed; return whether there were any. Raise StoreError."""
        if not self._has_begun:
            self._archive.begin()
            self._has_begun = True
        found = False
        for file in copy_closed(self._store, self._archive):
            found = True
            self._counts["archive_copied_files"] += 1
            self._counts["archive_copied_bytes"] += file.size
            if self._stop.is_set():
                break
        return found

    def _note_failure(self, error: Exception) -> None:
        """Count a failure, and say so once until it works again."""
        self._counts["archive_failures"] += 1
        self._failed += 1
        if self._failed == 1:
            problem = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            log.warning(f"{problem}\nno span is lost: files stay in the store until they are copied or retention ends")
