"""Attainment and burn rates, against published figures and definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from benchmarks.answers import slo as study
from scipy.stats import binom, binomtest

from stagetrace.analysis import slo
from stagetrace.analysis.attainment import Target, exact_interval, target_of
from stagetrace.policy.alert_options import SRE_WORKBOOK, AlertOptions, BurnAlert
from stagetrace.policy.objective import Calendar
from stagetrace.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY = 86_400 * 10**9
HOUR = 3600 * 10**9
MONTH = Calendar("month", "Europe/Berlin")


@pytest.mark.parametrize(
    ("objective", "target", "wanted"),
    [
        ("POST /predict within 50ms", None, Target(0.99, 28 * 86_400)),
        ("POST /predict within 50ms", "95% over 36h", Target(0.95, 36 * 3600)),
        ("predict", "99.9% over month@Europe/Berlin", Target(0.999, 31 * 86_400, calendar=MONTH)),
        ("latency of checkout", None, Target(0.99, 28 * 86_400)),
        ("latency of checkout", "most of the time", Target(0.99, 28 * 86_400, is_from_policy=False)),
        (None, None, Target(0.99, 28 * 86_400, is_from_policy=False)),
    ],
)
def test_what_an_objective_wants_is_in_its_target(objective: str | None, target: str | None, wanted: Target) -> None:
    """Whatever its name: that of a policy file is no rule."""
    assert target_of(objective, target) == wanted


def test_what_a_process_records_is_read_back() -> None:
    for rule in ("GET /a within 50ms for 99.95% over 1w", "* within 1s per_chunk 10ms over 90m", "/b within 5ms"):
        (one,) = Policy.parse(rule).objectives
        text = None if one.has_default_target else one.target_text
        assert target_of(one.name, text) == Target(one.target, one.window_s)


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    """Their own example (Biometrika 26, 1934): of 10 there are none; else scipy's, and the binomial tails it means."""
    assert exact_interval(0, 10) == pytest.approx((0.0, 0.3085), abs=5e-5)
    assert exact_interval(10, 10) == pytest.approx((0.6915, 1.0), abs=5e-5)
    for good, judged in ((1, 2), (992, 1000), (7, 9), (99_999, 100_000)):
        theirs = binomtest(good, judged).proportion_ci(0.95, "exact")
        assert exact_interval(good, judged) == pytest.approx((theirs.low, theirs.high))
        low, high = exact_interval(good, judged)
        assert binom.sf(good - 1, judged, low) == pytest.approx(0.025)
        assert binom.cdf(good, judged, high) == pytest.approx(0.025)


@pytest.mark.parametrize(("chance", "judged"), [(0.99, 100), (0.99, 1500), (0.999, 700), (0.5, 30)])
def test_the_interval_holds_the_chance_as_often_as_stated(chance: float, judged: int) -> None:
    """Summed over all counts that there can be: 95 % at least, whatever the chance."""
    held = [low <= chance <= high for low, high in (exact_interval(good, judged) for good in range(judged + 1))]
    assert sum(float(binom.pmf(good, judged, chance)) for good, is_held in enumerate(held) if is_held) >= 0.95


def test_a_sample_seldom_calls_an_objective_missed_that_is_kept() -> None:
    """The study of `benchmarks/answers/slo.py` in small."""
    found = study.sampled(0.99, 10_000, 0.1, 400, np.random.default_rng(3))
    assert 0.92 <= found["coverage"] <= 0.99
    assert found["wrongly"] <= 0.01


class Rows:
    """Gives requests, each `(age in ns, breached)`, as the reduction does."""

    def __init__(self, requests: Sequence[tuple[int, bool]], target: str, until: int, **more: Any) -> None:
        self._requests = [(until - age, breached) for age, breached in requests]
        self._rest = {"service": "s", "path": "/a", "objective": "/a within 5ms", "target": target, **more}

    def reduce(self, name: str, by: Sequence[str] = (), **values: Any) -> list[dict[str, Any]]:
        assert (name, list(by)) == ("verdicts", ["service", "path", "objective", "target"])
        bands: dict[int, list[tuple[int, bool]]] = {}
        for start, breached in self._requests:
            bands.setdefault(sum(cut <= start for cut in values["cuts"]), []).append((start, breached))
        sums = {"excluded": 0, "spread": 0, "most": 1, "sampled": False, "unknown": False, "groups": 1}
        return [
            {
                **self._rest,
                **sums,
                "band": band,
                "requests": len(of),
                "good": sum(not breached for _, breached in of),
                "breaches": sum(breached for _, breached in of),
                "stored": len(of),
                "first_unix_nano": min(start for start, _ in of),
                "last_unix_nano": max(start for start, _ in of),
            }
            for band, of in bands.items()
        ]


