"""Stage shares by percentile, against numpy over the requests themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor, log
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stagetrace import semconv
from stagetrace.analysis.bottleneck import PERCENTILES, Group, ask, needed
from stagetrace.analysis.stage_bins import NO_STAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

COLUMNS = {stage: f"{stage.replace('.', '_')}_ms" for stage in semconv.STAGES}


@dataclass
class Requests:
    """A source of requests in arrays, which does what the reductions do."""

    stages: dict[str, Floats]
    total: Floats
    weight: Floats = field(default_factory=lambda: np.ones(0))

    def __post_init__(self) -> None:
        if not len(self.weight):
            self.weight = np.ones(len(self.total))

    @classmethod
    def tiled(cls, stages: dict[str, Floats], weight: Floats | None = None) -> Requests:
        """Return requests whose stages tile them."""
        return cls(stages, np.sum(list(stages.values()), axis=0), np.ones(0) if weight is None else weight)

    @property
    def parts(self) -> dict[str | None, Floats]:
        """Return the time of each stage and that in none."""
        found: dict[str | None, Floats] = dict(self.stages.items())
        found[NO_STAGE] = np.maximum(0.0, self.total - self.staged)
        return found

    @property
    def staged(self) -> Floats:
        return np.asarray(np.sum(list(self.stages.values()), axis=0))

    @property
    def bins(self) -> NDArray[np.int64]:
        logs = [floor(log(one) * 100) if one > 0 else -100_000 if one == 0 else -100_002 for one in self.total]
        return np.array(logs)

    def reduce(self, name: str, by: Sequence[str] = (), **values: Any) -> list[dict[str, Any]]:
        assert not by
        return list({"stage_bins": self.rows, "own_stage_bins": self.own_rows}.get(name, self.quantiles)(**values))

    def rows(self, most: int) -> Iterator[dict[str, Any]]:
        bins, none, zeros = self.bins, self.parts[NO_STAGE], np.zeros(len(self.total))
        other = np.sum([took for stage, took in self.stages.items() if stage not in COLUMNS] or [zeros], axis=0)
        standard = {column: self.stages.get(stage, zeros) for stage, column in COLUMNS.items()} | {"other_ms": other}
        told = [self.weight, self.total, *standard.values()]
        for number in np.unique(bins):
            here = np.flatnonzero(bins == number)
            weight = self.weight[here]
            yield {
                "bin": int(number), "low_ms": self.total[here].min(), "high_ms": self.total[here].max(),
                "stored": len(here), "requests": weight.sum(), "squares": (weight**2).sum(),
                "least_weight": weight.min(), "most_weight": weight.max(), "sampled": False, "unknown": False,
                "overlapping": int((self.total < self.staged - 1e-3)[here].sum()),
                "no_stage_ms": (weight * none[here]).sum(),
                **{column: (weight * took[here]).sum() for column, took in standard.items()},
                "sample": [{"span_id": f"{one:x}", "told": [column[one] for column in told]} for one in here[:most]],
            }  # fmt: skip

    def own_rows(self, most: int) -> Iterator[dict[str, Any]]:
        bins = self.bins
        for stage in self.stages.keys() - COLUMNS.keys():
            for number in np.unique(bins):
                here = np.flatnonzero((bins == number) & (self.stages[stage] > 0))
                took = (self.weight * self.stages[stage])[here].sum()
                sample = [{"span_id": f"{one:x}", "ms": self.stages[stage][one]} for one in here[:most]]
                if len(here):
                    yield {"bin": int(number), "stage": stage, "ms": took, "sample": sample}

    def quantiles(self, stage: str, cut: float) -> Iterator[dict[str, Any]]:
        kept = self.total >= 0
        less = (self.total - cut * self.stages.get(stage, 0 * self.total))[kept]
        yield {"quantiles": np.quantile(less, [0.5, 0.95, 0.99]).tolist() if len(less) else None}


def exact(requests: Requests, low: float, high: float) -> dict[str | None, float]:
    """Return shares between two ranks, of the requests sorted by total: the first and the last count in part."""
    order = np.argsort(requests.total, kind="stable")
    upto = np.concatenate([[0.0], np.cumsum(requests.weight[order])])
    times = {}
    for stage, took in requests.parts.items():
        sums = np.concatenate([[0.0], np.cumsum((requests.weight * took)[order])])
        first, last = np.interp([low * upto[-1], high * upto[-1]], upto, sums)
        times[stage] = last - first
    return {stage: took / sum(times.values()) for stage, took in times.items()}


def binned(requests: Requests, low: float, high: float) -> dict[str | None, float]:
    """Return the same where within 1 % of duration requests are taken for alike, as the method does."""
    numbers, place = np.unique(requests.bins, return_inverse=True)
    weight = np.bincount(place, requests.weight, len(numbers))[place]
    means = {
        stage: np.bincount(place, requests.weight * took, len(numbers))[place] / weight
        for stage, took in requests.parts.items()
    }
    total = requests.bins.astype(float)
    alike = _Alike({stage: one for stage, one in means.items() if stage}, total, requests.weight, means)
    return exact(alike, low, high)


@dataclass
class _Alike(Requests):
    means: dict[str | None, Floats] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str | None, Floats]:
        return self.means


def shares(group: Group, percentile: str) -> dict[str | None, float]:
    return {one.stage: share for one in group.stages if (share := one.share[percentile]) is not None}


def tails(random: np.random.Generator, count: int) -> dict[str, Floats]:
    """Return stages of which `inference` makes the tail and `preprocess` the median; one is the program's own."""
    return {
        "queue": random.exponential(2.0, count),
        "preprocess": random.normal(12.0, 1.0, count),
        "inference": random.lognormal(1.5, 1.1, count),
        "tokenize": random.exponential(3.0, count) * (random.random(count) < 0.4),
    }


