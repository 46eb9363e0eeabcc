"""When requests are to start, planned ahead: seconds from the beginning of the run, ascending."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def constant(rate: float, duration_s: float) -> NDArray[np.float64]:
    """Return starts at equal distances, the first at 0."""
    return np.arange(max(1, round(rate * duration_s))) / rate


def poisson(rate: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Return the starts of a Poisson process, the same for the same seed; at least one."""
    random = np.random.default_rng(seed)
    expected = rate * duration_s
    starts = np.cumsum(random.exponential(1 / rate, int(expected + 10 * expected**0.5 + 10)))
    return starts[: max(1, int(np.searchsorted(starts, duration_s)))]


def replayed(starts_unix_nano: Sequence[int], speed: float = 1.0) -> NDArray[np.float64]:
    """Return recorded starts as distances from the first, divided by `speed`; exact to the nanosecond."""
    ordered = np.sort(np.asarray(starts_unix_nano, dtype=np.int64))
    return (ordered - ordered[:1]) / 1e9 / speed
