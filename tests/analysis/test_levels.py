"""Where new levels begin: in published series, in made ones, and nowhere in series without any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.signal import lfilter

from stagetrace.analysis.levels import levels
from stagetrace.analysis.series import without_pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Annual flow of the Nile at Aswan, 1871 to 1970 (Durbin and Koopman 2001); it fell in 1899, by all analyses of it.
NILE = [
    *(1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140),
    *(1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969),
    *(831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759),
    *(781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890),
    *(744, 749, 838, 1050, 918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740),
]


def change_points(values: Any, calendar: Sequence[int] = ()) -> list[int]:
    """Return the places at which new levels begin, once the patterns of a calendar are taken out, as `drift` does."""
    clean, _ = without_pattern(np.asarray(values, dtype=float), calendar)
    return [int(one) for one in levels(clean).starts]


def autocorrelated(rng: np.random.Generator, size: int, rho: float) -> Floats:
    return np.asarray(lfilter([np.sqrt(1 - rho * rho)], [1, -rho], rng.standard_normal(size + 100))[100:])


def uneven(rng: np.random.Generator, size: int) -> Floats:
    return np.asarray(rng.standard_normal(size) * np.where(np.arange(size) % 100 < 50, 0.5, 1.5))


NOISES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "gaussian": lambda rng, size: rng.standard_normal(size),
    "log-normal": lambda rng, size: rng.lognormal(0, 0.5, size) / 0.6,
    "heavy tail": lambda rng, size: rng.standard_t(3, size) / 1.73,
    "autocorrelated": lambda rng, size: autocorrelated(rng, size, 0.5),
    "uneven": uneven,
    "outliers": lambda rng, size: rng.standard_normal(size) + (rng.random(size) < 0.03) * rng.uniform(8, 25, size),
    "two modes": lambda rng, size: (rng.random(size) < 0.3) * 2.0 + 0.5 * rng.standard_normal(size),
    "whole numbers": lambda rng, size: np.round(rng.standard_normal(size)),
}

# These differ most from each other.
FIRST = ("gaussian", "heavy tail", "autocorrelated")
EACH_NOISE = [*FIRST, *(pytest.param(name, marks=pytest.mark.thorough) for name in NOISES if name not in FIRST)]


def day(size: int, steps: int = 24) -> Floats:
    """Return a pattern that is slow in the afternoon."""
    return np.asarray(np.maximum(np.sin(2 * np.pi * np.arange(size) / steps), -0.3))


def test_the_nile_fell_in_1899() -> None:
    """A classic of the literature, labelled likewise in the Turing Change Point Dataset."""
    assert change_points(NILE) == [28]


@pytest.mark.parametrize("name", EACH_NOISE)
def test_few_alarms_without_change(name: str) -> None:
    """In 40 series of 250 values there are three at most: a clump looks like a level."""
    rng = np.random.default_rng(7)
    assert sum(len(change_points(NOISES[name](rng, 250))) for _ in range(40)) <= 3


@pytest.mark.parametrize("name", EACH_NOISE)
def test_steps_are_found_where_they_are(name: str) -> None:
    """Of steps by four deviations nine in ten are found, within five values, and hardly anything else."""
    rng = np.random.default_rng(8)
    found = right = 0
    for _ in range(20):
        at = sorted(int(one) for one in (rng.integers(40, 110), rng.integers(140, 210)))
        level = np.zeros(250)
        level[at[0] :] = 4
        level[at[1] :] += rng.choice([-4, 4])
        marks = change_points(level + NOISES[name](rng, 250))
        found += len(marks)
        right += sum(any(abs(mark - one) <= 5 for mark in marks) for one in at)
    assert right >= 36
    assert found - right <= 2


@pytest.mark.parametrize("shape", ["line", "curve", "knee"])
def test_slopes_are_no_steps(shape: str) -> None:
    """A slow growth has no level to begin."""
    at = np.arange(300) / 300
    growth = {"line": 15 * at, "curve": 20 * at**2, "knee": 20 * np.maximum(at - 0.4, 0)}[shape]
    rng = np.random.default_rng(9)
    assert [change_points(growth + rng.standard_normal(300)) for _ in range(10)].count([]) >= 9


def test_a_step_on_a_slope_is_a_step() -> None:
    """A jump stands out of the growth around it."""
    rng = np.random.default_rng(10)
    growth = np.arange(300) / 300 * 10 + 6 * (np.arange(300) >= 120)
    for _ in range(5):
        assert [abs(mark - 120) <= 2 for mark in change_points(growth + rng.standard_normal(300))] == [True]


def test_a_pattern_of_days_is_no_change_and_hides_none() -> None:
    """Two days are enough."""
    rng = np.random.default_rng(11)
    values = 8 * day(72) + rng.standard_normal(72)
    stepped = values + 5 * (np.arange(72) >= 45)
    assert change_points(values, [24]) == []
    assert [abs(mark - 45) <= 1 for mark in change_points(stepped, [24])] == [True]
    assert change_points(values[:50], [24]) == []
    assert without_pattern(values, [24])[1] == (24,)


def test_a_pattern_of_weeks_is_no_change() -> None:
    """Two weeks of hours: days, and slower working days."""
    rng = np.random.default_rng(12)
    hours = np.arange(24 * 7 * 3)
    values = 4 * day(len(hours)) + 4 * (hours // 24 % 7 < 5) + 0.7 * rng.standard_normal(len(hours))
    assert change_points(values, [24, 24 * 7]) == []


@pytest.mark.parametrize(
    ("values", "starts"),
    [
        ([], []),
        ([5.0], []),
        ([1.0, 1.0, 9.0], []),
        ([3.0] * 100, []),
        ([2.0] * 20 + [7.0] * 20, [20]),
        ([2] * 20 + [2, 90, 2] + [2] * 20, []),
        ([1.0, 1.1, 0.9, 1.0, 1.05] * 4 + [1e12] + [1.0, 0.95, 1.1] * 5, []),
    ],
)
def test_odd_series(values: list[float], starts: list[int]) -> None:
    """Few values, no noise at all, one spike: an answer, and the right one."""
    assert change_points(values) == starts


def test_scale_and_sign_do_not_matter() -> None:
    """Nanoseconds or days, up or down."""
    rng = np.random.default_rng(14)
    values = rng.standard_normal(120) + 3 * (np.arange(120) >= 50)
    expected = change_points(values)
    assert len(expected) == 1
    assert change_points(values * 1e9 + 1e12) == change_points(-values) == change_points(values / 1e9) == expected


def test_a_long_series() -> None:
    """Bounded windows: memory and time do not explode, and the step is found."""
    rng = np.random.default_rng(15)
    values = rng.standard_normal(100_000)
    values[40_000:] += 1
    assert [abs(mark - 40_000) < 20 for mark in change_points(values)] == [True]
