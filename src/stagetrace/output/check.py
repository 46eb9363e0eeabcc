"""The result of one check of `stagetrace doctor`."""

from __future__ import annotations

from typing import Final, NamedTuple

OK: Final = "ok"
WARN: Final = "warn"  # works, but perhaps not as intended
FAIL: Final = "fail"


class Check(NamedTuple):
    """`found` is the state in one line; `fix` the remedy, empty where none is needed."""

    name: str
    state: str
    found: str
    fix: str = ""
