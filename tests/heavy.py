"""Set the size of tests marked `heavy` and `heavier`.

STAGETRACE_HEAVY unset: the former are skipped, the latter are small. `sample`, with `-m sample`: both have a medium
size, and some of them run (`make test-sample`). Any other value: both have full size (`make test-heavy`).
"""

from __future__ import annotations

import os

HEAVY = bool(os.environ.get("STAGETRACE_HEAVY"))


def scaled(few: int, sample: int, many: int) -> int:
    """Return the number of cases, rounds or seconds."""
    if not HEAVY:
        return few
    return sample if os.environ["STAGETRACE_HEAVY"] == "sample" else many


def fuzz_cases(few: int) -> int:
    """Return the number of cases: the requested one, else one by the size of the run."""
    return int(os.environ.get("STAGETRACE_FUZZ_CASES") or scaled(few, 5_000, 1_000_000))
