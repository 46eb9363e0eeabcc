"""What `make test-heavy` asks for: tests marked `heavy` run there alone, those marked `heavier` go further there."""

from __future__ import annotations

import os

HEAVY = bool(os.environ.get("STAGETRACE_HEAVY"))


def fuzz_cases(few: int) -> int:
    """Return how many cases to make: as many as asked for, else `few`, or a million where it may be heavy."""
    return int(os.environ.get("STAGETRACE_FUZZ_CASES") or (1_000_000 if HEAVY else few))
