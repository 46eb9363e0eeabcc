"""What is estimated out of sampled requests comes to the truth, over every reader, and says how sure it is."""

from __future__ import annotations

import random
from dataclasses import replace
from math import isfinite
from typing import Any

import pytest

from messages import of_rows
from stagetrace.analysis.estimates import (
    OVERFLOW,
    Attainment,
    Counted,
    Sample,
    Weighed,
    attainment,
    attainment_of_both,
)
from stagetrace.analysis.routes_and_stages import ask as routes
from stagetrace.analysis.routes_and_stages import ask_stages as stages
from stagetrace.analysis.routes_and_stages import exactly
from stagetrace.store.answers import Tallier, request_of, tally
from stagetrace.store.base import Selection, SpanRow
from stagetrace.store.load import Loader

MS = 1_000_000
ESTIMATED, WHOLE = Sample(1, True, False), Sample(1, False, False)  # noqa: FBT003


def entry(
    number: int, took_ms: float, probability: float | None, *, upgraded: bool = False, limit_ms: float = 50
) -> SpanRow:
    """Return an entry span as a process records it that samples with this probability; no id may be zero."""
    breached = took_ms > limit_ms
    attributes: dict[str, Any] = {
        "http.route": "/x",
        "sla.breached": breached,
        "sla.objective": "* within 50ms",
        "ml.stage.inference.ms": took_ms / 2,
        "ml.stage.handler.ms": took_ms / 2,
        "ml.stage.mine.ms": 1.0,
    }
    attributes |= {} if probability is None else {"sla.sampling.probability": probability}
    attributes |= {"sla.upgraded": True} if upgraded else {}
    start = 10**18 + number
    end = start + round(took_ms * MS)
    return SpanRow(f"a{number:031x}", f"a{number:015x}", None, "x", "api", "SERVER", start, end, attributes)


def relations(rows: list[SpanRow]) -> Any:
    loader = Loader()
    loader.add(of_rows(rows).SerializeToString())
    return loader.select(Selection(0, 2**62), [])


def sampled(durations: list[float], probability: float, seed: int) -> list[SpanRow]:
    """Return what of these requests leaves a process that samples: all breaches, and some of the others."""
    chance = random.Random(seed)
    rows = []
    for number, took in enumerate(durations):
        kept = chance.random() < probability
        if kept or took > 50:
            rows.append(entry(number + 1, took, probability, upgraded=not kept))
    return rows


def test_11_breaches_among_400_requests_at_10_percent() -> None:
    """The case of the issue: 78.85 % were said to be kept where it was 97.25 %."""
    rows = [entry(n, 80, 0.1, upgraded=n > 1) for n in range(1, 12)] + [entry(100 + n, 10, 0.1) for n in range(39)]
    (found,) = routes(relations(rows))
    assert (found.requests, found.judged, found.breaches) == (401, 401, 11)
    assert found.sample == Sample(50, True, False)  # noqa: FBT003
    assert found.attainment is not None
    assert found.attainment.value == pytest.approx(390 / 401)
    assert 0.95 < found.attainment.low < 0.9725 < found.attainment.high < 0.99


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("draws", "off", "off_ms"), [(10, 30, 2.5), pytest.param(60, 12, 1, marks=pytest.mark.thorough)]
)
def test_estimates_are_unbiased_and_their_intervals_hold(draws: int, off: float, off_ms: float) -> None:
    durations = [10 + number * 45 / 400 for number in range(400)]
    true = sum(took <= 50 for took in durations) / 400
    breaches = sum(took > 50 for took in durations)
    counts, held, medians = [], 0, []
    for seed in range(draws):
        (found,) = routes(relations(sampled(durations, 0.2, seed)))
        assert found.breaches == breaches
        assert found.attainment is not None
        counts.append(found.requests)
        medians.append(found.p50_ms)
        held += found.attainment.low <= true <= found.attainment.high
    assert sum(counts) / len(counts) == pytest.approx(400, abs=off)
    assert held >= 0.9 * len(counts)
    assert sum(medians) / len(medians) == pytest.approx(10 + 200 * 45 / 400, abs=off_ms)


def test_quantiles_and_shares_are_by_weight() -> None:
    """As over the requests themselves, each there as often as it stands for."""
    durations = [10.0 + number % 37 for number in range(300)] + [60.0 + number for number in range(20)]
    rows = sampled(durations, 0.25, 3)
    database = relations(rows)
    population = sorted(
        took for row in rows for took in [row.duration_ns / MS] * (1 if row.attributes["sla.breached"] else 4)
    )

    def least(share: float) -> float:
        return next(took for at, took in enumerate(population, 1) if at >= share * len(population) - 1e-6)

    (route,), (group,) = routes(database), stages(database)
    assert (route.p50_ms, route.p99_ms) == (least(0.5), least(0.99))
    whole = group.whole
    assert (whole.p50_ms, whole.p95_ms, whole.p99_ms, whole.max_ms) == (least(0.5), least(0.95), least(0.99), 79.0)
    inference, mine = (one for one in group.stages if one.stage in ("inference", "mine"))
    assert (inference.count, inference.p50_ms, inference.p95_ms) == (len(population), least(0.5) / 2, least(0.95) / 2)
    assert inference.share == pytest.approx(0.5)
    assert (mine.count, mine.p99_ms) == (len(population), 1.0)
    assert mine.share == pytest.approx(len(population) / sum(population))


