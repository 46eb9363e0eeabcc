"""The gain of each segment if its slowest stage were as fast as the median of the others, out of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.cases import Cases

LEAST: Final = 20  # requests of a segment in the sample, and of the others


@dataclass(frozen=True)
class Remedy:
    """The gain if one stage were no slower than the median of the others."""

    stage: str  # the one with the greatest mean excess over that median
    median_ms: float  # of the other segments
    gain_ms: float  # less time, mean over the segment's requests
    breaches: float | None  # share of its breaches that would be none; None where it has none


def remedies(cases: Cases, names: Sequence[str | None]) -> dict[str | None, Remedy]:
    """Return the remedy of each segment that has a stage slower than the others'; `names`: the segment of each row."""
    codes = {name: place for place, name in enumerate(dict.fromkeys(names))}
    of = np.array([codes[name] for name in names])
    columns = _stages(cases.rows)
    over = np.array([row["overrun_ms"] or 0.0 for row in cases.rows], float)
    found = {}
    for name, place in codes.items():
        mine = of == place
        if min(mine.sum(), (~mine).sum()) < LEAST:
            continue
        best: Remedy | None = None
        for stage, took in columns.items():
            median = _median(took[~mine], cases.weights[~mine])
            less = np.maximum(0.0, took[mine] - median)
            gain = float(np.average(less, weights=cases.weights[mine]))
            if gain > (best.gain_ms if best is not None else 0.0):
                bad = cases.breached[mine]
                avoided = less[bad] >= over[mine][bad]
                best = Remedy(stage, median, gain, float(avoided.mean()) if bad.any() else None)
        if best is not None:
            found[name] = best
    return found


def _stages(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Return how long each stage takes of each row; 0 where it has none."""
    columns: dict[str, Array] = {}
    for place, row in enumerate(rows):
        for stage, took in zip(row["stage_names"], row["stage_ms"], strict=True):
            if stage not in columns:
                columns[stage] = np.zeros(len(rows))
            columns[stage][place] = took
    return columns


def _median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])
