"""Differences of quantiles: the interval is what brute force gives, and holds the truth as often as it says."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom, norm

from stagetrace.analysis.quantiles import (
    binned,
    difference_of,
    evidence,
    log_limit,
    needed,
    prior_size,
    quantile_difference,
)

if TYPE_CHECKING:
    from collections.abc import Callable

QUANTILES = (0.5, 0.95, 0.99)
DRAWS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal": lambda rng, size: rng.normal(100, 10, size),
    "lognormal": lambda rng, size: rng.lognormal(3, 0.5, size),
    "heavy": lambda rng, size: rng.pareto(1.5, size) + 1,
    "ties": lambda rng, size: np.round(rng.lognormal(1.5, 0.5, size)),
}


def mixture(below: int, upto: int, size: int, q: float) -> float:
    """Return the evidence by numerical integration over the prior, each half by its own count."""
    prior = beta(prior_size(q) * q, prior_size(q) * (1 - q))

    def part(count: int, low: float, high: float) -> float:
        def ratio(p: float) -> float:
            return float(prior.pdf(p) * math.exp(binom.logpmf(count, size, p) - binom.logpmf(count, size, q)))

        near = sorted({low, high, min(max(count / size, low), high), min(max(q - 0.02, low), high)})
        return sum(quad(ratio, *ends, limit=200)[0] for ends in pairwise(near))

    return math.log(part(upto, 1e-12, q) + part(below, q, 1 - 1e-12))


@pytest.mark.parametrize(
    ("below", "upto", "size", "q"),
    [(50, 50, 100, 0.5), (30, 31, 100, 0.5), (60, 75, 100, 0.5), (93, 94, 100, 0.95), (190, 200, 200, 0.95)],
)
def test_the_sequential_evidence_is_a_mixture_of_likelihood_ratios(below: int, upto: int, size: int, q: float) -> None:
    found = float(evidence([below], [upto], size, q, sequential=True)[0])
    assert found == pytest.approx(mixture(below, upto, size, q), abs=1e-5)


@pytest.mark.parametrize("q", QUANTILES)
@pytest.mark.parametrize("size", [1, 30, 1000])
def test_the_sequential_evidence_has_mean_one_where_the_value_is_the_quantile(size: int, q: float) -> None:
    """Over all counts that there can be; where ties hold more than q, the mean is less."""
    counts = np.arange(size + 1)
    ratios = evidence(counts, counts, size, q, sequential=True)
    assert np.exp(ratios + binom.logpmf(counts, size, q)).sum() == pytest.approx(1, abs=1e-8)
    tied = evidence(np.floor(counts * q / (q + 0.5 * (1 - q))), counts, size, q, sequential=True)
    assert np.exp(tied + binom.logpmf(counts, size, q + 0.5 * (1 - q))).sum() < 1


@pytest.mark.parametrize("q", [0.95, *(pytest.param(q, marks=pytest.mark.thorough) for q in (0.5, 0.99))])
def test_the_true_quantile_is_ever_ruled_out_with_the_probability_allowed(q: float) -> None:
    """Exactly, by dynamic programming over all paths of 1,500 values, looked at after each one."""
    allowed = math.log(1 / 0.05)
    alive, ruled_out = np.zeros(1501), 0.0
    alive[0] = 1
    for size in range(1, 1501):
        alive[1 : size + 1] = alive[1 : size + 1] * (1 - q) + alive[:size] * q
        alive[0] *= 1 - q
        counts = np.arange(size + 1)
        out = evidence(counts, counts, size, q, sequential=True) >= allowed
        ruled_out += alive[: size + 1][out].sum()
        alive[: size + 1][out] = 0
    assert 0.001 < ruled_out <= 0.05


def test_the_evidence_for_one_look_is_that_of_binomial_tails() -> None:
    for count in (3, 10, 24, 30):
        middle = binom.cdf(count, 30, 0.8) - binom.pmf(count, 30, 0.8) / 2
        found = float(evidence([count], [count], 30, 0.8, sequential=False)[0])
        assert found == pytest.approx(norm.ppf(middle) ** 2 / 2, rel=1e-9)


def brute(a: Any, b: Any, q: float, alpha: float, *, sequential: bool) -> tuple[float, float]:
    """Return the extremes of b / a - 1 over all pairs of values, and places between them, that are not ruled out."""

    def places(values: Any) -> tuple[Any, Any]:
        ends = np.unique(values)
        tried = np.concatenate([ends, (ends[1:] + ends[:-1]) / 2, [ends[0] - 1e-9, ends[-1] + 1e-9]])
        counts = [((values < x).sum(), (values <= x).sum()) for x in tried]
        below, upto = np.array(counts).T
        return tried, evidence(below, upto, len(values), q, sequential=sequential)

    (x, against_a), (y, against_b) = places(a), places(b)
    limits = log_limit(alpha, against_a, sequential=sequential)
    kept = np.argwhere(against_b < limits[:, None])
    ratios = [y[j] / x[i] - 1 for i, j in kept]
    open_low = any(x[i] > a.max() or y[j] < b.min() for i, j in kept)
    open_high = any(x[i] < a.min() or y[j] > b.max() for i, j in kept)
    return -math.inf if open_low else min(ratios), math.inf if open_high else max(ratios)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("kind", list(DRAWS))
def test_the_interval_is_that_of_brute_force(kind: str, sequential: bool) -> None:
    rng = np.random.default_rng([1, sequential])
    bounded = 0
    for q, sizes in ((0.5, (60, 45)), (0.8, (200, 150)), (0.9, (300, 90))):
        a, b = (DRAWS[kind](rng, size) + 1 for size in sizes)
        found = quantile_difference(a, b, q, sequential=sequential)
        wanted = brute(a, b, q, 0.05, sequential=sequential)
        open_ends = [math.isinf(end) for end in wanted]
        # Below all values of durations there are still those down to 0.
        assert [math.isinf(end) for end in found.interval] == open_ends
        assert found.interval == pytest.approx(wanted, rel=1e-6, abs=1e-7)
        bounded += not any(open_ends)
    assert bounded >= 1


@pytest.mark.parametrize("kind", list(DRAWS))
def test_looking_often_shows_no_difference_that_is_not_there(kind: str) -> None:
    """Six runs of each quantile, eleven looks from 100 to 20,000; docs/answers/compare.md has more of them."""
    false = 0
    for seed in range(6):
        rng = np.random.default_rng([2, seed])
        a, b = (DRAWS[kind](rng, 20_000) for _ in range(2))
        for q in QUANTILES:
            looks = (quantile_difference(a[:n], b[:n], q).interval for n in np.geomspace(100, 20_000, 11).astype(int))
            false += any(not low <= 0 <= high for low, high in looks)
    assert false == 0


@pytest.mark.parametrize(("q", "factor"), [(0.5, 1.05), (0.95, 1.1), (0.99, 1.3)])
def test_a_difference_that_is_there_is_found_and_lies_in_the_interval(q: float, factor: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng([3, seed])
        a, b = rng.lognormal(3, 0.5, 20_000), factor * rng.lognormal(3, 0.5, 20_000)
        low, high = quantile_difference(a, b, q).interval
        assert 0 < low <= factor - 1 <= high
        narrow = quantile_difference(a, b, q, sequential=False).interval
        assert low < narrow[0] < narrow[1] < high
        assert quantile_difference(b, a, q).interval == pytest.approx((1 / (1 + high) - 1, 1 / (1 + low) - 1))


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_one_look_misses_as_often_as_stated(kind: str) -> None:
    """300 pairs of samples: 15 misses are expected at most, and 26 or more have a chance of 0.4 % then."""
    rng = np.random.default_rng(4)
    found = [
        quantile_difference(DRAWS[kind](rng, 300), DRAWS[kind](rng, 300), q, sequential=False).interval
        for q in (0.5, 0.9)
        for _ in range(150)
    ]
    assert 1 <= sum(not low <= 0 <= high for low, high in found) <= 25


def test_unit_and_order_do_not_matter() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.lognormal(3, 0.5, 2000), rng.lognormal(3.1, 0.5, 1500)
    plain = quantile_difference(a, b, 0.95)
    other = quantile_difference(list(rng.permutation(a) * 1e6), tuple(rng.permutation(b) * 1e6), 0.95)
    assert other.interval == pytest.approx(plain.interval)
    assert other.shift == pytest.approx([1e6 * end for end in plain.shift])
    assert (plain.a, plain.b) == (np.quantile(a, 0.95), np.quantile(b, 0.95))
    assert plain.difference == pytest.approx(np.quantile(b, 0.95) / np.quantile(a, 0.95) - 1)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("q", QUANTILES)
def test_it_gives_how_many_values_are_enough(q: float, sequential: bool) -> None:
    size = needed(q, 0.05, sequential=sequential)
    rng = np.random.default_rng(6)
    found = [quantile_difference(rng.random(n), rng.random(n), q, sequential=sequential) for n in (20, size * 2)]
    assert [one.enough_data for one in found] == [size <= 20, True]
    assert {one.needed for one in found} == {size}
    exact = [np.arange(1.0, n + 1) for n in (size - 1, size)]
    assert [quantile_difference(one, one, q, sequential=sequential).enough_data for one in exact] == [False, True]


def test_without_enough_values_no_end_is_made_up() -> None:
    for a, b in (([], []), ([], [1.0]), ([1.0], []), ([1.0], [2.0]), (range(1, 50), range(1, 50))):
        found = quantile_difference(np.array(a), np.array(b), 0.99)
        assert found.interval == (-math.inf, math.inf)
        assert not found.enough_data
        assert found.needed == 924
    assert quantile_difference([], [1.0], 0.5).difference is None
    assert quantile_difference([1.0], [2.0], 0.5).difference == 1


def test_ties_and_zeros() -> None:
    """A timer may not tell most durations from each other, or from nothing."""
    same = quantile_difference([5.0] * 100, [5.0] * 100, 0.5)
    assert (same.difference, same.interval, same.shift) == (0, (0, 0), (0, 0))
    double = quantile_difference([5] * 100, [10] * 100, 0.5)
    assert (double.difference, double.interval) == (1, (1, 1))
    zeros = quantile_difference([0] * 100, [0] * 100, 0.5)
    assert (zeros.difference, zeros.interval) == (0, (0, 0))
    from_nothing = quantile_difference([0] * 100, [3] * 100, 0.5)
    assert (from_nothing.difference, from_nothing.interval) == (None, (-math.inf, math.inf))
    assert from_nothing.shift == (3, 3)
    negative = quantile_difference(np.linspace(-5, -1, 1000), np.linspace(1, 5, 1000), 0.5)
    assert (negative.difference, negative.interval) == (None, (-math.inf, math.inf))
    assert negative.shift[0] < 6 < negative.shift[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_duration_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 values of b are NaN or infinite"):
        quantile_difference([1.0], [1.0, bad, 2.0], 0.5)


@pytest.mark.parametrize(("q", "alpha"), [(0, 0.05), (1, 0.05), (0.5, 0), (0.5, 1), (math.nan, 0.05)])
def test_what_is_no_share_is_refused(q: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        quantile_difference([1.0], [1.0], q, alpha)


def in_bins(values: Any, q: float, width: float, weights: Any = None) -> Any:
    """Return values as a histogram of bins of equal ratio."""
    weights = np.ones(len(values)) if weights is None else weights
    order = np.argsort(values)
    ordered, weighed = values[order], weights[order]
    _, first = np.unique(np.floor(np.log(ordered) / width), return_index=True)
    sums, squares = (np.add.reduceat(one, first) for one in (weighed, weighed**2))
    return binned(ordered[first], ordered[np.append(first[1:], len(values)) - 1], sums, squares, q)


def test_a_histogram_gives_the_same_interval_or_a_little_more() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.lognormal(3, 0.5, 4000), rng.lognormal(3, 0.5, 3000)
    for q in QUANTILES:
        exact = quantile_difference(a, b, q)
        fine, coarse = (
            difference_of(in_bins(a, q, width), in_bins(b, q, width), 1, 1, q, 0.05, sequential=True)
            for width in (1e-9, 0.01)
        )
        assert fine.interval == pytest.approx(exact.interval)
        assert exact.interval[0] - 0.025 < coarse.interval[0] <= exact.interval[0]
        assert exact.interval[1] <= coarse.interval[1] < exact.interval[1] + 0.025


def test_weighted_values_count_as_what_they_are_worth() -> None:
    """Of equal weight: as the values; of two strata where one was sampled, the interval holds the truth."""
    rng = np.random.default_rng(8)
    values = rng.lognormal(3, 0.5, 3000)
    assert in_bins(values, 0.95, 1e-9, np.full(3000, 10.0)).size == pytest.approx(3000)
    missed = 0
    for _ in range(100):
        slow = rng.random(4000) < 0.3
        durations = np.where(slow, rng.lognormal(4, 0.3, 4000), rng.lognormal(2, 0.3, 4000))
        kept = ~slow | (rng.random(4000) < 0.25)
        weights = np.where(slow, 4.0, 1.0)[kept]
        sample = in_bins(durations[kept], 0.9, 1e-9, weights)
        whole = in_bins(rng.permutation(durations), 0.9, 1e-9)
        assert sample.size < kept.sum()
        found = difference_of(whole, sample, 1, 1, 0.9, 0.05, sequential=False)
        missed += not found.interval[0] <= 0 <= found.interval[1]
    assert missed <= 10