def test_without_sampling_nothing_is_an_estimate() -> None:
    rows = [entry(n, 80 if n < 3 else 10, None) for n in range(1, 11)]
    (route,), (group,) = routes(relations(rows)), stages(relations(rows))
    assert route.attainment == Attainment(0.8, 0.8, 0.8, is_estimate=False)
    assert route.sample == group.sample == Sample(10, False, False)  # noqa: FBT003
    assert (route.requests, group.whole.count, group.whole.p50_ms) == (10, 10, 10)


@pytest.mark.parametrize(
    "rows",
    [
        [entry(1, 10, 0.0), entry(2, 80, 0.0)],  # who decided did not say how
        [entry(1, 10, 0.5), entry(2, 10, 0.0)],  # of one of them
        [entry(1, 80, 0.0, upgraded=True)],  # nothing but breaches is ever kept
        [entry(1, 80, None, upgraded=True)],
        [entry(1, 10, None), entry(2, 80, None, upgraded=True)],  # as an older stagetrace recorded it
    ],
)
def test_where_it_is_not_known_how_they_were_sampled_no_attainment_is_given(rows: list[SpanRow]) -> None:
    (route,), (group,) = routes(relations(rows)), stages(relations(rows))
    assert route.attainment is None
    assert route.sample == group.sample == Sample(len(rows), True, True)  # noqa: FBT003


def test_a_breach_whose_probability_is_not_known_is_one_all_the_same() -> None:
    (route,) = routes(relations([entry(1, 80, 0.0, upgraded=True), entry(2, 10, 0.5)]))
    assert (route.requests, route.breaches) == (3, 1)
    assert not route.sample.is_unknown


@pytest.mark.parametrize("nonsense", [-1.0, 2.0, float("nan"), float("inf"), 1e-320, "0.5", True, 1])
def test_nonsense_is_no_probability(nonsense: Any) -> None:
    (route,) = routes(relations([entry(1, 10, nonsense)]))
    assert route.requests == 1
    is_absent = isinstance(nonsense, str) or nonsense == 1 or not isfinite(nonsense)  # of no probability's type, or 1
    assert route.attainment == (Attainment(1.0, 1.0, 1.0, is_estimate=False) if is_absent else None)
    made = request_of(entry(1, 10, nonsense))
    assert (made["weight"], made["sampling_probability"]) == (1.0, None if is_absent else 0.0)


def test_breaches_alone_leave_the_attainment_open_upwards() -> None:
    """At 10 % there may well have been good ones of which none was kept."""
    (route,) = routes(relations([entry(n, 80, 0.1) for n in range(1, 12)]))
    assert route.attainment is not None
    assert (route.attainment.value, route.attainment.low) == (0, 0)
    assert 0.7 < route.attainment.high < 0.8  # as if 37 more


@pytest.mark.parametrize("breaches", [1, 20])
@pytest.mark.parametrize(("probability", "good"), [(0.5, 40), (0.1, 30), (0.1, 400), (0.01, 2000)])
def test_the_interval_covers_the_truth_as_often_as_stated(probability: float, good: int, breaches: int) -> None:
    chance, weight, true, covered = random.Random(11), 1 / probability, good / (good + breaches), 0
    for _ in range(500):
        kept = sum(chance.random() < probability for _ in range(good))
        found = attainment(ESTIMATED, kept * weight, kept * weight * (weight - 1), weight, breaches)
        assert found is not None
        covered += found.low - 1e-9 <= true <= found.high + 1e-9
    assert covered >= 0.93 * 500


def test_without_a_breach_attainment_is_certain() -> None:
    assert attainment(ESTIMATED, 100, 900, 10, 0) == Attainment(1.0, 1.0, 1.0, is_estimate=True)
    assert attainment(WHOLE, 0, 0, 1, 0) is None


def counted(until: int, *, is_exact: bool = True, **counts: int) -> Counted:
    """Return what the service has counted of requests under `entry`'s objective that ended before `until` ms."""
    told = {("/x", "* within 50ms", verdict): count for verdict, count in counts.items()}
    return Counted("api", 0, 10**18 + until * MS, is_exact, told)


def told(row: SpanRow) -> SpanRow:
    """Return an entry span with its verdict in words."""
    verdict = "breach" if row.attributes["sla.breached"] else "good"
    return replace(row, attributes={**row.attributes, "sla.verdict": verdict})


FEW = [told(entry(n, 80, 0.1)) for n in range(11)] + [told(entry(100 + n, 10, 0.1)) for n in range(41)]


