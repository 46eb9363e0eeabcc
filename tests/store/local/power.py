"""A power failure, simulated: what a process had not synced when it was killed may be lost.

`record` runs in the process, and keeps what it unlinks; `fail` damages its files afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.store import database

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_JOURNAL: Final = "journal"


class _Recorder:
    """Notes each sync in the journal, and keeps what is unlinked or replaced."""

    def __init__(self, kept: Path, folder: Path) -> None:
        kept.mkdir(exist_ok=True)
        self._kept = kept
        self._folder = folder
        self._journal = os.open(kept / _JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        self._open, self._unlink, self._replace = os.open, os.unlink, os.replace
        for path in (folder, *folder.rglob("*")) if folder.exists() else ():
            self._note(_now(path))

    def _note(self, what: dict[str, Any]) -> None:
        os.write(self._journal, json.dumps(what).encode() + b"\n")

    def syncing(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def synced(file: int) -> None:
            done = _now(Path(os.readlink(f"/proc/self/fd/{file}")))  # noqa: PTH115
            sync(file)
            self._note(done)

        return synced

    def open(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        file = self._open(path, flags, *rest, **more)
        if flags & os.O_CREAT and not (about := os.fstat(file)).st_size:
            self._note({"inode": about.st_ino, "size": 0})  # which may have been another file's before
        return file

    def unlink(self, path: Any, **more: Any) -> None:
        self._keep(Path(path))
        self._unlink(path, **more)

    def replace(self, source: Any, target: Any, **more: Any) -> None:
        self._keep(Path(target))
        self._replace(source, target, **more)

    def _keep(self, path: Path) -> None:
        if path.is_relative_to(self._folder) and path.exists():
            copy = self._kept / str(path.stat().st_ino)
            if copy.exists():
                self._unlink(copy)
            os.link(path, copy)


def record(kept: Path, folder: Path) -> None:
    """Write into the folder `kept` from now on what of `folder` is synced; what is there already is."""
    recorder = _Recorder(kept, folder)
    os.fsync, os.fdatasync = recorder.syncing(os.fsync), recorder.syncing(os.fdatasync)  # type: ignore[assignment]
    os.open, os.unlink, os.replace = recorder.open, recorder.unlink, recorder.replace  # type: ignore[assignment]


def _now(path: Path) -> dict[str, Any]:
    """Return what a sync of a file or folder makes durable."""
    if path.is_dir():
        return {"folder": str(path), "names": {one.name: one.lstat().st_ino for one in path.iterdir()}}
    return {"inode": path.stat().st_ino, "size": path.stat().st_size}


def fail(kept: Path, folder: Path, draw: random.Random) -> list[str]:
    """Lose, or do not lose, each thing that was not synced; return what was lost."""
    sizes: dict[int, int] = {}
    names: dict[str, dict[str, int]] = {}
    for line in (kept / _JOURNAL).read_text().splitlines():
        note = json.loads(line)
        if "folder" in note:
            names[note["folder"]] = note["names"]
        else:
            sizes[note["inode"]] = note["size"]
    lost: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if not path.name.startswith(database.PREFIX)):
        if not path.exists():  # lost with its folder
            continue
        inode = path.lstat().st_ino
        if names.get(str(path.parent), {}).get(path.name) != inode and draw.random() < 0.5:
            lost.append(f"{path} is gone")
            _remove(path, kept / str(names.get(str(path.parent), {}).get(path.name)))
        elif path.is_file() and sizes.get(inode, 0) < path.stat().st_size:
            lost.append(_cut(path, sizes.get(inode, 0), draw))
    for parent, those in names.items():
        for name, inode in those.items():
            path, copy = Path(parent, name), kept / str(inode)
            if not path.exists() and copy.exists() and copy.stat().st_ino == inode and draw.random() < 0.5:
                lost.append(f"{path} is there again")
                os.link(copy, path)
    return lost


def _remove(path: Path, before: Path) -> None:
    """Remove a file, and put back the one that it had replaced, if there is one; or a folder with all that it holds."""
    if path.is_dir():
        shutil.rmtree(path)
        return
    path.unlink()
    if before.exists():
        os.link(before, path)


def _cut(path: Path, synced: int, draw: random.Random) -> str:
    """Cut off a file or fill it with zeros, from somewhere behind what was synced."""
    size = path.stat().st_size
    end = draw.randint(synced, size - 1)
    os.truncate(path, end)
    if draw.random() < 0.5:
        os.truncate(path, size)
    return f"{path} has {end} of {size} bytes, {synced} were synced"
