"""What the output may look like: how wide it is and which characters it can show."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

_WIDTH_UNKNOWN: Final = 100
_NARROWEST: Final = 60


def width() -> int:
    """Return the columns to draw in: the terminal's, or $COLUMNS, or 100 where there is neither."""
    return max(_NARROWEST, shutil.get_terminal_size((_WIDTH_UNKNOWN, 24)).columns)


def is_bounded() -> bool:
    """Tell whether long lines would wrap: on a terminal, or where $COLUMNS says so; not in a pipe or a file."""
    return sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))


def shows_blocks() -> bool:
    """Tell whether the output's encoding has block characters."""
    try:
        "█▒─…".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Return text with control characters escaped: names come from requests, and must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def milliseconds(value: float) -> str:
    """Return a duration with its unit, always ms so that a column compares at a glance."""
    return f"{value:.3f} ms" if abs(value) < 1 else f"{value:.2f} ms"


def promise(value: float) -> str:
    """Return a threshold with its unit as a policy would write it: `50 ms`, not `50.00 ms`."""
    return f"{f'{value:.3f}'.rstrip('0').rstrip('.')} ms"
