"""Early stopping is LoadGen's, as LoadGen itself says; the rest against brute force and theory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import accumulate
from math import comb, inf
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from stagetrace.analysis import bench
from stagetrace.analysis.bench import (
    BROKEN,
    GENERATOR,
    KEPT,
    OUTSIDE,
    UNDECIDED,
    Found,
    Next,
    Search,
    Sends,
    Tried,
    excess,
    parts_of,
)
from stagetrace.analysis.bench_objective import Objective

if TYPE_CHECKING:
    from collections.abc import Callable

# Runs mlcommons-loadgen for real: the first `over` queries are completed after the target latency.
_LOADGEN = """
import json, pathlib, sys, tempfile, threading
import mlperf_loadgen as lg

def run(scenario, percentile, queries, over):
    folder = tempfile.mkdtemp()
    settings = lg.TestSettings()
    settings.scenario, settings.mode = getattr(lg.TestScenario, scenario), lg.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = queries
    settings.min_duration_ms, settings.server_target_qps = 0, 20000
    settings.server_target_latency_ns = 300_000_000
    settings.server_target_latency_percentile = settings.single_stream_target_latency_percentile = percentile
    seen = [0]
    def complete(id):
        lg.QuerySamplesComplete([lg.QuerySampleResponse(id, 0, 0)])
    def issue(samples):
        for one in samples:
            seen[0] += 1
            threading.Timer(0.35, complete, [one.id]).start() if seen[0] <= over else complete(one.id)
    sut, qsl = lg.ConstructSUT(issue, lambda: None), lg.ConstructQSL(8, 8, lambda x: None, lambda x: None)
    logs, out = lg.LogSettings(), lg.LogOutputSettings()
    out.outdir, out.copy_summary_to_stdout = folder, False
    logs.log_output = out
    lg.StartTestWithLogSettings(sut, qsl, settings, logs)
    return pathlib.Path(folder, "mlperf_log_summary.txt").read_text()

print(json.dumps([run(*one) for one in json.loads(sys.argv[1])]))
"""


def _number(text: str, before: str, after: str) -> int:
    return int(text.partition(before)[2].partition(after)[0])


def test_as_many_are_needed_as_loadgen_itself_asks_for() -> None:
    """LoadGen says how many more than 10 queries its Server scenario needs, with 0 and some of them over."""
    server = [("Server", 0.99, 10, 0), ("Server", 0.9, 10, 1), ("Server", 0.95, 10, 3), ("Server", 0.999, 10, 0)]
    single = [("SingleStream", 0.9, 10, 0), ("SingleStream", 0.99, 10, 0)]
    ran = subprocess.run(
        [sys.executable, "-c", _LOADGEN, json.dumps([*server, *single])], capture_output=True, text=True, check=True
    )
    summaries: list[str] = json.loads(ran.stdout.splitlines()[-1])
    for (_, percentile, queries, over), summary in zip(server, summaries, strict=False):
        more = _number(summary, "Would need to run at least ", " more")
        assert queries + more == bench.needed_queries(percentile, over=over), (percentile, over)
    for (_, percentile, _, _), summary in zip(single, summaries[len(server) :], strict=True):
        assert _number(summary, "process at least ", " queries") == bench.needed_queries(percentile, over=1)


@pytest.mark.parametrize(("percentile", "over", "needed"), [(0.99, 0, 459), (0.9, 1, 64), (0.99, 1, 662), (0.5, 0, 7)])
def test_needed_queries_of_mlperfs_documents(percentile: float, over: int, needed: int) -> None:
    assert bench.needed_queries(percentile, over=over) == needed


def _at_most(over: int, count: int, share: float) -> float:
    return sum(comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(over + 1))


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_limits_by_the_sums_of_the_binomial(percentile: float, confidence: float) -> None:
    """Every count is the least, or the most, of which the binomial's plain sum says so."""
    share = 1 - percentile
    for over in (0, 1, 2, 5):
        needed = bench.needed_queries(percentile, confidence, over)
        assert _at_most(over, needed, share) < 1 - confidence <= _at_most(over, needed - 1, share)
    for count in (1, 3, 40, 300):
        chances = [comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)]
        upto = [*accumulate(chances)]
        fine = [over for over in range(count) if upto[over] < 1 - confidence]
        assert bench.most_over(count, percentile, confidence) == max(fine, default=None)
        least = bench.least_over(count, percentile, confidence)
        assert least == count + 1 or 1 - upto[least - 1] < 1 - confidence
        assert least == 1 or 1 - upto[least - 2] >= 1 - confidence


