"""Our exponential histograms hold what the official SDK's do, in C and in Python."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from stagetrace.request.request import NO_STAGES, Request
from stagetrace.sla import verdict_counter
from stagetrace.sla.verdict_counter import EXEMPLARS, MAX_BUCKETS, MAX_SCALE, Collected

pytestmark = pytest.mark.native

START = 10**18
GOOD, BREACH = False, True
TIMES = st.one_of(
    st.integers(0, 2**63 - 1),
    st.integers(1, 10_000_000_000),
    st.integers(950_000_000, 1_050_000_000),
    st.integers(0, 62).map(lambda power: 2**power),
    st.sampled_from([0, 500_000_000, 1_000_000_000, 250_000_000, 125_000_000]),
)


def kinds(name: str) -> list[Any]:
    """Return the implementations of one of the classes."""
    found = [getattr(verdict_counter, name), getattr(verdict_counter, f"_{name}")]
    return list(dict.fromkeys(found))


def official(times: list[int]) -> Any:
    """Return the data point of the official SDK for these times."""
    reader = InMemoryMetricReader()
    view = View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation(MAX_BUCKETS, MAX_SCALE))
    provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
    histogram = provider.get_meter("test").create_histogram("times")
    for took in times:
        histogram.record(took / 1e9)
    data = reader.get_metrics_data()
    assert data is not None
    return data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]


def buckets(first: int, counts: Any, by: int) -> Counter[int]:
    found: Counter[int] = Counter()
    for place, count in enumerate(counts):
        if count:
            found[(first + place) >> by] += count
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=400))
@example([1, 2**63 - 1])
@example([2**number for number in range(63)])
@example([1_000_000_000 + number for number in range(400)])
def test_each_bucket_counts_what_that_of_the_official_sdk_counts(times: list[int]) -> None:
    expected = official(times)
    for kind in kinds("Histogram"):
        histogram = kind()
        for took in times:
            histogram.add(took, None, GOOD)
        found = Collected(*histogram.collect())
        assert len(found.buckets) <= MAX_BUCKETS
        assert (found.number, found.zeros, found.sum) == (expected.count, expected.zero_count, expected.sum)
        assert (found.least, found.most) == (expected.min, expected.max)
        if any(times):  # of zeros alone the official SDK has the scale 0
            assert found.scale == expected.scale
            official_buckets = buckets(expected.positive.offset, expected.positive.bucket_counts, 0)
            assert buckets(found.first, found.buckets, 0) == official_buckets


@pytest.mark.parametrize("kind", kinds("Histogram"))
def test_exemplars_are_few_the_preferred_before_the_slow_and_new_ones_before_those_collected(kind: Any) -> None:
    histogram = kind()
    for number in range(100):
        histogram.add(number, ("good", number), GOOD)
    histogram.add(1, ("breach", 1), BREACH)
    histogram.add(2, None, BREACH)
    kept = Collected(*histogram.collect()).exemplars
    assert sorted(trace for _, _, trace in kept) == [("breach", 1), *(("good", number) for number in (97, 98, 99))]
    assert len(kept) == EXEMPLARS
    histogram.add(3, ("good", 3), GOOD)
    traces = {trace for _, _, trace in Collected(*histogram.collect()).exemplars}
    assert traces == {("breach", 1), ("good", 3), ("good", 98), ("good", 99)}
    for number in range(4, 9):
        histogram.add(number, ("good", number), GOOD)
    traces = {trace for _, _, trace in Collected(*histogram.collect()).exemplars}
    assert traces == {("good", number) for number in range(5, 9)}


@pytest.mark.parametrize("kind", kinds("Series"))
def test_a_series_counts_and_returns_the_stages_that_have_no_histogram(kind: Any) -> None:
    (histogram,) = {one for one in kinds("Histogram") if one.__module__ == kind.__module__}
    whole, inference = histogram(), histogram()
    series = kind(whole, {"inference": inference}, BREACH)
    record = Request(start=START)
    record.enter("inference", at=START + 100)
    record.leave("inference", at=START + 400)
    stages = record.close(START, START + 1_000)
    assert series.add(1_000, stages, (1, 2)) == {"preprocess": 100, "postprocess": 600}
    assert series.add(1_000, NO_STAGES, None) is None
    assert series.add(None, stages, None) is None
    assert series.count == 3
    found = Collected(*whole.collect())
    assert (found.number, [one[2] for one in found.exemplars]) == (2, [(1, 2)])
    assert Collected(*inference.collect()).sum == 300 / 1e9
    assert kind(None, None, GOOD).add(5, stages, None) is None


@pytest.mark.parametrize("kind", kinds("Series"))
def test_no_request_is_lost_or_counted_twice_among_threads(kind: Any) -> None:
    (histogram,) = {one for one in kinds("Histogram") if one.__module__ == kind.__module__}
    whole = histogram()
    series = kind(whole, {}, GOOD)
    threads = [
        threading.Thread(target=lambda: [series.add(number, NO_STAGES, (number,)) for number in range(5_000)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        whole.collect()
    assert series.count == Collected(*whole.collect()).number == 40_000


@pytest.mark.parametrize(
    "arguments", [(), (1,), (1, None), ("1", NO_STAGES, None), (2**64, NO_STAGES, None), (1, 2, 3)]
)
def test_what_is_no_request_raises_and_breaks_nothing(arguments: tuple[Any, ...]) -> None:
    histogram = verdict_counter.Histogram()
    series = verdict_counter.Series(histogram, {}, GOOD)
    with pytest.raises((TypeError, OverflowError, AttributeError)):
        series.add(*arguments)
    series.add(1, NO_STAGES, None)
    assert Collected(*histogram.collect()).sum >= 1e-9
