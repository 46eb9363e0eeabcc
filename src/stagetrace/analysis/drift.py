"""Whether latency has drifted: the steps and slopes of quantiles over time, of each route, stage and model."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stagetrace.analysis.levels import levels
from stagetrace.analysis.season import without_pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DAY_NS: Final = 86_400 * 10**9
_MOST_GAPS: Final = 4  # steps for each value, beyond which times are not taken as equal steps with gaps
_OFF: Final = 0.02  # by which steps may miss a day
# What a number must be to be a time after 1973, and its unit in ns.
_UNITS: Final = ((1e17, 1), (1e14, 10**3), (1e11, 10**6), (1e8, 10**9))


def change_points(values: Sequence[float | None] | Floats, times: Sequence[Any] | None = None) -> list[int]:
    """Return the sorted indices of `values` at which a new level begins.

    None and NaN are gaps. Spikes, slopes, autocorrelated or uneven noise, and a pattern that repeats are no new level.
    `times` (as many: datetimes, ISO texts, or seconds, ms, us or ns since 1970, ascending) let a pattern of days and
    weeks be found from two of them; without, any period is found from three. A level has four values or more.
    Raise ValueError where there are not as many times as values.
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    if times is not None and len(times) != len(numbers):
        raise ValueError(f"{len(times)} times for {len(numbers)} values: there must be as many")
    numbers[~np.isfinite(numbers)] = np.nan
    known = np.flatnonzero(np.isfinite(numbers))
    if not len(known):
        return []
    places, calendar = _places(times, len(numbers))
    numbers = numbers / max(float(np.nanmax(np.abs(numbers))), 5e-324)  # so that no difference overflows
    grid = np.full(int(places[-1]) + 1, np.nan)
    grid[places[known]] = numbers[known]
    clean, _ = without_pattern(grid, calendar)
    return [int(known[start]) for start in levels(clean[places[known]]).starts]


def _places(times: Sequence[Any] | None, size: int) -> tuple[NDArray[np.int64], list[int]]:
    """Return at which equal step of time each value stands, and a day and a week in such steps, if times say so."""
    plain = np.arange(size)
    stamps = None if times is None or size < 3 else _nanoseconds(times)  # noqa: PLR2004 -- two have one step
    if stamps is None or (np.diff(stamps) <= 0).any():
        return plain, []
    step = float(np.median(np.diff(stamps)))
    places = np.rint((stamps - stamps[0]) / step).astype(np.int64)
    if (np.diff(places) <= 0).any() or places[-1] > _MOST_GAPS * size:
        return plain, []
    return places, periods_of(step)


def periods_of(step_ns: float) -> list[int]:
    """Return a day and a week in steps, where they are whole numbers of them."""
    found = [round(days * DAY_NS / step_ns) for days in (1, 7)]
    return [
        steps for steps, days in zip(found, (1, 7), strict=True) if abs(steps * step_ns / DAY_NS - days) < 0.02 * days
    ]


def _nanoseconds(times: Sequence[Any]) -> Floats | None:
    """Return times in ns since the first, or None where they cannot be told."""
    try:
        array = np.asarray(times)
        if array.dtype.kind == "M":
            array = array.astype("datetime64[ns]").astype(np.int64)
        elif array.dtype.kind not in "iuf":
            array = np.array([_seconds(time) for time in times], dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None
    first = abs(float(array[0]))
    unit = next((unit for least, unit in _UNITS if first >= least), None)
    if unit is None or not np.isfinite(array.astype(float)).all():
        return None
    return np.asarray((array - array[0]).astype(float) * unit)


def _seconds(time: Any) -> float:
    """Return the seconds since 1970 of a datetime, its ISO text, or a number."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time.replace("Z", "+00:00"))
    return float(time.timestamp() if hasattr(time, "timestamp") else time)