def test_what_the_service_has_counted_takes_the_place_of_the_estimate() -> None:
    database = relations(FEW)
    found = routes(database)
    (exact,) = exactly(database, found, [counted(1000, good=389, breach=11)])
    assert (exact.requests, exact.judged, exact.breaches) == (400, 400, 11)
    assert exact.attainment == Attainment(0.9725, 0.9725, 0.9725, is_estimate=False)
    assert exact.sample == Sample(52, is_estimate=False, is_unknown=False, is_counted=True)
    assert (exact.p50_ms, exact.max_ms) == (found[0].p50_ms, found[0].max_ms)
    (vague,) = exactly(database, found, [counted(1000, is_exact=False, good=389, breach=11)])
    assert vague.sample.is_estimate


def test_what_was_not_sampled_stays_as_it_is_stored() -> None:
    """Beside counts that end before the newest requests, a service without a sampler once had `~` on the board."""
    rows = [told(entry(n, 80, None)) for n in range(11)] + [told(entry(100 + n, 10, None)) for n in range(41)]
    database = relations(rows)
    (found,) = exactly(database, routes(database), [counted(50, good=389)])
    assert (found.requests, found.sample.is_estimate) == (52, False)


def test_what_came_after_the_last_count_is_estimated_on_top() -> None:
    database = relations(FEW)
    (found,) = exactly(database, routes(database), [counted(50, good=389)])
    assert (found.requests, found.breaches) == (400, 11)  # the breaches ended later
    assert found.sample.is_estimate
    (later,) = exactly(database, routes(database), [counted(5, good=100, breach=0)])
    assert (later.requests, later.breaches) == (100 + 410 + 11, 11)
    assert later.attainment is not None
    assert later.attainment.low < later.attainment.value < later.attainment.high


def replace_key(count: Counted, key: tuple[str, str]) -> Counted:
    return count._replace(counts={(*key, verdict): number for (_, _, verdict), number in count.counts.items()})


def beyond(count: Counted) -> Counted:
    """Return counts some of which are beyond a limit, so that it is not known of which route they are."""
    return count._replace(counts={**count.counts, (OVERFLOW, "* within 50ms", "good"): 1})


@pytest.mark.parametrize(
    "count",
    [
        counted(1000, good=389, breach=10),  # fewer breaches than there are: some process has not counted
        counted(1000, good=10, breach=11),
        replace_key(counted(1000, good=389, breach=11), ("/y", "* within 50ms")),
        replace_key(counted(1000, good=389, breach=11), ("/x", "* within 60ms")),
        counted(1000, good=389, breach=11)._replace(service="other"),
        beyond(counted(1000, good=389, breach=11)),
    ],
)
def test_counts_that_cannot_be_these_are_left(count: Counted) -> None:
    database = relations(FEW)
    assert exactly(database, routes(database), [count]) == routes(database)


def test_what_has_two_models_is_not_distinguished_by_counts() -> None:
    rows = [told(entry(n, 10, 0.1)) for n in range(4)]
    rows = [replace(row, attributes={**row.attributes, "ml.model.name": f"m{n % 2}"}) for n, row in enumerate(rows)]
    database = relations(rows)
    assert exactly(database, routes(database), [counted(1000, good=100)]) == routes(database)


@pytest.mark.parametrize(
    "rows",
    [
        sampled([10.0 + number * 45 / 400 for number in range(400)], 0.2, 5),
        [entry(1, 10, 0.0), entry(2, 80, 0.0)],
        [entry(1, 80, 0.0, upgraded=True), entry(2, 10, 0.5)],
        [entry(1, 80, None, upgraded=True), entry(2, 10, None)],
        [entry(1, 10, None), entry(2, 80, None)],
        [entry(1, 10, 7.0), entry(2, 10, 1.0)],
    ],
)
def test_a_tally_is_by_weight_whether_by_sql_or_not(rows: list[SpanRow]) -> None:
    """As `watch` has it."""
    (route,) = routes(relations(rows))
    wanted = Selection(0, 2**62)
    tallier = Tallier(wanted)
    for row in rows:
        tallier.offer(row)
    for found in (tally(relations(rows), wanted), tallier.tally()):
        assert (found.requests, found.judged, found.missed) == (route.requests, route.judged, route.breaches)
        assert found.sample == route.sample


@pytest.mark.parametrize(("probability", "late"), [(0.1, 0.02), (0.02, 0.002), (0.3, 0.3)])
def test_the_interval_holds_where_breaches_were_sampled_too(probability: float, late: float) -> None:
    """As of a stricter policy, which finds them among requests that were kept by chance: in 95 % of cases at least."""
    chance = random.Random(11)
    held, requests, kept = 0, 4_000, 30
    weight = 1 / probability
    for _ in range(400):
        breaches = sum(chance.random() < late for _ in range(requests))
        seen = [sum(chance.random() < probability for _ in range(count)) for count in (requests - breaches, breaches)]
        good, bad = (Weighed(count * weight, count * weight * (weight - 1)) for count in seen)
        found = attainment_of_both(good, bad, kept, weight)
        assert found is not None
        held += found.low <= (requests - breaches) / (requests + kept) <= found.high
    assert held >= 380
    assert attainment_of_both(Weighed(), Weighed(), 0, weight) is None
