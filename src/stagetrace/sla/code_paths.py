"""Whose code is, the application's or a library's, and the short path of its file that spans have."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagetrace.sources.stacks import is_ours

if TYPE_CHECKING:
    from stagetrace.sources.stacks import Place, Stack

_SEPARATORS: Final = (os.sep, os.altsep or os.sep)
_LIBRARY_FOLDERS: Final = ("site-packages", "dist-packages")
_STANDARD: Final = tuple(
    path.rstrip(os.sep) + os.sep for name in ("stdlib", "platstdlib") if (path := sysconfig.get_paths().get(name))
)


@lru_cache(maxsize=4096)
def is_library(path: str) -> bool:
    """Return whether a source file is of an installed package, of the standard library, or generated."""
    if path.startswith("<") or _after_library_folder(path) is not None:
        return True
    return path.startswith(_STANDARD)


@lru_cache(maxsize=4096)
def short_path(path: str) -> str:
    """Return the path within the installed packages, the standard library, the working directory or `sys.path`."""
    within = _after_library_folder(path)
    if within is not None:
        return within
    for folder in (*_STANDARD, _working_directory(), *sorted(map(_folder, sys.path), key=len, reverse=True)):
        if len(folder) > 1 and path.startswith(folder):
            return path[len(folder) :]
    return path if path.startswith("<") else str(Path(*Path(path).parts[-2:]))


def application_place(stack: Stack) -> Place | None:
    """Return the application's innermost place; where it has none, the outermost one of a library; None of no stack."""
    own = next((one for one in stack if not is_library(one[0].co_filename) and not is_ours(one[0])), None)
    if own is not None:
        return own
    theirs = [place for place in stack if not is_ours(place[0])]
    return theirs[-1] if theirs else None


def _after_library_folder(path: str) -> str | None:
    parts = Path(path).parts
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] in _LIBRARY_FOLDERS:
            return str(Path(*parts[at + 1 :]))
    return None


def _folder(path: str) -> str:
    return path.rstrip(os.sep) + os.sep


def _working_directory() -> str:
    try:
        return _folder(os.getcwd())  # noqa: PTH109
    except OSError:
        return ""