@pytest.mark.parametrize(
    ("percentile", "confidence", "over"), [(1, 0.99, 0), (99, 0.99, 0), (0.9, 1, 0), (0.9, 0.9, -1)]
)
def test_what_is_no_percentile_is_an_error(percentile: float, confidence: float, over: int) -> None:
    with pytest.raises(ValueError, match=r"not between 0 and 1|cannot be over"):
        bench.needed_queries(percentile, confidence, over)


def test_a_verdict_is_wrong_as_seldom_as_the_confidence_states() -> None:
    """With a true share of exactly 1 %, KEPT and BROKEN are each said in 1 % of runs at most; seeded."""
    random = np.random.default_rng(5)
    verdicts = [bench.judge(1500, over, 0.99) for over in random.binomial(1500, 0.01, 4000)]
    assert 0 < verdicts.count(KEPT) <= 4000 * 0.0155  # three standard errors above 1 %
    assert 0 < verdicts.count(BROKEN) <= 4000 * 0.0155
    assert {bench.judge(1500, over, 0.99) for over in random.binomial(1500, 0.001, 200)} == {KEPT}
    assert {bench.judge(1500, over, 0.99) for over in random.binomial(1500, 0.05, 200)} == {BROKEN}


def test_the_upper_bound_of_a_quantile_holds_in_99_of_100_runs() -> None:
    random = np.random.default_rng(7)
    true = np.log(100)  # p99 of the exponential distribution
    bounds = [bench.at_most(np.sort(random.exponential(1, 700)), 0.99) for _ in range(3000)]
    below = sum(bound < true for bound in bounds if bound is not None)
    assert len(bounds) == 3000
    assert below <= 3000 * 0.0155


def _sends(latency_ms: Any, late_ms: Any = 0.0, rate: float = 100.0) -> Sends:
    latency = np.asarray(latency_ms, dtype=float)
    failures = {"timeout": int(np.isinf(latency).sum())} if np.isinf(latency).any() else {}
    return Sends(np.arange(len(latency)) / rate, latency, np.broadcast_to(late_ms, latency.shape), failures)


def test_failures_are_slower_than_any_response_and_stay_in_the_quantiles() -> None:
    step = bench.step(_sends([*np.linspace(1, 10, 95), *[inf] * 5]), 100, Objective(0.9, 20))
    assert step.failures == {"timeout": 5}
    assert step.over == 5
    assert step.quantiles_ms["p50"] == pytest.approx(np.linspace(1, 10, 95)[49])
    assert step.quantiles_ms["p95"] == pytest.approx(10)
    assert step.quantiles_ms["p99"] is None
    assert step.at_most_ms["p99"] is None
    assert step.max_ms == 10


def test_too_few_requests_are_no_valid_run_and_the_number_needed_is() -> None:
    few = bench.step(_sends([5.0] * 458), 100, Objective(0.99, 50))
    assert (few.valid, few.verdict, few.needed) == (False, UNDECIDED, 459)
    assert "459 would be enough" in few.reasons[0]
    enough = bench.step(_sends([5.0] * 459), 100, Objective(0.99, 50))
    assert (enough.valid, enough.verdict) == (True, KEPT)
    over = bench.step(_sends([5.0] * 458 + [60.0]), 100, Objective(0.99, 50))
    assert (over.valid, over.verdict, over.needed) == (False, UNDECIDED, 662)
    broken = bench.step(_sends([5.0] * 90 + [60.0] * 10), 100, Objective(0.99, 50))
    assert (broken.valid, broken.verdict) == (True, BROKEN)


def test_a_run_is_invalid_where_the_generator_itself_was_late() -> None:
    """Without an objective, where half of the p99 is lateness; below 1 ms it never matters."""
    late = np.where(np.arange(1000) % 50 == 0, 6.0, 0.0)
    assert not bench.step(_sends([11.0] * 1000, late), 100, None).valid
    assert bench.step(_sends([13.0] * 1000, late), 100, None).valid
    assert bench.step(_sends([1.0] * 1000, 0.9), 100, None).valid


