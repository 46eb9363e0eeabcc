"""When breaches became more frequent, or less: moments at which the breach rate of the same routes changed.

Binary segmentation: at each of up to 200 moments the requests before are tested against those from then on, exactly and
within strata; the clearest one divides them, and both sides are searched alike. The least p-value is multiplied by the
number of moments and of sides tested (Bonferroni), so that nothing is found where nothing changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.contingency import Cells, Counts, one_sided

ALPHA: Final = 0.01
_MOMENTS: Final = 200
_LEAST: Final = 20  # requests on each side
_MOST: Final = 6  # changes


@dataclass(frozen=True)
class Change:
    """A moment from which on the breach rate is another one; rates are of weighted requests."""

    at_unix_nano: int  # start of the first request after it
    before: float
    after: float
    p_value: float  # corrected for all moments that were tested


def changes(
    starts: Sequence[int],
    breached: Sequence[bool],
    weights: Sequence[float] | None = None,
    strata: Sequence[object] | None = None,
) -> list[Change]:
    """Return the moments at which the breach rate changed, by time; `starts` in ns, in any order."""
    times = np.asarray(starts, np.int64)
    order = np.argsort(times, kind="stable")
    labels = np.asarray(breached, bool)
    if not labels.any() or labels.all():
        return []
    counts = Counts(labels, weights, strata)
    cuts: dict[int, float] = {}
    pending = [(0, len(order))]
    while pending and len(cuts) < _MOST:
        first, last = pending.pop(0)
        found = _clearest(counts, times, order, first, last)
        if found is not None:
            cuts[found[0]] = found[1]
            pending += [(first, found[0]), (found[0], last)]
    ends = [0, *sorted(cuts), len(order)]
    rates = [_rate(counts, order[low:high]) for low, high in pairwise(ends)]
    return [
        Change(int(times[order[cut]]), rates[place], rates[place + 1], cuts[cut])
        for place, cut in enumerate(sorted(cuts))
    ]


def _clearest(counts: Counts, times: Array, order: Array, first: int, last: int) -> tuple[int, float] | None:
    """Return where, among the requests at [first, last) by time, the rate changes most surely, and how surely."""
    inside = order[first:last]
    places = np.unique(np.linspace(_LEAST, len(inside) - _LEAST, _MOMENTS).astype(int))
    # Requests that start together are on one side.
    places = np.unique(np.searchsorted(times[inside], times[inside[np.clip(places, 0, len(inside) - 1)]]))
    places = places[(places >= _LEAST) & (places <= len(inside) - _LEAST)]
    if not len(places):
        return None
    codes = np.full(len(times), len(places) + 1)
    codes[inside] = np.searchsorted(places, np.arange(len(inside)), side="right")
    table = counts.table(codes, len(places) + 2)
    before = Cells(table.bad[:, :-1].cumsum(1)[:, :-1], table.good[:, :-1].cumsum(1)[:, :-1])
    whole = Cells(table.bad[:, :-1].sum(1, keepdims=True), table.good[:, :-1].sum(1, keepdims=True))
    p_values = np.minimum(one_sided(before, whole - before), one_sided(whole - before, before))
    best = int(p_values.argmin())
    p_value = min(1.0, float(p_values[best]) * 2 * len(places))
    return (first + int(places[best]), p_value) if p_value <= ALPHA / _MOST else None


def _rate(counts: Counts, rows: Array) -> float:
    codes = np.ones(len(counts.breached), int)
    codes[rows] = 0
    sums = counts.weighted(counts.table(codes, 2))
    bad, good = float(sums.bad[:, 0].sum()), float(sums.good[:, 0].sum())
    return bad / (bad + good)
