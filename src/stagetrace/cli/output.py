"""Answers on stdout: one JSON object, or tables and lines for the width, characters and colours of the terminal."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from stagetrace import settings
from stagetrace.cli.console import unescaped
from stagetrace.cli.registry import ANSWERED
from stagetrace.output.answer import completeness
from stagetrace.output.table import GAP, HEAD, Cell, Line, Table, blocks, text_of
from stagetrace.store.base import Reader
from stagetrace.text import bounded, printable, printable_json

# --- Properties of the output: its width, and the characters that it can show.

_WIDTH_UNKNOWN: Final = 100
_NARROWEST: Final = 60
_PATIENCE_S: Final = 0.3
_BAR: Final = 30
_SHORT: Final = 20  # lines of an answer that need not be long
_LEAST: Final = 5  # of its table


def terminal_width() -> int:
    """Return the columns to draw in: the terminal's, or $COLUMNS, or 100 where there is neither."""
    return max(_NARROWEST, shutil.get_terminal_size((_WIDTH_UNKNOWN, 24)).columns)


def is_bounded() -> bool:
    """Return whether long lines would wrap: on a terminal, or where $COLUMNS is set; not in a pipe or a file."""
    return sys.stdout.isatty() or bool(settings.COLUMNS.read())


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
def show_progress(reader: Reader) -> Iterator[Reader]:
    """Show the progress of a reader until the block ends."""
    reader.progress = progress = Progress("spans")
    try:
        yield reader
    finally:
        progress.end()


# --- Answers on stdout: one JSON object, or tables and lines, coloured on a terminal where `rich` is there.

_STYLES = {
    HEAD: "bold",
    "breach": "bold red",
    "critical": "bold red",
    "major": "red",
    "minor": "yellow",
    "good": "green",
    "ERROR": "bold red",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}


def show_json(answer: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    # Numbers of NumPy become those of Python.
    text = json.dumps(answer, allow_nan=False, ensure_ascii=not shows_blocks(), default=lambda value: value.item())
    sys.stdout.write(printable_json(text) + "\n")


def show(*parts: Table | str) -> None:
    """Print tables and lines, in this order."""
    width = terminal_width() if is_bounded() else None
    _write([line for part in parts for block in _blocks(part, width) for line in block])


def show_short(said: Sequence[str], parts: Sequence[Table | str], steps: Sequence[str], *, has_more: bool) -> None:
    """Print what is said, as much of one table or picture as a short answer has room for, and what to run next."""
    width = terminal_width()
    drawn = [block for part in parts for block in _blocks(part, width if is_bounded() else None)]
    needs = sum(-(-len(printable(one)) // width) for one in (*said, *steps)) + bool(drawn) + bool(steps) + 1
    lines: list[Line] = []
    for block in drawn:
        if len(lines) + len(block) > max(_LEAST, _SHORT - needs):
            break
        lines += block
    left = sum(map(len, drawn)) - len(lines)
    more = f"... {left} more lines: --long" if left else "More: --long" if has_more else None
    ends = [*([] if more is None else [more]), *(["", *steps] if steps else [])]
    _write(
        [
            *([Cell(printable(one))] for one in said),
            *([[]] if lines else []),
            *lines,
            *([Cell(printable(one))] for one in ends),
        ]
    )


def _blocks(part: Table | str, width: int | None) -> list[list[Line]]:
    return [[[Cell(printable(part))]]] if isinstance(part, str) else blocks(part, width)


def _write(lines: list[Line]) -> None:
    if sys.stdout.isatty() and has_rich():
        from rich.console import Console

        Console(file=unescaped(sys.stdout), highlight=False).print(styled_text(lines), markup=False, soft_wrap=True)
        return
    sys.stdout.write("\n".join([*map(text_of, lines), ""]))


def clip(parts: Sequence[Table | str], width: int, height: int) -> list[Line]:
    """Return the lines of all parts within a height: each has its share of it, and counts the rows it lacks."""
    shown = [blocks(Table((), [part]), width) if isinstance(part, str) else blocks(part, width) for part in parts]
    needs = [sum(map(len, part)) for part in shown]
    room = height
    lines: dict[int, list[Line]] = {}
    # The smallest first: what it does not need of its share is for the others.
    for number, place in enumerate(sorted(range(len(shown)), key=needs.__getitem__)):
        lines[place] = _clip(shown[place], room // (len(shown) - number))
        room -= len(lines[place])
    return [line for place in range(len(shown)) for line in lines[place]]


def _clip(part: list[list[Line]], height: int) -> list[Line]:
    """Return the lines of the first rows, and in the last line how many more there are, if not all have room."""
    if sum(map(len, part)) <= height:
        return [line for block in part for line in block]
    head, *rows = part
    lines = list(head)
    for number, row in enumerate(rows):
        if len(lines) + len(row) >= height:
            return [*lines, [Cell(f"{GAP}... {sum(map(len, rows[number:]))} more lines")]]
        lines += row
    return lines


def styled_text(lines: list[Line]) -> Any:
    """Return lines as `rich` prints them; a Text and not a str, or a name in square brackets would be markup."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    for number, line in enumerate(lines):
        text.append("\n" if number else "")
        for cell in line:
            text.append(cell.text, style=_STYLES.get(cell.word))
    return text


def show_result(
    args: argparse.Namespace, keys: dict[str, Any], parts: Iterable[Table | str], reason: str | None = None
) -> int:
    """Print keys as JSON or, without `--json`, parts as text, and warn of what is missing; return the exit code."""
    if args.json:
        show_json({**completeness(reason), **keys})
    else:
        show(*parts)
    warn(reason)
    return ANSWERED


def remark(note: str | None) -> None:
    """Write to stderr what else there is to know of an answer."""
    if note is not None:
        sys.stderr.write(f"stagetrace: {bounded(note)}\n")


def warn(reason: str | None) -> None:
    """Say on stderr that an answer is not complete."""
    if reason is not None:
        sys.stderr.write(f"stagetrace: INCOMPLETE: {bounded(reason)}\n")
