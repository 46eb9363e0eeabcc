"""Marks: moments that somebody has named, such as a deploy, in a file of the store's folder: one line of JSON each."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.store.base import Mark
from stagetrace.store.local.durable import replace_file
from stagetrace.system.access import open_own
from stagetrace.text import printable

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "marks.jsonl"
LONGEST: Final = 200  # characters
MOST: Final = 1_000  # marks: beyond them the oldest is dropped
_BYTES: Final = 4 << 20  # more than so many marks take


def read(folder: Path) -> list[Mark]:
    """Return the marks of a folder, by time; a line that cannot be read is none."""
    try:
        with os.fdopen(open_own(folder / FILE, os.O_RDONLY), "rb") as file:
            lines = file.read(_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.once(FILE, f"{folder / FILE} cannot be read, and no mark is shown: {error.strerror}")
        return []
    return sorted(one for one in map(_parse, lines) if one is not None)


def add(folder: Path, mark: Mark) -> Mark:
    """Add a mark durably and return it. Raise StoreError where it has no text, too long a one, or cannot be written.

    Its caller has the store open, and adds one at a time.
    """
    made = mark._replace(text=printable(" ".join(mark.text.split())))
    if not 1 <= len(made.text) <= LONGEST:
        raise StoreError(f"a mark has 1 to {LONGEST} characters, and this one has {len(made.text):,}\nshorten it")
    kept = sorted([*read(folder), made])[-MOST:]
    try:
        replace_file(folder / FILE, b"".join(json.dumps(one._asdict()).encode() + b"\n" for one in kept))
    except OSError as error:
        raise StoreError(f"{folder / FILE} cannot be written: {error.strerror}\nmake room, or check its user") from None
    return made


def _parse(line: bytes) -> Mark | None:
    try:
        row = json.loads(line)
        return Mark(int(row["at_unix_nano"]), str(row["text"])[:LONGEST])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