def made(seed: int, count: int = 6000) -> Requests:
    """Return requests sampled unevenly, some of whose time is in no stage."""
    random = np.random.default_rng(seed)
    stages = tails(random, count)
    total = np.sum(list(stages.values()), axis=0) + random.exponential(4.0, count)
    return Requests(stages, total, random.choice([1.0, 4.0, 20.0], count))


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_those_of_brute_force(seed: int) -> None:
    requests = made(seed)
    (group,) = ask(requests)
    assert group.requests == pytest.approx(requests.weight.sum())
    for percentile in PERCENTILES:
        band = group.bands[percentile]
        assert band is not None
        found = shares(group, percentile)
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
        assert found == pytest.approx(binned(requests, band.low, band.high), abs=1e-9)
        assert found == pytest.approx(exact(requests, band.low, band.high), abs=0.02)


def test_bands_are_around_their_percentiles() -> None:
    random = np.random.default_rng(3)
    (group,) = ask(Requests.tiled(tails(random, 20_000)))
    ranks = {key: (band.low, band.high) for key, band in group.bands.items() if band}
    assert ranks == {"p50": (0.45, 0.55), "p95": (0.94, 0.96), "p99": (0.985, 0.995)}
    assert [band.requests for band in group.bands.values() if band] == [2000, 400, 200]
    band = group.bands["p99"]
    total = group.total_ms["p99"]
    assert band is not None
    assert total is not None
    assert band.low_ms < total < band.high_ms


@pytest.mark.parametrize(
    ("count", "ranks"),
    [
        (2000, {"p50": (0.45, 0.55), "p95": (0.94, 0.96), "p99": (0.9825, 0.9975)}),  # 30 requests
        (600, {"p50": (0.45, 0.55), "p95": (0.925, 0.975), "p99": (0.98, 1.0)}),  # 12
        (200, {"p50": (0.425, 0.575), "p95": (0.90, 1.0), "p99": (0.95, 1.0)}),  # 10, downwards
        (199, {"p50": (0.5 - 15 / 199, 0.5 + 15 / 199), "p95": (0.90, 1.0), "p99": None}),
        (39, {"p50": (0.5 - 15 / 39, 0.5 + 15 / 39), "p95": None, "p99": None}),
        (10, {"p50": (0.0, 1.0), "p95": None, "p99": None}),
        (9, {"p50": None, "p95": None, "p99": None}),
    ],
)
def test_a_band_of_few_requests_is_widened(count: int, ranks: dict[str, tuple[float, float] | None]) -> None:
    (group,) = ask(Requests.tiled(tails(np.random.default_rng(4), count)))
    for percentile, expected in ranks.items():
        band = group.bands[percentile]
        assert (band and (band.low, band.high)) == (expected and pytest.approx(expected)), percentile
        for one in group.stages:
            assert (one.share[percentile] is None) == (one.interval[percentile] is None) == (expected is None)
            assert expected or one.what_if[percentile] is None
        assert (group.total_ms[percentile] is None) == (group.queue_share[percentile] is None) == (expected is None)


