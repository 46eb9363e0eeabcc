"""The folder of a local store: whose it is, and which format it has."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Final

from stagetrace.errors import StoreError
from stagetrace.store.local import delta, parquet
from stagetrace.store.local.view import FORMAT, TABLE, WAL

if TYPE_CHECKING:
    from pathlib import Path

FORMAT_VERSION: Final = 1
LOCK: Final = "lock"


def prepare(folder: Path) -> int:
    """Make a folder a store if it is none, and return the open file that marks it as taken.

    Raise StoreError if another process has it, or if a newer stagetrace made it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _lock(folder)
    try:
        if not (folder / FORMAT).exists():
            _claim(folder)
        check_format(folder)
        (folder / WAL).mkdir(exist_ok=True)
        if delta.load(folder / TABLE).version < 0:
            delta.create(folder / TABLE, parquet.delta_schema())
    except BaseException:
        os.close(lock)
        raise
    return lock


def check_format(folder: Path) -> None:
    """Raise StoreError if the folder is no store, or if its format is newer than this code."""
    try:
        version = json.loads((folder / FORMAT).read_text("utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{folder} is no store\n`stagetrace up --data {folder}` makes one and fills it") from None
    if version > FORMAT_VERSION:
        raise StoreError(
            f"cannot open the store in {folder}: its format is {version}, and this stagetrace knows {FORMAT_VERSION}\n"
            "update stagetrace, or name another folder"
        )


def _lock(folder: Path) -> int:
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(file)
        message = (
            f"cannot write to the store in {folder}: process {holder} has it\n"
            "stop that process, or name another folder; reading needs no lock"
        )
        raise StoreError(message) from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    return file


def _claim(folder: Path) -> None:
    """Mark a new folder as a store. Raise StoreError if it holds anything else."""
    others = sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, f".{FORMAT}"))
    if others:
        (folder / LOCK).unlink()
        raise StoreError(f"{folder} is no store and not empty: it holds {others[0]}\nname an empty or a new folder")
    temporary = folder / f".{FORMAT}"
    temporary.write_text(json.dumps({"version": FORMAT_VERSION}), "utf-8")
    temporary.rename(folder / FORMAT)
