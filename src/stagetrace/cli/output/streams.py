"""The streams of a command: whatever is written to them cannot control the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from stagetrace.printable import printable_lines


class _Printable:
    """A stream of text that escapes every character which does not show, line breaks and tabs aside."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text; return its length, as streams do."""
        self.stream.write(printable_lines(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of some texts."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream to which colours and movements of the cursor are written: all else in it is printable."""
    return stream.stream if isinstance(stream, _Printable) else stream


@contextmanager
def printable_streams() -> Iterator[None]:
    """Escape what is written to stdout and stderr; these may be closed (`>&-`) or lack characters."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_prepared, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def _prepared(stream: TextIO | None) -> TextIO:
    stream = stream or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- as long as the process
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return cast("TextIO", _Printable(stream))