def test_the_interval_of_a_widened_band_holds_both_sides_of_its_percentile() -> None:
    """Of 300 requests nine wait: at p95 none does, but the band up to the slowest request has all of them."""
    ones, waits = np.ones(300), np.where(np.arange(300) < 9, 500.0, 0.0)
    (group,) = ask(Requests.tiled({"inference": ones, "queue": waits}))
    (queue,) = [one for one in group.stages if one.stage == "queue"]
    band, interval, share = group.bands["p95"], queue.interval["p95"], queue.share["p95"]
    assert band is not None
    assert interval is not None
    assert share is not None
    assert band.high == pytest.approx(1.0)
    assert interval[0] == 0.0
    assert 0.9 < share <= interval[1]


def test_how_many_requests_are_enough() -> None:
    assert {percentile: needed(percentile) for percentile in PERCENTILES} == {"p50": 10, "p95": 40, "p99": 200}


def test_what_a_shorter_stage_brings_is_estimated_by_the_requests_without_it() -> None:
    requests = Requests.tiled(tails(np.random.default_rng(6), 4000))
    (group,) = ask(requests)
    before = np.quantile(requests.total, [0.5, 0.95, 0.99])
    assert {one.stage for one in group.stages} == set(requests.stages)
    for one in group.stages:
        after = np.quantile(requests.total - 0.1 * requests.stages[str(one.stage)], [0.5, 0.95, 0.99])
        assert list(one.what_if.values()) == pytest.approx((1 - after / before).tolist())


def test_waiting_network_and_service_are_distinguished() -> None:
    ones = np.ones(50)
    stages = {"network.receive": ones, "queue": 2 * ones, "inference": 3 * ones, "mine": 4 * ones, "network.send": ones}
    (group,) = ask(Requests(stages, 20 * ones))
    assert [one.stage for one in group.stages][:3] == [NO_STAGE, "mine", "inference"]
    assert group.queue_share["p50"] == pytest.approx(0.1)
    assert group.network_share["p50"] == pytest.approx(0.1)
    assert group.service_share["p50"] == pytest.approx(0.35)
    assert group.share_of([NO_STAGE])["p50"] == pytest.approx(0.45)


def test_durations_that_cannot_be_are_counted_and_in_nothing_else() -> None:
    ones = np.ones(40)
    backwards = Requests({"inference": ones}, np.where(np.arange(40) < 15, -5.0, 1.0))
    (group,) = ask(backwards)
    assert (group.backwards, group.sample.rows, group.requests) == (15, 25, 25)
    assert shares(group, "p50") == {"inference": 1.0}
    (group,) = ask(Requests({"inference": ones, "queue": ones}, 1.5 * ones))
    assert group.overlapping == 40
    assert shares(group, "p50") == {"inference": 0.5, "queue": 0.5}


@pytest.mark.parametrize("total", [0.0, -1.0])
def test_where_nothing_takes_time_there_are_no_shares(total: float) -> None:
    (group,) = ask(Requests({"inference": np.zeros(200)}, np.full(200, total)))
    assert group.stages == ()
    assert group.queue_share == {"p50": None, "p95": None, "p99": None}


def test_of_no_requests_there_is_no_group() -> None:
    assert ask(Requests({"inference": np.ones(0)}, np.ones(0))) == []


def test_requests_that_are_all_alike_have_one_answer_at_each_percentile() -> None:
    (group,) = ask(Requests.tiled({"queue": np.full(500, 1.0), "inference": np.full(500, 3.0)}))
    for percentile in PERCENTILES:
        assert shares(group, percentile) == pytest.approx({"inference": 0.75, "queue": 0.25})
    assert all(interval == pytest.approx((0.75, 0.75)) for interval in group.stages[0].interval.values())


@pytest.mark.thorough
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Of 25 samples; `benchmarks/answers/bottleneck.py` does it with thousands."""
    random = np.random.default_rng(8)
    (truth,) = ask(Requests.tiled(tails(random, 100_000)))
    hits = dict.fromkeys(PERCENTILES, 0)
    for _ in range(25):
        (group,) = ask(Requests.tiled(tails(random, 3000)))
        for percentile in PERCENTILES:
            (low, high) = next(one.interval[percentile] for one in group.stages if one.stage == "inference") or (0, 0)
            hits[percentile] += low <= shares(truth, percentile)["inference"] <= high
    assert all(count >= 21 for count in hits.values()), hits
