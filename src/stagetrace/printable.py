"""Text of unknown origin, made fit to be shown: on a terminal, in JSON, in a spreadsheet, in an error message.

Names and attributes of spans come from whoever sends requests. Characters that do not show (control characters, those
that turn the direction of text, invisible ones, halves of surrogate pairs) are escaped, as Python or JSON writes them.
"""

from __future__ import annotations

import json
import re
from typing import Final

MESSAGE: Final = 1000  # characters of an error message, as a command, the back end or a log shows it
LINES: Final = 3
TRACEBACK: Final = (10_000, 100)  # likewise, and lines, of a traceback
_HIDDEN: Final = re.compile(r"[^ -~\u00a1-\u00ac\u00ae-\u02ff]")  # may be: the rest is looked at one by one
_END: Final = 3  # the part of a message that is cut which is kept of its end, where the remedy stands: a third
_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 -- full-width ones begin a formula, too
_NUMBER: Final = re.compile(r"[+-]?[0-9.,]+([eE][+-]?[0-9]+)?")


def printable(text: str) -> str:
    """Return text as one line, with every character escaped that does not show."""
    return text if text.isprintable() else _HIDDEN.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """Return text as `printable` does, with its line breaks and tabs."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found), text)


def printable_json(text: str) -> str:
    """Return JSON that means the same and has every character escaped that does not show."""
    return text if text.isprintable() else _HIDDEN.sub(_escaped_in_json, text)


def spreadsheet_cell(text: str) -> str:
    """Return text as a cell of CSV: printable, and behind a `'` where a spreadsheet would run it as a formula."""
    is_formula = text.startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return f"'{printable(text)}" if is_formula else printable(text)


def bounded(text: str, characters: int = MESSAGE, lines: int = LINES) -> str:
    """Return text as printable lines, bounded: what is cut is counted where it stood, begin and end are kept."""
    shown = printable_lines(text)
    parts = shown.split("\n")
    if len(parts) > lines:
        cut = f" ... [{len(parts) - lines:,} lines cut]"
        shown = "\n".join([*parts[: lines - 2], parts[lines - 2] + cut, parts[-1]])
    if len(shown) > characters:
        cut = f" ... [{len(shown) - characters:,} characters cut] ... "
        end = characters // _END
        shown = f"{shown[: characters - end]}{cut}{shown[-end:]}"
    return shown


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _escaped_in_json(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