def test_lateness_decides_no_verdict() -> None:
    """Kept in spite of it is kept; broken is broken only if it is so without the lateness, too."""
    objective = Objective(0.99, 50)
    slow = np.where(np.arange(1000) % 20 == 0, 56.0, 20.0)
    kept = bench.step(_sends([45.0] * 1000, 30.0), 100, objective)
    assert (kept.verdict, kept.valid, kept.is_late) == (KEPT, True, False)
    by_generator = bench.step(_sends(slow, np.where(slow > 50, 40.0, 0.0)), 100, objective)
    assert (by_generator.verdict, by_generator.valid, by_generator.is_late) == (BROKEN, False, True)
    by_server = bench.step(_sends(slow, np.where(slow > 50, 5.5, 0.0)), 100, objective)
    assert (by_server.verdict, by_server.valid) == (BROKEN, True)


def test_a_backlog_that_grows_is_no_rate_that_is_sustained() -> None:
    """At 60/s one worker of 20 ms falls behind by 0.2 s each second: all is within the limit yet, and not for long."""
    behind = bench.step(_sends(20 + 1000 * 0.2 * np.arange(120) / 60, rate=60), 60, Objective(0.5, 500))
    assert (behind.verdict, behind.is_growing, behind.valid) == (KEPT, True, False)
    assert "does not sustain this rate" in behind.reasons[0]
    random = np.random.default_rng(2)
    steady = [bench.step(_sends(random.exponential(20, 600)), 100, Objective(0.9, 100)) for _ in range(200)]
    assert sum(one.is_growing for one in steady) <= 6
    assert bench.step(_sends(20 + 400 * np.arange(600) / 600), 100, None).is_growing
    assert not bench.step(_sends(20 + 10 * np.arange(600) / 600), 100, None).is_growing


def test_the_rate_that_was_achieved_counts_until_the_last_response() -> None:
    """A server of 50/s that is sent 100/s for 1 s works for 2 s."""
    latency = [20.0 + 10 * number for number in range(100)]
    assert bench.step(_sends(latency), 100, None).achieved_rate == pytest.approx(100 / 2.0, rel=0.01)
    assert bench.step(_sends([1.0] * 100), 100, None).achieved_rate == pytest.approx(100, rel=0.01)
    assert bench.step(_sends([inf] * 10), 100, None).achieved_rate is None


def test_one_request_and_none_are_answered() -> None:
    one = bench.step(_sends([3.0]), 1, None)
    assert (one.valid, one.quantiles_ms["p50"], one.at_most_ms["p50"]) == (False, 3.0, None)
    none = bench.step(_sends([]), 1, Objective(0.99, 50))
    assert (none.valid, none.quantiles_ms["p50"], none.achieved_rate, none.late_ms) == (False, None, None, None)


# Where the excess lies.


def test_the_excess_is_that_of_the_stage_that_grew() -> None:
    random = np.random.default_rng(3)
    inference = 20 + random.random(400)
    queue = np.where(np.arange(400) % 4 == 0, 60.0, 1.0)
    latency = inference + queue + 2  # 2 ms outside
    parts = parts_of(latency, np.zeros(400), inference + queue, {"queue": queue, "inference": inference})
    found = excess(latency, parts, 50)
    assert found is not None
    assert found.over == 100
    assert next(iter(found.shares)) == "queue"
    assert found.shares["queue"] > 0.98
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.total_ms == pytest.approx((latency[latency > 50] - 50).sum())


def test_what_lies_outside_the_server_and_in_the_generator_is_distinguished() -> None:
    latency = np.r_[np.full(50, 10.0), np.full(10, 40.0), np.full(10, 100.0)]
    late = np.r_[np.zeros(60), np.full(10, 90.0)]
    server = np.full(70, 10.0)
    found = excess(latency, parts_of(latency, late, server, {"handler": server}), 20)
    assert found is not None
    assert found.shares == pytest.approx({GENERATOR: 800 / 1000, OUTSIDE: 200 / 1000})


def test_no_excess_where_nothing_is_over_or_nothing_grew() -> None:
    latency = np.full(30, 10.0)
    parts = parts_of(latency, np.zeros(30), latency, {"handler": latency})
    assert excess(latency, parts, 20) is None
    assert excess(latency, parts, 5) is None


# The search.


