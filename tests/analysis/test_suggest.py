"""Suggested objectives, against the distributions that requests were drawn from, and against counting by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import binomtest, expon

from stagetrace.analysis import suggest
from stagetrace.policy.objective import Condition, Objective
from stagetrace.policy.quantities import Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DAY = 86_400 * 10**9
KEY = {"service": "shop", "method": "POST", "path": "/predict"}


class Rows:
    """Gives requests of one kind, as the reductions do: the times of each stage in ms, NaN where it is not there."""

    def __init__(
        self, stages: Mapping[str, NDArray[np.float64]], weights: NDArray[np.float64] | None = None, **key: str
    ) -> None:
        self._stages = stages
        self.whole = np.nansum(np.array(list(stages.values())), axis=0)
        self._weights = np.ones(self.whole.size) if weights is None else weights
        self._is_sampled = weights is not None
        self.key = {**KEY, **key}

    def reduce(self, name: str, by: Sequence[str] = (), **values: Any) -> list[dict[str, Any]]:
        assert tuple(by) == suggest.KEYS
        if name == "extent":
            return [{**self.key, "first_unix_nano": 0, "last_unix_nano": 2 * DAY}]
        if name == "histograms":
            more = {"sampled": self._is_sampled, "unknown": bool((self._weights == 0).any())}
            return [{**row, **more} for row in self._binned(self.whole, values["bins"])]
        assert name == "stage_histograms"
        return [
            {**row, "stage": stage}
            for stage, took in self._stages.items()
            for row in self._binned(took, values["bins"])
        ]

    def _binned(self, took: NDArray[np.float64], bins: int) -> list[dict[str, Any]]:
        is_there = ~np.isnan(took)
        took, weights = took[is_there], self._weights[is_there]
        numbers = np.floor(np.log2(np.maximum(took, 1e-300)) * bins)
        found = []
        for number in np.unique(numbers):
            of = numbers == number
            squares = float((weights[of] ** 2).sum())
            sums = {"weight": float(weights[of].sum()), "squares": squares, "stored": int(of.sum())}
            found.append({**self.key, **sums, "bin": number, "low": took[of].min(), "high": took[of].max()})
        return found


class Several:
    """The rows of several kinds of requests."""

    def __init__(self, *kinds: Rows) -> None:
        self._kinds = kinds

    def reduce(self, name: str, by: Sequence[str] = (), **values: Any) -> list[dict[str, Any]]:
        return [row for kind in self._kinds for row in kind.reduce(name, by, **values)]


def exponential(count: int, seed: int = 1, **means_ms: int) -> dict[str, NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    return {stage: random.exponential(mean, count) for stage, mean in means_ms.items()}


def the(source: Any, **options: Any) -> suggest.Suggestion:
    (found,) = suggest.ask(source, **options).suggestions
    return found


def test_the_threshold_is_one_that_the_traffic_keeps_and_a_shorter_one_is_not() -> None:
    """Counted by hand: the lower end of Clopper and Pearson's interval reaches the target there, and not before."""
    rows = Rows(exponential(5_000, queue=5, inference=40))
    found = the(rows, target=0.95)
    assert found.within_ms is not None
    lows = {}
    for step in found.steps:
        good = int((rows.whole <= step.within_ms).sum())
        lows[step.within_ms] = binomtest(good, 5_000).proportion_ci(0.95, "exact").low
        assert step.share == pytest.approx(good / 5_000, abs=0.002)
        assert step.low <= lows[step.within_ms] + 1e-12
        assert step.low == pytest.approx(lows[step.within_ms], abs=0.01)
        assert step.breaches_per_day == pytest.approx((5_000 - good) / 2, abs=5)
    assert lows[found.within_ms] >= 0.95
    assert all(low < 0.955 for ms, low in lows.items() if ms < found.within_ms)
    assert found.within_ms in {step.within_ms for step in found.steps}


@pytest.mark.thorough
def test_a_suggested_objective_is_kept_by_the_service_as_often_as_stated() -> None:
    """In 300 samples of 1,500 requests: the whole population keeps it in 97.5 % of them at least, but for chance."""
    kept = 0
    for seed in range(300):
        within_ms = the(Rows(exponential(1_500, seed, inference=30)), target=0.98).within_ms
        assert within_ms is not None
        kept += bool(expon.cdf(within_ms, scale=30) >= 0.98)
    assert binomtest(kept, 300, 0.975, "less").pvalue > 1e-3


def test_a_given_threshold_gets_the_highest_target_that_is_surely_attained() -> None:
    rows = Rows(exponential(20_000, inference=20))
    found = the(rows, within_ms=100.0)
    assert float((rows.whole <= 100).mean()) == pytest.approx(0.9933, abs=0.002)
    assert (found.within_ms, found.target) == (100.0, 0.99)
    assert the(rows, within_ms=1.0).target is None


