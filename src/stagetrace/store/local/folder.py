"""The folder of a local store: its lock and its format."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagetrace.errors import StoreError
from stagetrace.own_files import open_own
from stagetrace.store.local import delta, durable, parquet
from stagetrace.store.local.view import FORMAT, TABLE, WAL

FORMAT_VERSION: Final = 1
LOCK: Final = "lock"  # names the process that has the folder, and on a second line its socket for other writers
_MOST: Final = 4096


class StoreTaken(StoreError):  # noqa: N818 - a state, not a fault
    """Say which process has the folder; `control` is its socket, if it writes for others."""

    def __init__(self, message: str, control: Path | None) -> None:
        super().__init__(message)
        self.control = control


def prepare(folder: Path) -> int:
    """Make a folder a store if it is none, and return the open file that marks it as taken.

    Raise StoreTaken if another process has it, StoreError if a newer stagetrace made it.
    """
    durable.make_folder(folder)
    lock = _lock(folder)
    try:
        if not (folder / FORMAT).exists():
            _claim(folder)
        check_format(folder)
        durable.make_folder(folder / WAL)
        if delta.load(folder / TABLE).version < 0:
            delta.create(folder / TABLE, parquet.delta_schema())
        for parent in (folder, folder / TABLE):  # a process that was killed may have made what is in it, and no more
            durable.sync_folder(parent)
    except BaseException:
        os.close(lock)
        raise
    return lock


def check_format(folder: Path) -> None:
    """Raise StoreError if the folder is no store, or if its format is newer than this code."""
    try:
        version = json.loads((folder / FORMAT).read_text("utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError):
        if (folder / TABLE / delta.LOG).is_dir():
            raise StoreError(
                f"cannot open the store in {folder}: {FORMAT}, which gives its format, is missing or damaged\n"
                f'if stagetrace has made this folder, write {{"version": {FORMAT_VERSION}}} into {folder / FORMAT}'
            ) from None
        remedy = f"`stagetrace up --data {folder}` makes one and fills it"
        if folder.is_dir() and any(folder.iterdir()):
            remedy = f"if it holds files of spans, name it {folder.absolute().as_uri()}"
        raise StoreError(f"{folder} is no store\n{remedy}") from None
    if version > FORMAT_VERSION:
        raise StoreError(
            f"cannot open the store in {folder}: its format is {version}, and this stagetrace knows {FORMAT_VERSION}\n"
            "update stagetrace, or name another folder"
        )


def _lock(folder: Path) -> int:
    file = open_own(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner, _, control = os.pread(file, _MOST, 0).decode(errors="replace").partition("\n")
        os.close(file)
        message = (
            f"cannot write to the store in {folder}: process {owner.strip() or 'unknown'} has it\n"
            "wait for that process or stop it, or name another folder; reading needs no lock"
        )
        raise StoreTaken(message, Path(control) if control else None) from None
    _clear_away(os.pread(file, _MOST, 0).decode(errors="replace").partition("\n")[2])
    announce(file)
    return file


def _clear_away(control: str) -> None:
    """Delete the socket, and the folder made for it, of a process that was killed.

    Nothing else: a folder may be a copy of somebody else's, whose lock names any file.
    """
    if control:
        with suppress(OSError, ValueError):
            if stat.S_ISSOCK(Path(control).lstat().st_mode):
                Path(control).unlink()
                Path(control).parent.rmdir()


def announce(lock: int, control: Path | None = None) -> None:
    """Write the owner of the folder into its lock."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, "\n".join([str(os.getpid()), *([] if control is None else [str(control)])]).encode(), 0)


def _claim(folder: Path) -> None:
    """Mark a new folder as a store. Raise StoreError if it holds anything else."""
    others = sorted(path.name for path in folder.iterdir() if path.name != LOCK and path.suffix != durable.UNFINISHED)
    if (folder / TABLE / delta.LOG).is_dir():
        return  # for `check_format` to report
    if others:
        (folder / LOCK).unlink()
        raise StoreError(f"{folder} is no store and not empty: it holds {others[0]}\nname an empty or a new folder")
    durable.replace(folder / FORMAT, json.dumps({"version": FORMAT_VERSION}).encode())
