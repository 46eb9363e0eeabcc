"""How segments differ: counts, quantiles and tests against brute force, planted effects found, and nothing else."""

from __future__ import annotations

from math import floor, log
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import beta, fisher_exact, mannwhitneyu

from stagetrace.analysis.segments import LEAST_P99, Segments, quantile, segments

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGES = ("network_receive", "queue", "preprocess", "handler", "inference", "postprocess", "network_send", "other")


def reduced(
    names: Sequence[str | None], took: np.ndarray, breached: np.ndarray | None, most: int = 50, routes: Any = None
) -> list[dict[str, Any]]:
    """Return what the reduction gives, by brute force."""
    sizes = {name: list(names).count(name) for name in dict.fromkeys(names)}
    order = sorted(sizes, key=lambda name: (-sizes[name], name is None, name or ""))
    found: dict[Any, dict[str, Any]] = {}
    for at, name in enumerate(names):
        place = order.index(name) + 1
        place = place if place <= most else 0
        route = "/" if routes is None else f"/{routes[at]}"
        bucket = floor(log(max(took[at], 1e-3)) / log(1.02))
        row = found.setdefault(
            (place, route, bucket),
            {
                "segment": name if place else None, "place": place, "groups": len(order), "service": "s", "path": route,
                "bucket": bucket, "low_ms": np.inf, "high_ms": 0.0, "sampled": False, "unknown": False,
                **dict.fromkeys(("requests", "good", "breaches", "squares_good", "squares", "stored", "over_ms"), 0),
                **{f"{stage}_sum": 0.0 for stage in STAGES},
            },
        )  # fmt: skip
        bad = breached is not None and bool(breached[at])
        row["breaches"] += bad
        row["good"] += breached is not None and not bad
        row["squares_good"] += breached is not None and not bad
        for key in ("requests", "squares", "stored"):
            row[key] += 1
        row["over_ms"] += 5.0 * bad
        row["inference_sum"] += took[at] * 0.8
        row["preprocess_sum"] += took[at] * 0.2
        row["low_ms"], row["high_ms"] = min(row["low_ms"], took[at]), max(row["high_ms"], took[at])
    return list(found.values())


