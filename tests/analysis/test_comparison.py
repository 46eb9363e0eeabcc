"""Two sides of another mix, compared as if they had the same: against weights worked out request by request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stagetrace.analysis.comparison import Comparison, TooManyKindsError, compare


class Rows:
    """A source over requests in memory: their kind, duration, and how many each stands for."""

    def __init__(self, kinds: Any, took: Any, weights: Any = None) -> None:
        self.kinds, self.took = np.asarray(kinds), np.asarray(took, dtype=float)
        self.weights = np.ones(len(self.took)) if weights is None else np.asarray(weights, dtype=float)

    def reduce(self, name: str, by: Any = (), **values: Any) -> list[dict[str, Any]]:
        """Return rows as the SQL would; the one stage takes all of a request's time."""
        assert list(by) == ["path"]
        rows = []
        bins = np.where(self.took > 0, np.floor(np.log2(np.maximum(self.took, 1e-12)) * values["bins"]), np.nan)
        for kind in np.unique(self.kinds):
            for place in np.unique(bins[self.kinds == kind]):
                mine = (self.kinds == kind) & ((bins == place) | (np.isnan(bins) & np.isnan(place)))
                weights = self.weights[mine]
                row: dict[str, Any] = {
                    "path": str(kind),
                    "bin": None if np.isnan(place) else int(place),
                    "stored": int(mine.sum()),
                }
                row |= {"weight": float(weights.sum()), "squares": float((weights**2).sum()), "sampled": False}
                row |= {"low": float(self.took[mine].min()), "high": float(self.took[mine].max()), "unknown": False}
                if values["sizes"]:
                    row["input_size"] = None
                rows.append(row | ({"stage": "inference"} if name == "stage_histograms" else {}))
        return rows


def draw(rng: np.random.Generator, size: int, share: float, factor: float = 1.0) -> Rows:
    """Return requests of two kinds, the slow one at this share."""
    slow = rng.random(size) < share
    return Rows(
        np.where(slow, "slow", "fast"),
        factor * np.where(slow, rng.lognormal(4, 0.3, size), rng.lognormal(2, 0.3, size)),
    )


def asked(a: Rows, b: Rows, *quantiles: float, **more: Any) -> Comparison:
    return compare((a, b), quantiles, sizes=False, **more)


def test_weights_are_those_of_each_kind() -> None:
    """Reweighted by hand, request by request: the least duration with so much weight up to it."""
    rng = np.random.default_rng(1)
    a, b = draw(rng, 3000, 0.2), draw(rng, 2000, 0.6, 1.1)
    found = asked(a, b, 0.5, 0.9)
    weights = np.where(b.kinds == "slow", (a.kinds == "slow").mean() / (b.kinds == "slow").mean(), 0.0)
    weights += np.where(b.kinds == "fast", (a.kinds == "fast").mean() / (b.kinds == "fast").mean(), 0.0)
    order = np.argsort(b.took)
    upto = np.cumsum(weights[order]) / weights.sum()
    for one in found.whole.quantiles:
        q = one.adjusted.q
        assert one.adjusted.b == pytest.approx(b.took[order][np.searchsorted(upto, q)], rel=0.01)
        assert one.adjusted.a == pytest.approx(np.quantile(a.took, q), rel=2e-3)
        assert one.raw.b == pytest.approx(np.quantile(b.took, q), rel=2e-3)
    assert [one.requests for one in found.strata] == [
        (float((a.kinds == kind).sum()), float((b.kinds == kind).sum())) for kind in ("fast", "slow")
    ]
    assert [part.stage for part in found.stages] == ["inference"]
    assert found.stages[0].quantiles[0].adjusted.b == pytest.approx(found.whole.quantiles[0].adjusted.b, rel=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize("sequential", [True, False])
def test_another_mix_is_no_difference_and_a_difference_is_found_in_any_mix(sequential: bool) -> None:
    false, missed, excluded = 0, 0, 0
    for seed in range(10):
        rng = np.random.default_rng([2, seed])
        a, same = draw(rng, 1500, 0.1), draw(rng, 1500, 0.5)
        slower = draw(rng, 1500, 0.05, 1.3)
        for one in asked(a, same, 0.5, 0.8, sequential=sequential).whole.quantiles:
            false += one.is_sure
            assert one.raw.interval[0] > 0
        found = asked(a, slower, 0.5, sequential=sequential).whole.quantiles[0]
        missed += not found.is_sure
        excluded += not found.adjusted.interval[0] <= 0.3 <= found.adjusted.interval[1]
    assert false <= (0 if sequential else 3)
    assert missed == 0
    assert excluded <= (0 if sequential else 3)


def test_simpson() -> None:
    """Version b is faster for each kind of request, and slower on the whole, for it is asked for more slow ones."""
    rng = np.random.default_rng(3)
    (one,) = asked(draw(rng, 3000, 0.1), draw(rng, 3000, 0.8, 0.85), 0.5).whole.quantiles
    assert one.raw.interval[0] > 0
    assert one.adjusted.interval[1] < 0
    assert one.is_of_mix


def test_kinds_of_one_side_alone_are_excluded() -> None:
    rng = np.random.default_rng(4)
    a = Rows(["x"] * 400 + ["y"] * 100, np.concatenate([rng.lognormal(2, 0.3, 400), np.full(100, 1000.0)]))
    b = Rows(["x"] * 500, rng.lognormal(2, 0.3, 500))
    found = asked(a, b, 0.9)
    assert found.left_out == pytest.approx((0.2, 0))
    assert found.whole.quantiles[0].adjusted.a == pytest.approx(np.quantile(a.took[:400], 0.9), rel=5e-3)
    assert found.stored == (500, 500)
    apart = asked(a, Rows(["z"] * 500, b.took), 0.9)
    assert apart.whole.quantiles[0].adjusted.difference is None
    assert not apart.whole.quantiles[0].enough_data
    assert apart.left_out == (1, 1)


def test_one_kind_is_as_it_is() -> None:
    rng = np.random.default_rng(5)
    a, b = Rows(["x"] * 900, rng.lognormal(2, 0.3, 900)), Rows(["x"] * 800, rng.lognormal(2, 0.3, 800))
    (one,) = asked(a, b, 0.5).whole.quantiles
    assert one.adjusted == one.raw


@pytest.mark.parametrize("took", [[], [3.0], [-1.0, 0.0, 2.0], [5.0] * 50])
def test_few_negative_and_equal_durations(took: list[float]) -> None:
    side = Rows(["x"] * len(took), took)
    (one,) = asked(side, side, 0.5).whole.quantiles
    assert one.adjusted.a == (pytest.approx(np.quantile(took, 0.5)) if took else None)
    assert not one.is_sure
    assert one.enough_data is (len(took) == 50)


def test_too_many_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagetrace.analysis.comparison._MOST_ROWS", 50)
    side = Rows([str(n) for n in range(60)], range(1, 61))
    with pytest.raises(TooManyKindsError, match="path"):
        asked(side, side, 0.5)
