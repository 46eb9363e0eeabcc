"""The verdict of one objective on a request: that of the entry span, or one of those that `sla.verdicts` lists. Pure.

The list has the first 64 of a request; of an objective behind these nothing is known.
"""

from __future__ import annotations

import re
from typing import Final

from stagetrace.sla.verdict_list import read

BREACH: Final = "breach"
_ANY: Final = "good|breach|excluded"


def word_of(objective: str, shown: str | None, word: str | None, verdicts: str | None) -> str | None:
    """Return the word of its verdict; None where it did not judge the request.

    `shown` is the objective of the entry span, `word` its verdict, `verdicts` the list, where there is one.
    """
    if shown == objective:
        return word
    listed = read(verdicts)[0] if verdicts else ()
    return next((one.word for one in listed if one.objective == objective), None)


def pattern(objective: str, *, breached: bool) -> str:
    """Return the regular expression, of Python's and of RE2, that finds its verdict, or only a breach, in a list."""
    return rf"(?s)(?:^|; )(?:{BREACH if breached else _ANY}): {re.escape(objective)} \([^()]+\)(?:; |$)"