@pytest.mark.parametrize(("target", "enough"), [(0.9, 36), (0.99, 368), (0.999, 3_688)])
def test_too_few_requests_say_how_many_would_be_enough(target: float, enough: int) -> None:
    assert suggest.needed(target) == enough
    few, many = (the(Rows({"inference": np.full(size, 10.0)}), target=target) for size in (enough - 1, enough))
    assert (few.within_ms, few.target, few.needed, few.budgets) == (None, None, enough, None)
    assert (many.within_ms, many.target) == (10.0, target)


def test_budgets_add_up_to_the_threshold_and_not_to_more() -> None:
    rows = Rows(exponential(8_000, queue=10, preprocess=8, inference=30))
    found = the(rows, target=0.99)
    assert found.within_ms is not None
    assert found.budgets is not None
    budgets = {one.stage: one.budget_ms for one in found.budgets.stages}
    assert set(budgets) == {"queue", "preprocess", "inference"}
    assert 0.98 * found.within_ms <= sum(budgets.values()) <= found.within_ms
    for one in found.budgets.stages:
        took = rows._stages[one.stage]
        assert one.kept == pytest.approx(float((took <= one.budget_ms).mean()), abs=0.003)
    assert found.budgets.level < 0.99  # that of stages whose 99th percentiles add up to more
    assert found.budgets.added_ms > 1.2 * found.budgets.observed_ms


def test_independent_stages_add_up_by_convolution() -> None:
    """As a hundred times as many requests of the same stages, drawn independently, would show."""
    means = {"queue": 10, "preprocess": 8, "inference": 30}
    found = the(Rows(exponential(20_000, **means)), target=0.99).budgets
    many = np.sum(list(exponential(1_000_000, 2, **means).values()), axis=0)
    assert found is not None
    assert found.convolved_ms == pytest.approx(np.quantile(many, 0.99), rel=0.03)
    assert found.observed_ms == pytest.approx(found.convolved_ms, rel=0.05)


def test_stages_that_are_slow_together_exceed_what_convolution_says() -> None:
    """Then the observed percentile is that of the added stages, and the answer shows both."""
    queue = exponential(20_000, queue=20)["queue"]
    found = the(Rows({"queue": queue, "inference": 2 * queue}), target=0.99).budgets
    assert found is not None
    assert found.convolved_ms is not None
    assert found.observed_ms == pytest.approx(found.added_ms, rel=0.02)
    assert found.convolved_ms < 0.9 * found.observed_ms


def test_a_stage_that_few_requests_have_counts_as_none_in_the_others() -> None:
    took = exponential(10_000, inference=20, queue=200)
    took["queue"][np.arange(10_000) % 50 != 0] = math.nan
    rows = Rows(took)
    found = the(rows, target=0.99)
    assert found.budgets is not None
    assert found.budgets.observed_ms == pytest.approx(float(np.quantile(rows.whole, 0.99)), rel=0.03)
    assert found.budgets.convolved_ms == pytest.approx(found.budgets.observed_ms, rel=0.1)


def test_a_sample_is_as_good_as_the_requests_that_it_holds() -> None:
    """Of one in ten, each stands for ten: counts are theirs, the interval is that of the sample."""
    took = exponential(1_000, inference=30)
    sampled, alone = the(Rows(took, np.full(1_000, 10.0))), the(Rows(took))
    assert (sampled.requests, sampled.effective, sampled.sample.is_estimate) == (10_000, 1_000, True)
    assert [step.low for step in sampled.steps] == [step.low for step in alone.steps]
    assert [step.breaches for step in sampled.steps] == pytest.approx([10 * step.breaches for step in alone.steps])


def test_where_the_sampling_is_unknown_nothing_is_suggested() -> None:
    found = the(Rows(exponential(5_000, inference=30), np.array([0.0] + [1.0] * 4_999)))
    assert (found.within_ms, found.steps, found.sample.is_unknown) == (None, (), True)


def test_requests_of_no_duration_are_no_error() -> None:
    found = the(Rows({"inference": np.zeros(500)}))
    assert found.within_ms is not None
    assert found.within_ms > 0


def test_the_policy_tells_services_apart_that_have_the_same_route() -> None:
    both = Several(
        Rows(exponential(2_000, inference=10)),
        Rows(exponential(1_000, inference=100), service="bank"),
        Rows({"queue": np.ones(3)}, path="/x"),
    )
    found = suggest.ask(both)
    assert [(one.service, one.path, one.within_ms is None) for one in found.suggestions] == [
        ("shop", "/predict", False),
        ("bank", "/predict", False),
        ("shop", "/x", True),
    ]
    policy = suggest.policy_of(found, Window(7 * 86_400))
    names = [one.name for one in policy.objectives]
    assert names == ["POST /predict", "POST /predict of bank"]
    assert [one.conditions for one in policy.objectives] == [
        (Condition("service.name", "shop"),),
        (Condition("service.name", "bank"),),
    ]
    first = policy.objectives[0]
    assert isinstance(first, Objective)
    assert (first.method, first.route, first.target, first.window_s) == ("POST", "/predict", 0.99, 7 * 86_400)
    assert dict(first.stages)["inference"] <= first.within_ns
