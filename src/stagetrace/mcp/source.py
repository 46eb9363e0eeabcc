"""The lines of code around a place that a stored span names, where its file is on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

AROUND: Final = 12  # lines before and after
_SUFFIX: Final = ".py"
_MOST_BYTES: Final = 4 << 20  # of a file
_LONGEST: Final = 300  # characters of a line
_FILES: Final = 50_000  # looked at below one folder
_LEFT_OUT: Final = frozenset({"__pycache__", "node_modules", "site-packages"})  # and what begins with a dot


class Place(NamedTuple):
    """A line of code as a span names it: its path within a folder of its service."""

    path: str
    line: int
    function: str | None = None


class Lines(NamedTuple):
    """The lines around a place."""

    file: Path
    first: int
    lines: Sequence[str]


def files_of(place: Place, roots: Sequence[Path]) -> list[Path]:
    """Return the files below the roots that a place may be in: at its path there, else where the path is an end.

    None outside of them, whatever the path is, and none but sources of Python: spans are anybody's text.
    """
    path = Path(place.path)
    if path.suffix != _SUFFIX or ".." in path.parts or path.is_absolute():
        return []
    at_once = [found for root in roots if (found := _within(root, root / path)) is not None]
    if at_once:
        return at_once[:1]
    return sorted({found for root in roots for found in _below(root, path)})


def _below(root: Path, path: Path) -> Iterator[Path]:
    looked = islice(_sources(root), _FILES)
    ends = (one for one in looked if one.parts[-len(path.parts) :] == path.parts)
    return (found for one in ends if (found := _within(root, one)) is not None)


def _sources(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = [one for one in below if not one.startswith(".") and one not in _LEFT_OUT]
        yield from (Path(folder, name) for name in names if name.endswith(_SUFFIX))


def _within(root: Path, path: Path) -> Path | None:
    """Return the real path of a source of Python within a folder, links followed; None of anything else."""
    try:
        real, folder = path.resolve(strict=True), root.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    is_one = real.suffix == _SUFFIX and real.is_relative_to(folder) and real.is_file()
    return real if is_one and real.stat().st_size <= _MOST_BYTES else None


def around(file: Path, line: int, many: int = AROUND) -> Lines:
    """Return the lines around one, as many as are there."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        first = max(1, line - many)
        found = [text.rstrip("\n")[:_LONGEST] for text in islice(opened, first - 1, line + many)]
    return Lines(file, first, found)
