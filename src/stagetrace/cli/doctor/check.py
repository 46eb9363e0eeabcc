"""What one check of `stagetrace doctor` found."""

from __future__ import annotations

from typing import Final, NamedTuple

OK: Final = "ok"
WARN: Final = "warn"  # works, but perhaps not as it was meant
FAIL: Final = "fail"


class Check(NamedTuple):
    """`found` is what is, in one line; `mend` is what mends it, empty where nothing has to be."""

    name: str
    state: str
    found: str
    mend: str = ""
