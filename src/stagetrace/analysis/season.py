"""The pattern that a series repeats, day by day or week by week: found, and taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.ndimage import median_filter

from stagetrace.analysis.arrays import Floats

_SHORTEST: Final = 4  # values in a period
_FEWEST: Final = 2  # whole periods that make a pattern
_EXPLAINED: Final = 0.4  # correlation that a period must have with the next


def without_pattern(values: Floats, calendar: Sequence[int]) -> tuple[Floats, tuple[int, ...]]:
    """Return values (at equal steps, NaN where there is none) without their periodic part, and its periods in steps.

    Periods of the `calendar` (a day, a week) are taken out if two whole ones are there and one foretells the next.
    """
    found: list[int] = []
    for period in calendar:
        values = _taken_out(values, period, found)
    return values, tuple(found)


def _taken_out(values: Floats, period: int, found: list[int]) -> Floats:
    """Return values without the pattern of a period, which is appended to `found`, or as they are if there is none."""
    if period < _SHORTEST or len(values) < _FEWEST * period:
        return values
    flat = values - _trend(_filled(values), period)
    if _foretold(flat, period) < _EXPLAINED:
        return values
    found.append(period)
    place = np.arange(len(values)) % period
    for _ in range(2):  # the trend of what is left is right at both ends too
        flat = values - _trend(_filled(values - _profile(flat, period)[place]), period)
    return np.asarray(values - _profile(flat, period)[place])


def _filled(values: Floats) -> Floats:
    """Return values with gaps bridged."""
    known = np.isfinite(values)
    if known.all():
        return values
    at = np.arange(len(values))
    return np.interp(at, at[known], values[known])


def _trend(values: Floats, period: int) -> Floats:
    """Return the running median over one period: levels and slopes without the pattern."""
    if period >= len(values):
        return np.full(len(values), np.median(values))
    return np.asarray(median_filter(values, size=period | 1, mode="reflect"))


def _profile(flat: Floats, period: int) -> Floats:
    """Return the median at each place of the period, around 0; 0 where no period has a value."""
    padded = np.full(-(-len(flat) // period) * period, np.nan)
    padded[: len(flat)] = flat
    rows = padded.reshape(-1, period)
    shape = np.zeros(period)
    known = np.isfinite(rows).any(axis=0)
    shape[known] = np.nanmedian(rows[:, known], axis=0)
    return shape - np.median(shape)


def _foretold(flat: Floats, period: int) -> float:
    """Return the correlation of values with those one period later, outliers clipped."""
    middle = float(np.nanmedian(flat))
    limit = 4 * float(np.nanmedian(np.abs(flat - middle))) / 0.6745
    clipped = np.clip(flat, middle - limit, middle + limit) if limit > 0 else flat
    one, two = clipped[:-period], clipped[period:]
    both = np.isfinite(one) & np.isfinite(two)
    one, two = one[both], two[both]
    if len(one) < period // 2 or one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])
