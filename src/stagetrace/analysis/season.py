"""The pattern that a series repeats, day by day or week by week: found, and taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.ndimage import median_filter

from stagetrace.analysis.arrays import Floats

_SHORTEST: Final = 4  # values in a period
_FEWEST: Final = 2  # whole periods of a calendar that make a pattern; of others, one more
_LONGEST: Final = 20_000  # values beyond which no period is sought
_EXPLAINED: Final = 0.4  # correlation that a period must have with the next
_TRIED: Final = 6  # peaks of the spectrum
_MOST_TRIED: Final = 60  # lengths around each of them
_PEAK: Final = 8.0  # times the spectrum around it
_AT_MOST: Final = 2  # patterns that are sought: a day and a week


def without_pattern(
    values: Floats, calendar: Sequence[int] = (), *, others: bool = True
) -> tuple[Floats, tuple[int, ...]]:
    """Return values (at equal steps, NaN where there is none) without their periodic part, and its periods in steps.

    Periods of the `calendar` (a day, a week) are taken out if two whole ones are there and one foretells the next. If
    that finds none, `others` are sought in the spectrum, of which three must be there.
    """
    found: list[int] = []
    for period in calendar:
        values = _taken_out(values, period, _FEWEST, found)
    if others and not found and len(values) <= _LONGEST:
        for period in _periods(_filled(values)):
            values = _taken_out(values, period, _FEWEST + 1, found)
            if len(found) == _AT_MOST:
                break
    return values, tuple(found)


def _taken_out(values: Floats, period: int, fewest: int, found: list[int]) -> Floats:
    """Return values without the pattern of a period, which is appended to `found`, or as they are if there is none."""
    if period < _SHORTEST or len(values) < fewest * period:
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


def _periods(values: Floats) -> list[int]:
    """Return the periods that stand out of the spectrum, the strongest first."""
    size = len(values)
    steps = np.diff(values)
    limit = 5 * float(np.median(np.abs(steps))) / 0.6745 if size > (_FEWEST + 1) * _SHORTEST else 0.0
    if limit <= 0:
        return []
    clipped = np.clip(steps, -limit, limit)
    power = np.abs(np.fft.rfft(clipped - clipped.mean())) ** 2
    power[:_FEWEST] = 0
    # The spectrum of differences grows with the square of the frequency.
    power[1:] /= np.sin(np.pi * np.arange(1, len(power)) / size) ** 2 + 1e-3
    floor = median_filter(power, size=min(31, len(power) | 1), mode="nearest")
    ratio = power / np.maximum(floor, power.max() * 1e-9)
    found: list[int] = []
    for place in np.argsort(-ratio)[: 3 * _TRIED]:
        low, high = max(_SHORTEST, int(size / (place + 0.7))), int(np.ceil(size / (place - 0.7)))
        if ratio[place] < _PEAK or place <= _FEWEST or low > high:
            continue
        flat = values - _trend(values, (low + high) // 2)
        tried = np.unique(np.linspace(low, high, min(high - low + 1, _MOST_TRIED)).astype(int))
        best = int(max(tried, key=lambda period: _agreement(flat, int(period))))
        for _ in range(2):  # without the pattern the trend is right at both ends, and then so is the period
            best = _refined(values, flat, best)
        if best not in found:
            found.append(best)
    return found[:_TRIED]


def _refined(values: Floats, flat: Floats, period: int) -> int:
    """Return the period near the given one that fits best where its own pattern is taken out of the trend."""
    if _FEWEST * period >= len(values):
        return period
    place = np.arange(len(values)) % period
    flat = values - _trend(values - _profile(flat, period)[place], period)
    near = max(1, period // 25)
    while True:  # not each of them: a long series would take the square of its length
        step = max(1, 2 * near // _MOST_TRIED)
        tried = range(max(_SHORTEST, period - near), period + near + 1, step)
        period = max(tried, key=lambda one: _agreement(flat, one))
        if step == 1:
            return period
        near = step


def _agreement(flat: Floats, period: int) -> float:
    """Return how alike all periods are: the share of variance that their mean explains, adjusted for its length."""
    place = np.arange(len(flat)) % period
    counts = np.bincount(place, minlength=period)
    off = flat - (np.bincount(place, flat, minlength=period) / np.maximum(counts, 1))[place]
    total = float(flat.var())
    left = max(len(flat) - period, 1)
    return 1 - float(off.var()) / total * len(flat) / left if total > 0 else 0.0
