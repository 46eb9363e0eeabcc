"""Properties of the output: its width, and the characters that it can show."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from stagetrace import config
from stagetrace.cli.output.streams import unescaped
from stagetrace.store.base import Reader

_WIDTH_UNKNOWN: Final = 100
_NARROWEST: Final = 60
_PATIENCE_S: Final = 0.3
_BAR: Final = 30


def width() -> int:
    """Return the columns to draw in: the terminal's, or $COLUMNS, or 100 where there is neither."""
    return max(_NARROWEST, shutil.get_terminal_size((_WIDTH_UNKNOWN, 24)).columns)


def is_bounded() -> bool:
    """Return whether long lines would wrap: on a terminal, or where $COLUMNS is set; not in a pipe or a file."""
    return sys.stdout.isatty() or bool(config.COLUMNS.read())


def shows_blocks() -> bool:
    """Return whether the output's encoding has block characters."""
    try:
        "█▒─…".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def has_rich() -> bool:
    """Return whether the library that draws tables is there; without it they are plain."""
    from importlib.util import find_spec

    return find_spec("rich") is not None


def _control(text: str) -> None:
    """Write to stderr text of our own that controls the terminal."""
    stream = unescaped(sys.stderr)
    stream.write(text)
    stream.flush()


class Progress:
    """Counts on stderr while something long runs; nothing where stderr is no terminal, or where it was short."""

    def __init__(self, what: str) -> None:
        """Count `what`."""
        self._what = what
        self._next = time.monotonic() + _PATIENCE_S
        self._shown = False

    def __call__(self, count: int, what: str | None = None, share: float | None = None) -> None:
        """Show the count, and its share of all where that is known, a few times a second; `what`: other items."""
        now = time.monotonic()
        if now >= self._next and sys.stderr.isatty():
            self._next = now + _PATIENCE_S
            self._shown = True
            bar = "" if share is None else f"[{'#' * round(_BAR * min(1.0, share)):.<{_BAR}}] {min(1.0, share):.0%}  "
            _control(f"\r{bar}{count:,} {what or self._what} ...\x1b[K")

    def end(self) -> None:
        """Take the count away."""
        if self._shown:
            _control("\r\x1b[K")
            self._shown = False


@contextmanager
def watched(reader: Reader) -> Iterator[Reader]:
    """Show the progress of a reader until the block ends."""
    reader.progress = progress = Progress("spans")
    try:
        yield reader
    finally:
        progress.end()
