"""Compare the causes named with the causes produced: arithmetic alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.measure import Table, wilson
from stagetrace.causes.cause import PHRASES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NOTHING: Final = "nothing"  # was made: the request takes what it usually takes
CONTENTION: Final = "contention"  # others were in the way, and which of these words is right the bench cannot know
RIGHT: Final = {
    NOTHING: ("compute", "io_wait", "mixed", "unknown"),
    CONTENTION: ("socket_wait", "pool_wait", "cpu_wait", "lock_wait"),
}
WITHHELD: Final = "cpu_wait"
_STAGE: Final = re.compile(r"^\S+ took ([\d.]+) ms")
_REQUEST: Final = re.compile(r"; of the request's ([\d.]+) ms: ")
_PART: Final = re.compile(rf"([\d.]+) ms (?:{'|'.join(map(re.escape, PHRASES.values()))})")


@dataclass(frozen=True)
class Named:
    """One breach: its case and load, the cause produced and the one named.

    `withheld`: the service's threads were without a CPU for at least half of the overrun.
    """

    case: str
    load: str
    truth: str
    word: str
    withheld: bool = False
    evidence: str = ""
    trace_id: str = ""

    @property
    def is_right(self) -> bool:
        """Return whether the cause produced was named; where none was, whether no false one was named."""
        return self.word in RIGHT.get(self.truth, (self.truth,))

    @property
    def is_the_machines(self) -> bool:
        """Return whether `cpu_wait` was named and true, though the benchmark did not produce it."""
        return self.word == WITHHELD and self.withheld and not self.is_right


def parts_exceed(evidence: str) -> bool:
    """Return whether the parts that evidence counts are together longer than the stage, or request, that it names."""
    named = _REQUEST.search(evidence) or _STAGE.match(evidence)
    parts = [float(took) for took in _PART.findall(evidence)]
    return named is not None and sum(parts) > float(named[1]) + 0.05 * (len(parts) + 1) + 1e-6  # each is rounded


def matrix(title: str, named: Sequence[Named]) -> Table:
    """Return how often each cause was named (columns) for each one produced (rows)."""
    truths = list(dict.fromkeys(one.truth for one in named))
    words = [word for word in truths if word not in RIGHT]
    words += sorted({one.word for one in named}.difference(words))
    counts = Counter((one.truth, one.word) for one in named)
    rows = [[truth, *(str(counts[truth, word] or ".") for word in words)] for truth in truths]
    return Table(f"{title}: produced (rows) and named (columns)", ("", *words), rows)


def shares(attribute: str, named: Sequence[Named], keys: Iterable[str]) -> Table:
    """Return the share that was named right, by the values of an attribute."""
    rows = [_share(key, [one for one in named if getattr(one, attribute) == key]) for key in keys]
    columns = (attribute, "breaches", "right", "95 % interval", "without machine waits", "95 % interval")
    return Table(f"Named right, by {attribute} (Wilson's intervals)", columns, [*rows, _share("all", named)])


def _share(key: str, named: Sequence[Named]) -> list[str]:
    apart = [one for one in named if not one.is_the_machines]
    row = [key, str(len(named))]
    for some in (named, apart):
        right = sum(one.is_right for one in some)
        least, most = wilson(right, len(some))
        row += [f"{right / len(some):.1%} ({right}/{len(some)})" if some else "", f"{least:.1%} to {most:.1%}"]
    return row
