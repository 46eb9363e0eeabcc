"""The Universal Scalability Law against the literature's figures, scipy's own fit, and points that show no limit."""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from stagetrace.analysis.usl import LIMIT, USL, Fit, fit

# Cisco's benchmark of Schwartz, Practical Scalability Analysis with the Universal Scalability Law, as usl4j tests it.
CISCO = (
    *(955.16, 1878.91, 2688.01, 3548.68, 4315.54, 5130.43, 5931.37, 6531.08, 7219.8, 7867.61, 8278.71, 8646.7),
    *(9047.84, 9426.55, 9645.37, 9897.24, 10097.6, 10240.5, 10532.39, 10798.52, 11151.43, 11518.63, 11806.0),
    *(12089.37, 12075.41, 12177.29, 12211.41, 12158.93, 12155.27, 12118.04, 12140.4, 12074.39),
)
LOADS = (1, 5, 10, 15, 20, 25, 30)


def usl_of(load: Any, rate: Any) -> Fit:
    return fit(load, rate, laws=(USL,))


def usl(load: np.ndarray, scale: float, sigma: float, kappa: float) -> np.ndarray:
    made: np.ndarray = scale * load / (1 + sigma * (load - 1) + kappa * load * (load - 1))
    return made


def test_the_book_s_figures() -> None:
    """Lambda, sigma and kappa as the book and usl4j have them, to the digits given."""
    found = usl_of(range(1, 33), CISCO)
    assert found.lambda_per_s == pytest.approx(995.6486, rel=2e-4)
    assert found.sigma == pytest.approx(0.02671591, rel=2e-4)
    assert found.kappa == pytest.approx(7.690945e-4, rel=2e-4)
    assert found.knee == pytest.approx(sqrt((1 - 0.02671591) / 7.690945e-4), rel=2e-4)
    assert found.peak_per_s == pytest.approx(12341, rel=2e-4)
    assert found.identifiable


def test_seven_of_its_points() -> None:
    found = usl_of(LOADS, [CISCO[load - 1] for load in LOADS])
    assert found.knee == pytest.approx(35.5, abs=0.05)
    assert found.interval is not None
    assert found.interval.high is not None
    assert found.interval.low < 12341 < found.interval.high  # the peak of all points
    assert found.knee_interval is not None
    assert found.knee_interval.low < 35.57
    assert found.knee_interval.high is None  # seven points do not say that throughput will fall


@pytest.mark.parametrize("upto", [8, 10, 12, 16])
def test_no_peak_is_shown_from_points_well_before_it(upto: int) -> None:
    found = usl_of(range(1, upto + 1), CISCO[:upto])
    assert (found.knee, found.peak_per_s, found.interval, found.identifiable) == (None, None, None, False)
    assert f"at most {upto} in flight" in (found.reason or "")


@pytest.mark.parametrize("seed", range(6))
def test_least_squares_as_scipy_finds_them(seed: int) -> None:
    """Parameters of noisy points as scipy's, started at the truth; the order of the points does not matter."""
    chance = np.random.default_rng(seed)
    truth = (chance.uniform(5, 2000), chance.uniform(0.005, 0.3), chance.uniform(1e-4, 5e-3))
    knee = sqrt((1 - truth[1]) / truth[2])
    load = chance.permutation(np.linspace(1, 1.5 * knee, 25))
    rate = usl(load, *truth) * chance.normal(1, 0.01, len(load))
    expected, _ = curve_fit(usl, load, rate, truth, bounds=((0, 0, 0), (inf, 1, inf)), x_scale=truth, xtol=1e-12)
    found = usl_of(load, rate)
    assert (found.lambda_per_s, found.sigma, found.kappa) == pytest.approx(tuple(expected), rel=1e-3, abs=1e-5)
    assert found.knee == pytest.approx(knee, rel=0.15)
    assert found.interval is not None
    assert found.interval.high is not None
    top = float(usl(np.array([knee]), *truth)[0])
    assert found.interval.low * 0.99 < top < found.interval.high * 1.01


