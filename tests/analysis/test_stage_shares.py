"""Shares of stages at any percentile: those of `bottleneck`, by group and over time, of a real store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from analysis.test_bottleneck import made as requests
from answers.made import MS, NOON, Made, store
from stagetrace.analysis import bottleneck, stage_bins
from stagetrace.store import open_store
from stagetrace.store.base import Relations, Selection

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTE = 60_000 * MS


@pytest.fixture(scope="module")
def relations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relations]:
    """Give 50 requests in each of four minutes, and three a minute later; a tenth of all of another route."""
    chance = np.random.default_rng(4)
    every = [
        Made(
            minute * 100 + place + 1,
            NOON + minute * MINUTE + place * 1000 * MS,
            {"queue": float(chance.exponential(5)), "inference": 10.0 * (minute + 1), "rank": 1.0},
            route="/rare" if place % 10 == 9 else "/predict",
            attributes={"number": str(minute * 100 + place)},
        )
        for minute, count in enumerate((50, 50, 50, 50, 3))
        for place in range(count)
    ]
    folder = store(tmp_path_factory.mktemp("shares") / "store", every)
    with open_store(str(folder)) as reader, reader.relations(Selection(0, 2**63 - 1)) as found:
        yield found


def test_the_whole_is_that_of_bottleneck() -> None:
    """Shares, intervals and bands; totals to within 1 %."""
    source = replace(requests(3), weight=np.ones(6000))
    (expected,) = bottleneck.ask(source)
    found = bottleneck.whole(source, list(bottleneck.PERCENTILES.values()), [0.95])
    assert found is not None
    for name, rank in bottleneck.PERCENTILES.items():
        at = found.at[rank]
        assert at is not None
        assert at.band == expected.bands[name]
        assert at.share == {one.stage: one.share[name] for one in expected.stages if one.share[name]}
        assert sum(at.share.values()) == pytest.approx(1)
        assert at.total_ms == pytest.approx(expected.total_ms[name], rel=0.01)
        sure = {one.stage: one.interval[name] for one in expected.stages}
        assert (at.interval or {}) == ({**(at.interval or {}), **sure} if name == "p95" else {})


def test_bands_narrow_towards_the_ends() -> None:
    ranks = [0.5, 0.6, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999]
    widths = [stage_bins.half_width(rank) for rank in ranks]
    assert widths == sorted(widths, reverse=True)
    assert [stage_bins.half_width(rank) for rank in (0.5, 0.95, 0.99, 0.999)] == pytest.approx(
        [0.05, 0.01, 0.005, 0.0005]
    )
    assert stage_bins.half_width(0.1) == pytest.approx(stage_bins.half_width(0.9))


def test_groups_are_the_largest(relations: Relations) -> None:
    found = bottleneck.by_key(relations, "path", 0.5, 10)
    assert [(group.key, group.requests) for group in found.groups] == [("/predict", 183), ("/rare", 20)]
    assert found.count == 2
    (largest,) = bottleneck.ask(relations, ["path"], 2)[:1]
    expected = {one.stage: one.share["p50"] for one in largest.stages}
    assert found.groups[0].shares.share == pytest.approx(
        {bottleneck.OTHERS if stage == "rank" else stage: share for stage, share in expected.items()}
    )
    cut = bottleneck.by_key(relations, "number", 0.5, 7)
    assert (len(cut.groups), cut.count) == (7, 203)


def test_a_group_of_few_requests_has_its_mean(relations: Relations) -> None:
    (large, small) = bottleneck.by_key(relations, "path", 0.95, 10).groups
    assert large.shares.rank == 0.95
    assert small.shares.rank is None
    (times,) = list(relations.select("SELECT avg(duration_ms) FROM requests WHERE route = '/rare'")[1])
    assert small.shares.total_ms == pytest.approx(times[0])


def test_each_step_has_its_own_shares(relations: Relations) -> None:
    """A window that is mostly empty is narrowed; steps without requests are none."""
    found = bottleneck.over_time(relations, 0.5, NOON - 60 * MINUTE, NOON + 60 * MINUTE)
    assert found is not None
    assert found.is_narrowed
    assert found.origin_ns <= NOON < found.origin_ns + found.width_ns
    filled = [one for one in found.buckets if one is not None]
    assert sum(one.requests for one in filled) == 203
    assert len(filled) < len(found.buckets) <= 61
    whole = bottleneck.over_time(relations, 0.5, NOON, NOON + 5 * MINUTE)
    assert whole is not None
    assert not whole.is_narrowed
    inference = [one.shares.ms("inference") for one in whole.buckets if one is not None and one.shares.share]
    assert inference == pytest.approx(sorted(inference), rel=0.05)


def test_nothing_has_no_shares(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = store(tmp_path_factory.mktemp("shares") / "empty", [])
    with open_store(str(folder)) as reader, reader.relations(Selection(0, 2**63 - 1)) as found:
        assert bottleneck.whole(found, [0.5], []) is None
        assert bottleneck.over_time(found, 0.5, 0, NOON) is None
        assert bottleneck.by_key(found, "path", 0.5, 10) == bottleneck.Groups([], 0)