def made(seed: int, size: int = 6000, gold: float = 0.02, slower: float = 1.0) -> tuple[Segments, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    names = [str(one) for one in rng.choice([f"t{n}" for n in range(12)], size, p=rng.dirichlet(np.full(12, 4.0)))]
    is_gold = np.array([name == "t3" for name in names])
    took = rng.lognormal(3, 0.4, size) * np.where(is_gold, slower, 1)
    breached = rng.random(size) < np.where(is_gold, gold, 0.02)
    return segments(reduced(names, took, breached)), np.array(names), took, breached


def test_counts_and_quantiles_are_those_of_brute_force() -> None:
    found, names, took, breached = made(1)
    assert len(found.segments) == 12
    for one in found.segments:
        mine = names == one.segment
        assert (one.requests, one.breaches) == (mine.sum(), breached[mine].sum())
        assert one.breach_share == breached[mine].mean()
        assert one.rest_share == pytest.approx(breached[~mine].mean())
        assert one.p50_ms == pytest.approx(np.quantile(took[mine], 0.5), rel=0.015)
        assert one.p99_ms == pytest.approx(np.quantile(took[mine], 0.99), rel=0.015)
        assert one.stages == pytest.approx({"inference": 0.8, "preprocess": 0.2})
        assert one.excess_share == pytest.approx(breached[mine].sum() / breached.sum())
        low, high = one.interval or (0, 0)
        bad, good = int(breached[mine].sum()), int((~breached[mine]).sum())
        assert (low, high) == pytest.approx((beta.ppf(0.025, bad, good + 1), beta.ppf(0.975, bad + 1, good)))


def test_tests_are_those_of_scipy() -> None:
    found, names, took, breached = made(2, gold=0.1, slower=1.2)
    expected = []
    for one in found.segments:
        mine = names == one.segment
        table = np.array([[(mine & breached).sum(), (mine & ~breached).sum()],
                          [(~mine & breached).sum(), (~mine & ~breached).sum()]])  # fmt: skip
        sides = [fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
        expected.append((min(1, 2 * min(sides)), mannwhitneyu(took[mine], took[~mine]).pvalue))
    gold = next(one for one in found.segments if one.segment == "t3")
    place = found.segments.index(gold)
    assert gold.q_value is not None
    assert gold.q_value < 1e-6
    # The least of 24 p-values: Benjamini and Hochberg multiply it by no more than that.
    assert expected[place][0] <= gold.q_value <= 24.1 * expected[place][0]
    assert gold.latency_q_value is not None
    assert expected[place][1] / 3 <= gold.latency_q_value <= 60 * expected[place][1]
    assert gold.is_longer


def test_a_planted_segment_is_the_only_one_that_differs() -> None:
    found = made(3, gold=0.12)[0]
    assert [one.segment for one in found.different] == ["t3"]


@pytest.mark.parametrize(("draws", "most"), [(8, 1), pytest.param(40, 4, marks=pytest.mark.thorough)])
def test_nothing_differs_where_nothing_does(draws: int, most: int) -> None:
    false = 0
    for seed in range(draws):
        found = made(1000 + seed, 2000)[0]
        false += any(min(one.q_value or 1, one.latency_q_value or 1) <= 0.05 for one in found.segments)
    assert false <= most


def test_another_mix_of_routes_is_no_difference() -> None:
    rng = np.random.default_rng(4)
    gold = rng.random(6000) < 0.3
    slow = rng.random(6000) < np.where(gold, 0.8, 0.1)
    took = rng.lognormal(3, 0.3, 6000) * np.where(slow, 4, 1)
    breached = rng.random(6000) < np.where(slow, 0.2, 0.01)
    names: list[str | None] = ["gold" if one else "free" for one in gold]
    assert segments(reduced(names, took, breached, routes=slow)).different == ()
    assert len(segments(reduced(names, took, breached)).different) == 2


def test_a_small_segment_is_drawn_to_the_others() -> None:
    rng = np.random.default_rng(5)
    names: list[str | None] = [f"t{n}" for n in range(20) for _ in range(500)]
    shares = rng.beta(4, 96, 20)
    breached = np.concatenate([rng.random(500) < share for share in shares])
    tiny = segments(reduced([*names, *["tiny"] * 4], rng.lognormal(3, 0.3, 10_004), np.append(breached, [True] * 4)))
    one = tiny.segments[-1]
    assert (one.segment, one.breach_share) == ("tiny", 1.0)
    assert one.shrunk is not None
    assert one.shrunk < 0.3
    assert (one.p99_ms, one.needed) == (None, LEAST_P99)
    errors = [abs((one.shrunk or 0) - share) for one, share in zip(tiny.segments, shares, strict=False)]
    assert len(errors) == 20
    large = next(one for one in tiny.segments if one.segment == "t0")
    assert large.shrunk == pytest.approx(large.breach_share, rel=0.5)


def test_beyond_the_largest_all_are_one() -> None:
    rng = np.random.default_rng(6)
    names: list[str | None] = [f"t{n}" for n in rng.zipf(1.3, 3000)]
    breached = rng.random(3000) < 0.1
    found = segments(reduced(names, rng.lognormal(3, 0.3, 3000), breached, most=5))
    assert len(found.segments) == 5
    assert found.other_segments == len(set(names)) - 5
    assert found.others is not None
    assert sum(one.requests for one in found.segments) + found.others.requests == 3000
    assert sum(one.breaches for one in found.segments) + found.others.breaches == breached.sum()
    assert found.others.q_value is None


def test_unjudged_requests_are_compared_by_latency() -> None:
    rng = np.random.default_rng(7)
    names: list[str | None] = [None if one else "a" for one in rng.random(2000) < 0.3]
    took = rng.lognormal(3, 0.3, 2000) * np.where([name is None for name in names], 1.5, 1)
    found = segments(reduced(names, took, None))
    by_name = {one.segment: one for one in found.segments}
    assert by_name[None].breach_share is None
    assert by_name[None].q_value is not None
    assert (by_name[None].q_value or 0) < 1e-6
    assert by_name[None].is_longer
    assert not by_name["a"].is_longer


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_request_or_equal_ones_make_no_difference(size: int) -> None:
    found = segments(reduced(["a", "b", "c"][:size], np.full(size, 10.0), np.ones(size, bool)))
    assert found.different == ()
    assert segments([]).segments == ()


def test_quantiles_out_of_few_are_exact() -> None:
    took = np.array([3.0, 8.0, 20.0, 50.0, 51.0, 300.0])
    rows = reduced(["a"] * 6, took, None)
    for q in (0.0, 0.3, 0.5, 0.9, 1.0):
        assert quantile(rows, q) == pytest.approx(np.quantile(took, q))