def test_intervals_hold_the_truth_nineteen_times_out_of_twenty() -> None:
    """Of the peak, under noise of 3 % of the greatest throughput; benchmarks/answers/capacity.py has more of them."""
    chance, held = np.random.default_rng(3), 0
    load = np.array([1, 2, 4, 6, 8, 12, 16, 20, 25, 30, 40, 50.0])
    truth = (100, 0.05, 1e-3)
    top = float(usl(np.array([sqrt(0.95 / 1e-3)]), *truth)[0])
    for _ in range(40):
        found = usl_of(load, usl(load, *truth) + chance.normal(0, 0.03 * top, len(load)))
        assert found.interval is not None
        assert found.interval.high is not None
        held += found.interval.low <= top <= found.interval.high
    assert held >= 34


@pytest.mark.parametrize("most", [4, 8, 36])
def test_linear_growth_has_no_limit(most: int) -> None:
    chance = np.random.default_rng(most)
    load = np.linspace(1, most, 12)
    for rate in (50 * load, 50 * load * chance.normal(1, 0.03, 12)):
        for found in (usl_of(load, rate), fit(load, rate)):
            assert (found.knee, found.peak_per_s, found.identifiable) == (None, None, False)
            assert "never came near a limit" in (found.reason or "")


def test_a_queue_levels_off_and_has_no_knee() -> None:
    """The M/M/1 queue, X = mu N / (1 + N), is the USL with sigma 1/2 and kappa 0: a peak that is never reached."""
    load = np.geomspace(0.2, 40, 15)
    found = usl_of(load, 50 * load / (1 + load))
    assert (found.sigma, found.kappa) == pytest.approx((0.5, 0), abs=1e-4)
    assert found.peak_per_s == pytest.approx(50, rel=1e-3)
    assert found.identifiable
    assert found.knee is None
    assert "levels off" in (found.reason or "")


def test_a_pool_is_a_limit_where_the_points_say_so() -> None:
    """Four workers of 20 ms: the USL cannot follow the bend, and would have the peak 7 % too high."""
    load = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 36.0])
    found = fit(load, np.minimum(50 * load, 200))
    assert (found.law, found.identifiable) == (LIMIT, True)
    assert (found.knee, found.peak_per_s) == pytest.approx((4, 200), rel=5e-3)
    assert (found.lambda_per_s, found.sigma, found.kappa) == (None, None, None)
    assert found.throughput([2, 400]) == pytest.approx([100, 200], rel=5e-3)


def test_the_usl_is_kept_where_both_laws_will_do() -> None:
    found = fit(LOADS, [CISCO[load - 1] for load in LOADS])
    assert (found.law, round(found.knee or 0, 1)) == (USL, 35.5)
    assert found.throughput([30]) == pytest.approx([12211], rel=2e-2)


@pytest.mark.parametrize(
    ("load", "rate", "reason"),
    [
        ([], [], "0 different loads"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], "5 different loads, at least 6"),
        ([7] * 20, [100] * 20, "1 load, at least 6"),
        ([10, 11, 12, 13, 14, 15], [1, 1, 1, 1, 1, 1], "all at one load: 10 to 15"),
        ([1, 2, 4, 8, 16, 32], [0] * 6, "nothing was completed"),
        ([nan, inf, -1, 0, 3, 4], [1, 1, 1, 1, nan, -4], "0 different loads"),
    ],
)
def test_too_little_is_reported(load: list[float], rate: list[float], reason: str) -> None:
    for found in (usl_of(load, rate), fit(load, rate)):
        assert reason in (found.reason or "")
        assert (found.law, found.knee, found.peak_per_s, found.identifiable) == (None, None, None, False)
        assert found.throughput([1, 2]) == []


def test_what_is_no_measurement_is_left_out_and_counted() -> None:
    found = usl_of([*LOADS, nan, -1, 3, 5], [*(CISCO[load - 1] for load in LOADS), 5, 5, nan, inf])
    assert found.ignored == 4
    assert found.knee == pytest.approx(35.5, abs=0.05)


def test_points_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="2 concurrencies and 1 throughputs"):
        usl_of([1, 2], [1])


def test_many_points_are_averaged_by_load() -> None:
    chance = np.random.default_rng(5)
    load = chance.uniform(1, 32, 5000)
    found = usl_of(load, usl(load, 995.6486, 0.02671591, 7.690945e-4) * chance.normal(1, 0.05, 5000))
    assert len(found.points) <= 40
    assert found.knee == pytest.approx(35.57, rel=0.05)
    assert found.peak_per_s == pytest.approx(12341, rel=0.01)