def one(requests: Sequence[tuple[int, bool]], target: str = "99.9% over 30d", until: int = 100 * DAY) -> slo.Objective:
    policy = replace(Policy.parse(f"/a within 5ms for {target}"), alerts=AlertOptions(min_requests=0))
    (found,) = slo.ask(Rows(requests, target, until), until, policy=policy).objectives
    return found


def test_the_alerts_of_the_workbook() -> None:
    """Its table 5-8: 2 % of the budget of 30 days in an hour are 14.4, 5 % in six hours 6, 10 % in three days 1.

    Traffic is even, one request a minute, and as many breaches as that takes.
    """
    minutes = 30 * 24 * 60
    budget = minutes * 0.001
    for share, window, factor in ((0.02, 60, 14.4), (0.05, 360, 6.0), (0.10, 3 * 1440, 1.0)):
        assert share * budget / window / 0.001 == pytest.approx(factor)
    assert {(one.factor, one.long_s) for one in SRE_WORKBOOK} == {(14.4, 3600), (6.0, 21_600), (1.0, 259_200)}
    # An outage of five minutes, now: fast alone, for the long windows have seen too little of it.
    found = one([(minute * 60 * 10**9 + 1, minute < 5) for minute in range(minutes)])
    assert found.burn["5m"] == pytest.approx((1000.0,) * 3)
    assert found.burn["1h"] == pytest.approx((1000 / 12,) * 3)
    assert {alert.factor: alert.fires for alert in found.alerts} == {14.4: True, 6.0: True, 1.0: True}
    # The same one an hour ago: the short windows are over.
    found = one([(minute * 60 * 10**9 + 1, 60 <= minute < 65) for minute in range(minutes)])
    assert {alert.factor: alert.fires for alert in found.alerts} == {14.4: False, 6.0: False, 1.0: True}
    # Without any request in a short window nothing can be said, and what cannot be told does not fire.
    found = one([(minute * 60 * 10**9 + 1, minute < 65) for minute in range(6, minutes)])
    assert {alert.factor: alert.fires for alert in found.alerts} == {14.4: None, 6.0: True, 1.0: True}


def test_a_policy_brings_its_own_alerts() -> None:
    """Its factors, its windows, and no alert where the long one has too few requests."""
    burns = (BurnAlert(2.0, 7_200, 600), BurnAlert(50.0, 1_200, 300))
    outage = [(minute * 60 * 10**9 + 1, minute < 15) for minute in range(180)]
    for least, fires in ((10, [True, True]), (50, [True, False]), (121, [False, False])):
        policy = replace(Policy.parse("/a within 5ms for 99% over 30d"), alerts=AlertOptions(burns, least))
        (found,) = slo.ask(Rows(outage, "", 100 * DAY), 100 * DAY, policy=policy).objectives
        assert [(one.factor, one.long, one.short, one.fires) for one in found.alerts] == [
            (2.0, "2h", "10m", fires[0]),
            (50.0, "20m", "5m", fires[1]),
        ]
    assert found.burn["2h"] == pytest.approx((15 / 120 / 0.01,) * 3)
    (rule,) = policy.objectives
    own = replace(rule, alerts=AlertOptions((BurnAlert(3.0, 600, 600),)))
    (found,) = slo.ask(Rows(outage, "", 100 * DAY), 100 * DAY, policy=replace(policy, objectives=(own,))).objectives
    assert [(one.factor, one.long, one.fires) for one in found.alerts] == [(3.0, "10m", True)]
    assert set(found.burn) == {*slo.BURNS, "10m"}  # not those of the alerts of others


def test_an_alert_that_can_never_fire_is_marked() -> None:
    """14.4 times 10 % is more than all requests."""
    found = one([(1, True)] * 10, "90% over 28d")
    assert {alert.factor: alert.can_fire for alert in found.alerts} == {14.4: False, 6.0: True, 1.0: True}
    assert found.alerts[0].fires is False


def test_how_long_the_budget_lasts() -> None:
    """Half of it is left, and burns at twice the rate at which it would just do."""
    late = [(1, True)] * 2 + [(1, False)] * 998
    early = [(2 * DAY, True)] * 18 + [(2 * DAY, False)] * 38_982
    found = one(early + late, "99.9% over 30d")
    assert found.budget_left == pytest.approx(0.5)
    assert found.burn["1h"] is not None
    assert found.burn["1h"].rate == pytest.approx(2)
    assert found.lasts_s == pytest.approx(0.5 * 30 * 86_400 / 2)
    assert one([(1, False)]).lasts_s is None  # nothing burns
    assert one([(2 * HOUR, True), *[(2 * HOUR, False)] * 2000]).lasts_s is None  # nor is known to
    assert one([(1, True)]).lasts_s == 0


def test_exactly_as_many_as_wanted_is_kept() -> None:
    assert one([(1, number < 1) for number in range(1000)]).missed is False
    assert one([(1, number < 2) for number in range(1000)]).missed is True
