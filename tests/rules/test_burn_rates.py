"""Recorded ratios, alerts and `stagetrace slo` equal a count by hand, over random requests of several processes."""

from __future__ import annotations

import random
from bisect import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from analysis.test_slo import Rows
from rules.promtool import INTERVAL_S, Case, evaluate
from stagetrace.analysis import slo
from stagetrace.policy.alert_options import AlertOptions, BurnAlert
from stagetrace.policy.policy import Policy
from stagetrace.rules import promql
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.burn import Alert, Counts, alerts, is_burning
from stagetrace.rules.prometheus import render

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OPTIONS = AlertOptions((BurnAlert(5, 1_800, 300), BurnAlert(2, 3_600, 300, "ticket")), min_requests=12)
POLICY = Policy(Policy.parse("/a within 5ms for 95% over 2h").objectives, alerts=OPTIONS)
(OBJECTIVE,) = POLICY.objectives
LENGTH_S = 7_200
ASKED_S = range(3_600, LENGTH_S + 1, 600)
WINDOWS_S = (300, 1_800, 3_600, 7_200)


@dataclass(frozen=True)
class Request:
    """One request: when it ended, in seconds, of which process, with which verdict and culprit."""

    at_s: float
    process: int
    verdict: str
    stage: str


def _requests(chance: random.Random) -> list[Request]:
    """Return requests of processes that start and end, in episodes of few or many breaches, or without requests."""
    found = []
    share, a_minute, process = 0.0, 10.0, 0
    for minute in range(LENGTH_S // 60):
        if chance.random() < 0.1:
            share = chance.choice([0.0, 0.0, 0.05, 0.3, 1.0])
            a_minute = chance.choice([0.0, 0.5, 3.0, 20.0])
            process += chance.random() < 0.3
        for _ in range(int(chance.expovariate(1) * a_minute)):
            at_s = 60 * minute + chance.uniform(0.001, 59.999)
            verdict = "breach" if chance.random() < share else chance.choice(["good"] * 9 + ["excluded"])
            stage = chance.choice(["queue", "inference"]) if verdict == "breach" else ""
            found.append(Request(at_s, process, verdict, stage))
    return sorted(found, key=lambda one: one.at_s)


def _series(requests: Sequence[Request]) -> dict[str, list[float | str | None]]:
    """Return the counters as they are scraped: each begins with its first request, and ends with its process."""
    ends = {one.process: one.at_s for one in requests}
    last = max(ends, default=0)
    found = {}
    for key in dict.fromkeys((one.process, one.verdict, one.stage) for one in requests):
        process, verdict, stage = key
        own = [one.at_s for one in requests if (one.process, one.verdict, one.stage) == key]  # in order
        stage_label = f', sla_breach_stage="{stage}"' if stage else ""
        name = (
            f'sla_requests_total{{job="shop/api", instance="{process}", sla_objective="{OBJECTIVE.name}"'
            f', sla_verdict="{verdict}"{stage_label}}}'
        )
        values: list[float | str | None] = []
        for scrape_s in range(0, LENGTH_S + 1, INTERVAL_S):
            count = bisect(own, scrape_s)
            gone = process != last and scrape_s >= ends[process] + INTERVAL_S
            values.append("stale" if gone else count or None)
        found[name] = values
    return found


def _counts(requests: Sequence[Request], until_s: float, window_s: float) -> Counts:
    first, last = (bisect(requests, at_s, key=lambda one: one.at_s) for at_s in (until_s - window_s, until_s))
    within = [one.verdict for one in requests[first:last]]
    return Counts(within.count("good"), within.count("breach"))


def _firing(alert: Alert, requests: Sequence[Request]) -> set[int]:
    """Return the seconds at which an alert fires, evaluated at each interval."""
    found, fires = set(), False
    for at_s in range(0, LENGTH_S + 1, INTERVAL_S):
        counts = {window: _counts(requests, at_s, window) for window in alert.windows}
        fires = is_burning(alert, counts, fires=fires)
        found |= {at_s} if fires else set()
    return found


def _case(number: int) -> Case:
    requests = _requests(random.Random(number))
    own = f'{{job="shop/api", sla_objective="{OBJECTIVE.name}"}}'
    values: dict[tuple[int, str], float | None] = {}
    for at_s in ASKED_S:
        for window_s in WINDOWS_S:
            counts = _counts(requests, at_s, window_s)
            values[at_s, f"{promql.WHOLE.ratio(window_s)}{own}"] = counts.ratio
            values[at_s, f"{promql.WHOLE.counts(window_s)}{own} > 0"] = counts.judged or None
        left = _counts(requests, at_s, OBJECTIVE.window_s).ratio
        values[at_s, promql.WHOLE.budget_left + own] = None if left is None else 1 - left / 0.05
    for alert in alerts(OBJECTIVE, OPTIONS):
        firing = _firing(alert, requests)
        for at_s in range(0, LENGTH_S + 1, 300):
            expr = f'ALERTS{{alertname="SlaErrorBudgetBurn", alertstate="firing", burn_rate="{alert.factor:g}"}}'
            values[at_s, expr] = 1 if at_s in firing else None
    return Case(f"random requests {number}", _series(requests), values)


def test_recorded_ratios_budgets_and_alerts_equal_a_count_by_hand(promtool: None, tmp_path: Path) -> None:  # noqa: ARG001
    cases = [_case(number) for number in range(5)]
    evaluate(tmp_path, render(POLICY, RulesOptions()), cases)


@pytest.mark.parametrize("number", range(5))
def test_burn_rates_of_slo_equal_those_of_alerts(number: int) -> None:
    requests = _requests(random.Random(number))
    until = 10**18
    times = [
        (round((LENGTH_S - one.at_s) * 1e9), one.verdict == "breach") for one in requests if one.verdict != "excluded"
    ]
    (found,) = slo.ask(Rows(times, "95% over 2h", until), until).objectives
    for name, length_s in slo.BURNS.items():
        ratio = _counts(requests, LENGTH_S, length_s).ratio
        shown = found.burn[name]
        assert (shown.rate if shown else None) == (
            None if ratio is None else pytest.approx(ratio / (1 - OBJECTIVE.target))
        ), name