def _waits(rate: float, service_s: float, count: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Latencies of M/D/1: Poisson arrivals at one worker, by Lindley's recursion, summed up."""
    due = np.cumsum(random.exponential(1 / rate, count))
    served = np.arange(count) * service_s
    latency: np.ndarray[Any, Any] = np.maximum.accumulate(due - served) + served + service_s - due
    return latency


def _search(search: Search, latency_s: Callable[[float, int], Any], full: int = 1500) -> list[Tried]:
    """Search with latencies by rate and number of requests, of which 60 ms are within the limit."""
    tried: list[Tried] = []
    while (wanted := search.next_rate(tried)) is not None:
        latency = np.broadcast_to(latency_s(wanted.rate, full if wanted.full else 60), full if wanted.full else 60)
        count, over = len(latency), int((latency > 0.06).sum())
        verdict = bench.judge(count, over, search.percentile)
        sure = bench.judge_clustered(latency, over, search.percentile)
        tried.append(Tried(wanted.rate, count, over, verdict, sure, wanted.full))
        assert len(tried) < 40
    return tried


def test_the_search_closes_in_on_the_rate_at_which_the_objective_breaks() -> None:
    """A server that keeps all up to 212 requests/s and none above: the interval holds 212, and is 10 % wide."""
    search = Search(0.99, start=10)
    tried = _search(search, lambda rate, _count: 0.05 if rate <= 212 else 1.0)
    found = search.result(tried)
    assert found.low == found.rate is not None is not found.high
    assert found.rate <= 212 < found.high <= 1.1 * found.rate
    assert len(tried) <= 12


def test_the_search_goes_down_where_the_first_rate_breaks_already_and_reports_if_none_holds() -> None:
    search = Search(0.99, start=50)
    found = search.result(_search(search, lambda rate, _count: 0.05 if rate <= 7 else 1.0))
    assert found.rate is not None
    assert 6.3 <= found.rate <= 7
    never = search.result(_search(search, lambda _rate, _count: 1.0))
    assert (never.rate, never.low) == (None, None)
    assert never.high is not None


def test_the_search_ends_at_the_highest_rate_allowed() -> None:
    search = Search(0.99, start=10, most=100)
    tried = _search(search, lambda _rate, _count: 0.05)
    assert search.result(tried) == Found(100.0, 100.0, None)
    assert tried[-1].full


def test_an_undecided_rate_is_no_end_of_the_interval() -> None:
    """At 100/s just 1 % are over, which no run of this length can tell: the interval's ends lie beside it."""
    search = Search(0.99, start=100)
    tried = [Tried(100, 60, 1, UNDECIDED, UNDECIDED, full=False), Tried(200, 60, 60, BROKEN, BROKEN, full=False)]
    tried += [Tried(141, 1500, 300, BROKEN, BROKEN, full=True), Tried(119, 1500, 100, BROKEN, BROKEN, full=True)]
    tried += [Tried(109, 1500, 60, BROKEN, BROKEN, full=True), Tried(100, 1500, 14, UNDECIDED, UNDECIDED, full=True)]
    assert search.next_rate(tried) == Next(80, full=True)
    assert search.next_rate([*tried, Tried(99, 1500, 0, KEPT, KEPT, full=True, grew=True)]) is not None
    tried.append(Tried(80, 1500, 1, KEPT, KEPT, full=True))
    assert search.next_rate(tried) is None
    assert search.result(tried) == Found(100, 80, 109)


def test_slow_requests_in_clusters_count_as_fewer() -> None:
    """20 slow requests of 4,000 in one cluster are one event; scattered they are 20, and show that p99 is kept."""
    latency = np.ones(4000)
    latency[::200] = 5.0
    assert (int((latency > 2).sum()), bench.judge_clustered(latency, 20, 0.99)) == (20, KEPT)
    together = np.ones(4000)
    together[:20] = 5.0
    assert bench.judge(4000, 20, 0.99) == KEPT
    assert bench.judge_clustered(together, 20, 0.99) == UNDECIDED
    assert bench.judge_clustered(np.full(100, 5.0), 100, 0.99) == BROKEN


def test_the_interval_holds_the_true_rate_of_a_simulated_queue() -> None:
    """M/D/1, 20 ms service, p95 at most 60 ms: the true rate by a long simulation; 12 seeded searches."""
    random = np.random.default_rng(11)
    rates = np.arange(24.0, 36.0, 0.5)
    true = max(rate for rate in rates if np.quantile(_waits(rate, 0.02, 60_000, random), 0.95) <= 0.06)
    search = Search(0.95, start=5)
    inside: list[bool] = []
    for _ in range(12):
        tried = _search(search, lambda rate, count: _waits(rate, 0.02, count, random))
        found = search.result(tried)
        assert found.rate == pytest.approx(true, rel=0.3)
        inside.append(bool((found.low or 0) <= true + 0.5 and true - 0.5 <= (found.high or inf)))
    assert sum(inside) >= 11
