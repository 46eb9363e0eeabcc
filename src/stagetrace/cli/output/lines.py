"""Answers on stdout: one JSON object, or tables and lines, coloured on a terminal where `rich` is there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from stagetrace.cli.base import ANSWERED
from stagetrace.cli.output import terminal
from stagetrace.cli.output.streams import unescaped
from stagetrace.output.keys import completeness
from stagetrace.output.table_layout import GAP, HEAD, Cell, Line, Table, blocks, text_of
from stagetrace.printable import bounded, printable, printable_json

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
    text = json.dumps(answer, allow_nan=False, ensure_ascii=not terminal.shows_blocks(), default=_plain)
    sys.stdout.write(printable_json(text) + "\n")


def _plain(value: Any) -> Any:
    """Return a number of NumPy's as one of Python's."""
    return value.item()


def show(*parts: Table | str) -> None:
    """Print tables and lines, in this order."""
    width = terminal.width() if terminal.is_bounded() else None
    lines = [line for part in parts for block in _blocks(part, width) for line in block]
    if sys.stdout.isatty() and terminal.has_rich():
        from rich.console import Console

        Console(file=unescaped(sys.stdout), highlight=False).print(drawn(lines), markup=False, soft_wrap=True)
        return
    sys.stdout.write("\n".join([*map(text_of, lines), ""]))


def clipped(parts: Sequence[Table | str], width: int, height: int) -> list[Line]:
    """Return the lines of all parts within a height: each has its share of it, and counts the rows it lacks."""
    shown = [blocks(Table((), [part]), width) if isinstance(part, str) else blocks(part, width) for part in parts]
    needs = [sum(map(len, part)) for part in shown]
    room = height
    lines: dict[int, list[Line]] = {}
    # The smallest first: what it does not need of its share is for the others.
    for number, place in enumerate(sorted(range(len(shown)), key=needs.__getitem__)):
        lines[place] = _clipped(shown[place], room // (len(shown) - number))
        room -= len(lines[place])
    return [line for place in range(len(shown)) for line in lines[place]]


def _clipped(part: list[list[Line]], height: int) -> list[Line]:
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


def _blocks(part: Table | str, width: int | None) -> list[list[Line]]:
    return [[[Cell(printable(part))]]] if isinstance(part, str) else blocks(part, width)


def drawn(lines: list[Line]) -> Any:
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
