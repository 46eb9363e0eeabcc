"""The line of code of a breach, `app.py:41 in predict`, as a selection names it: whole, in part, or with `*`. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_IN: Final = " in "  # between the line and its function
_REST: Final = rf"(?::[0-9]+)?(?:{_IN}.*)?"  # of a code that is named by its file, or by file and line


def is_whole(text: str) -> bool:
    """Return whether a text selects the one code that equals it."""
    return _IN in text and "*" not in text


@lru_cache(maxsize=64)
def pattern(texts: tuple[str, ...]) -> str:
    """Return the regular expression, of Python's and of RE2, that matches the codes which one of these texts selects.

    `app.py` selects all lines of the file, `app.py:41` this one in any function, `*` stands for any characters.
    """
    each = (".*".join(map(re.escape, text.split("*"))) + ("" if _IN in text else _REST) for text in texts)
    return f"(?s)(?:{'|'.join(each)})"


def is_one_of(code: str | None, texts: tuple[str, ...]) -> bool:
    """Return whether one of these texts selects a code."""
    return code is not None and re.fullmatch(pattern(texts), code) is not None
