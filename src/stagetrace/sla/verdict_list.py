"""The text of several verdicts on one request, which `sla.verdicts` has: written as it ends, read of stored spans."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_WRITTEN: Final = 64  # verdicts; the rest is a number
_ONE: Final = re.compile(r"(?P<word>good|breach|excluded): (?P<objective>.+) \((?P<target>[^()]+)\)", re.DOTALL)
_MORE: Final = re.compile(r"and (\d{1,9}) more")


class Listed(NamedTuple):
    """The verdict of one objective, as the text has it."""

    word: str
    objective: str
    target: str  # share and window, as `Objective.target_text`


def write(verdicts: Iterable[tuple[str, str, str]]) -> str:
    """Return the text of verdicts: word, name of the objective, share and window of each."""
    each = iter(verdicts)
    texts = [f"{word}: {objective} ({target})" for word, objective, target in islice(each, MOST_WRITTEN)]
    more = sum(1 for _ in each)
    return "; ".join([*texts, *([f"and {more} more"] if more else [])])


def read(text: str) -> tuple[list[Listed], int]:
    """Return the verdicts of such a text, and how many more there were; what is no verdict is one of those."""
    found, more = [], 0
    for part in text.split("; "):
        one, rest = _ONE.fullmatch(part), _MORE.fullmatch(part)
        if one is not None:
            found.append(Listed(**one.groupdict()))
        else:
            more += 1 if rest is None else int(rest[1])
    return found, more
