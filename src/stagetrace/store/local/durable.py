"""Files and folders of the store: readable by its user alone, and on disk before they have their names."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Final

PRIVATE_FILE: Final = 0o600
UNFINISHED: Final = ".tmp"
PRIVATE_FOLDER: Final = 0o700


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        sync_folder(path.parent)


def make_file(path: Path) -> None:
    """Make an empty file for a library that opens files by their paths. Raise FileExistsError, for links too."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))


def write_new(path: Path, data: bytes) -> None:
    """Write a file that either is there as a whole, durably, or is not. Raise FileExistsError if the name is taken."""
    temporary = _write_temporary(path.parent, data)
    try:
        os.link(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file durably: at any time it is there as a whole, as it was or as it becomes."""
    temporary = _write_temporary(path.parent, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary_name(folder: Path) -> Path:
    """Return a path for a file that gets its name once it is on disk."""
    return folder / f".{uuid.uuid4().hex}{UNFINISHED}"


def _write_temporary(folder: Path, data: bytes) -> Path:
    temporary = temporary_name(folder)
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        write_all(file, data)
        os.fsync(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    return temporary


def write_all(file: int, data: bytes | bytearray) -> None:
    """Write all of the data to an open file."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def sync(path: Path) -> int:
    """Make a file's content durable and return its size."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
        return os.fstat(file).st_size
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
