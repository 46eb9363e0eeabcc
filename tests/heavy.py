"""How far tests marked `heavy` and `heavier` go.

STAGETRACE_HEAVY unset: the former are skipped, the latter are small. `sample`, with `-m sample`: both are of a middle
size, and some of them run (`make test-sample`). Anything else: both go all the way (`make test-heavy`).
"""

from __future__ import annotations

import os

HEAVY = bool(os.environ.get("STAGETRACE_HEAVY"))


def scaled(few: int, sample: int, many: int) -> int:
    """Return how many cases, rounds or seconds to take."""
    if not HEAVY:
        return few
    return sample if os.environ["STAGETRACE_HEAVY"] == "sample" else many


def fuzz_cases(few: int) -> int:
    """Return how many cases to make: as many as asked for, else by how heavy it may be."""
    return int(os.environ.get("STAGETRACE_FUZZ_CASES") or scaled(few, 5_000, 1_000_000))
