"""The generated rules, evaluated by the real promtool: which alerts fire, which do not, and what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rules import policies
from rules.policies import policy
from rules.promtool import INTERVAL_S, Case, check, evaluate, run_tests
from stagetrace.page.app import target
from stagetrace.policy.alert_options import BurnAlert, changed
from stagetrace.policy.objective import CALENDAR, Calendar, Condition, Objective
from stagetrace.rules import prometheus, promql
from stagetrace.rules.base import RulesOptions, yaml_of
from stagetrace.rules.formats import FORMATS
from stagetrace.rules.prometheus import breaches_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stagetrace.policy.policy import Policy

PREDICT = Objective("predict", "POST", "/predict", 250_000_000, 0.99, 28 * 86_400)
STRICT = replace(PREDICT, name="strict", target=1.0)
QUICK = BurnAlert(10, 1_800, 300)
BURN, NO_DATA = "SlaErrorBudgetBurn", "SlaNoData"
HOSTILE = 'a "b" \\ {{ $labels.job }} {c="d"}\té\U0001f600 $value %s #\': *'

pytestmark = pytest.mark.usefixtures("promtool")


def counter(verdict: str, name: str = "predict", job: str = "churn-api", **labels: str) -> str:
    """Return the name of a series."""
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    more = "".join(f', {key}="{value}"' for key, value in labels.items())
    return f'sla_requests_total{{job="{job}", sla_objective="{quoted}", sla_verdict="{verdict}"{more}}}'


def counted(*parts: tuple[int, float], interval_s: int = INTERVAL_S) -> list[float | str | None]:
    """Return the values of a counter that goes for so many minutes at so many requests a minute each."""
    values = [0.0]
    for minutes, a_minute in parts:
        last = values[-1]
        values += [last + a_minute * (step + 1) * interval_s / 60 for step in range(minutes * 60 // interval_s)]
    return list(values)


def evaluated(tmp_path: Path, rules: Policy, *cases: Case, **options: Any) -> None:
    """Evaluate the rules of a policy over the series of each case."""
    evaluate(tmp_path, prometheus.render(rules, RulesOptions(**options)), cases)


def firing(
    name: str, at_minutes: Sequence[int], silent: Sequence[int] = (), by: str = ""
) -> dict[tuple[int, str], float | None]:
    """Return that one alert of a name fires at some minutes, and none at others."""
    expr = f'ALERTS{{alertname="{name}", alertstate="firing"{by}}}'
    return {(60 * at, expr): 1 for at in at_minutes} | {(60 * at, expr): None for at in silent}


def test_an_alert_fires_in_both_windows_tells_what_is_wrong_and_resolves(tmp_path: Path) -> None:
    rules = policy(
        replace(PREDICT, description="{{ all }} of them"),
        burns=(QUICK,),
        labels=(("team", "{{ml}}"),),
        runbook="https://wiki.example.com/predict",
        traces="http://127.0.0.1:16686",
    )
    labels = {
        "job": "shop/churn-api",
        "sla_objective": "predict",
        "service": "shop/churn-api",
        "severity": "page",
        "burn_rate": "10",
        "long_window": "30m",
        "short_window": "5m",
        "team": "{{ml}}",
    }
    annotations = {
        "summary": "shop/churn-api: 16.67% of the requests in 30m missed predict; 1% may (99% over 28d)",
        "description": (
            "Over 30m and over 5m more than 10% of the requests missed the objective. At that rate, 10 times what the"
            " objective allows, its whole error budget is spent within 2d19h12m."
        ),
        "objective_description": "{{ all }} of them",
        "runbook_url": "https://wiki.example.com/predict",
        "traces": (
            "http://127.0.0.1:16686/search?service=churn-api&tags=%7B%22sla.breached%22%3A%22true%22%2C%22"
            "sla.objective%22%3A%22predict%22%7D&lookback=1h"
        ),
    }
    series = {
        counter("good", job="shop/churn-api"): counted((40, 10), (5, 0), (30, 10)),
        counter("breach", job="shop/churn-api"): counted((40, 0), (5, 10), (30, 0)),
    }
    case = Case(
        "an outage of five minutes",
        series,
        firing(BURN, [44, 45, 48], [30, 40, 42, 50, 60]),
        {(45 * 60, BURN): [(labels, annotations)], (50 * 60, BURN): []},
    )
    evaluated(tmp_path, rules, case)


def test_one_window_alone_few_requests_and_excluded_ones_raise_no_alert(tmp_path: Path) -> None:
    never = firing(BURN, [], [10, 30, 40, 42, 50, 60, 70])
    cases = [
        Case(
            "short alone",
            {counter("good"): counted((70, 100)), counter("breach"): counted((40, 0), (2, 100), (28, 0))},
            never,
        ),
        Case("few requests", {counter("breach"): counted((1, 4), (69, 0.15))}, never),
        Case("excluded", {counter("good"): counted((70, 1)), counter("excluded"): counted((70, 100))}, never),
        Case("others", {counter("breach", "other"): counted((70, 100))}, never),
    ]
    evaluated(tmp_path, policy(PREDICT, burns=(QUICK,)), *cases)


def test_an_alert_stays_while_no_request_shows_that_the_fault_is_over(tmp_path: Path) -> None:
    """For as long as the long window has one: no value becomes NaN or 0 by a lack of requests. Silence is an alert."""
    rules = policy(PREDICT, burns=(QUICK,), no_data_s=600)
    gone = [*counted((40, 10)), *["stale"] * (50 * 60 // INTERVAL_S)]
    short = f'{promql.WHOLE.ratio(300)}{{sla_objective="predict"}}'
    cases = [
        Case(
            "the counter stands still",
            {counter("breach"): counted((40, 10), (50, 0))},
            {
                **firing(BURN, [39, 50, 60, 69], [70, 80]),
                **firing(NO_DATA, [50, 60, 80], [39, 49]),
                (44 * 60, short): 1.0,
                (46 * 60, short): None,
            },
        ),
        Case(
            "the process is gone",
            {counter("breach"): gone},
            firing(BURN, [39, 50, 60, 69], [70, 80]) | firing(NO_DATA, [50, 60, 80], [39, 49]),
        ),
        Case("nothing ever came", {"up": [1.0] * 200}, firing(NO_DATA, [6, 80], [0, 4])),
        Case(
            "it is over, and then silence",
            {counter("good"): counted((40, 0), (30, 10), (20, 0)), counter("breach"): counted((40, 10), (50, 0))},
            firing(BURN, [39, 41], [50, 75]),
        ),
    ]
    evaluated(tmp_path, rules, *cases)


def test_counters_may_be_reset_and_begin_at_any_number(tmp_path: Path) -> None:
    """Prometheus' `increase` is what counts over a reset; the first value of a new series is counted whole."""
    ratio = f'{promql.WHOLE.ratio(1_800)}{{sla_objective="predict"}}'
    reset = [*counted((30, 10)), *counted((40, 20))]
    cases = [
        Case(
            "a restart under the same name",
            {counter("good"): reset, counter("breach"): [value and float(value) / 9 for value in reset]},
            {(minute * 60, ratio): 0.1 for minute in (10, 29, 31, 45, 70)}
            # 490 good ones and 54 breaches, extrapolated. The difference of the ends is 211.
            | {(50 * 60, f"abs(sum({promql.WHOLE.counts(1_800)}) - 544) < bool 20"): 1.0},
        ),
        Case(
            "a first breach of a stage",
            {counter("good"): counted((70, 10)), counter("breach", sla_breach_stage="queue"): [None] * 120 + [3] * 40},
            {
                (61 * 60, ratio): 3 / 303,
                (61 * 60, f"{promql.WHOLE.ratio(300)} > 0"): 3 / 53,
                (66 * 60, f"{promql.WHOLE.ratio(300)} > 0"): None,
            },
        ),
    ]
    evaluated(tmp_path, policy(PREDICT, burns=(QUICK,)), *cases)


def test_an_objective_of_all_requests_alerts_on_any_breach(tmp_path: Path) -> None:
    breach: list[float | str | None] = [*[None] * 60, *[1.0] * 60]
    series = {counter("good", "strict"): counted((60, 100)), counter("breach", "strict"): breach}
    case = Case(
        "one breach", series, firing("SlaBreach", [30, 34], [29, 35, 60]) | {(1_800, promql.WHOLE.budget_left): None}
    )
    evaluated(tmp_path, policy(STRICT), case)


def test_each_segment_and_all_together_have_alerts_of_their_own(tmp_path: Path) -> None:
    rules = policy(replace(PREDICT, segment_by=("tenant.tier",)), burns=(QUICK,))
    series = {
        counter("good", sla_segment="free"): counted((60, 200)),
        counter("good", sla_segment="gold"): counted((40, 1), (20, 0)),
        counter("breach", sla_segment="gold"): counted((40, 0), (20, 1)),
    }
    gold = firing("SlaSegmentErrorBudgetBurn", [50, 59], [40], ', sla_segment="gold"')
    others = firing("SlaSegmentErrorBudgetBurn", [], [50, 59], ', sla_segment!="gold"')
    left = {(3_600, f'{promql.SEGMENTS.budget_left}{{sla_segment="gold"}}'): 1 - 20 / 60 / 0.01}
    evaluated(tmp_path, rules, Case("gold", series, gold | others | left | firing(BURN, [], [50, 59])))


def test_the_month_of_a_time_zone_begins_there(tmp_path: Path) -> None:
    """In Berlin, October ends at 23:00 UTC. What was scraped five minutes before counts in November, and no more."""
    rules = policy(replace(PREDICT, calendar=Calendar("month", "Europe/Berlin"), window_s=31 * 86_400), burns=())
    series = {
        counter("good"): counted((180, 10), interval_s=300),
        counter("breach"): counted((60, 10), (120, 0), interval_s=300),
    }
    good = f'{promql.WHOLE.counts_since("month")}{{sla_verdict="good"}}'
    values: dict[tuple[int, str], float | None] = {
        (55 * 60, promql.WHOLE.ratio_since("month")): 0.5,
        (55 * 60, good): 550,
        (65 * 60, promql.WHOLE.ratio_since("month")): 50 / 150,
        (170 * 60, good): 23 * 50,
        (170 * 60, promql.WHOLE.budget_left): 1 - 50 / 1_200 / 0.01,
    }
    case = Case("October to November", series, values, start="2026-10-31T22:00:00Z")
    evaluate(tmp_path, prometheus.render(rules, RulesOptions()), [case], interval_s=300)


def test_windows_may_be_seconds(tmp_path: Path) -> None:
    """Those of a trial, in which an hour is 36 seconds, and those of a policy."""
    series = {counter("good"): counted((10, 60)), counter("breach"): counted((5, 0), (5, 60))}
    case = Case("a hundredth", series, firing(BURN, [10], [4], ', long_window="36s"'))
    evaluated(tmp_path, policy(PREDICT), case, scale=0.01)
    rules = policy(replace(PREDICT, window_s=90), burns=(BurnAlert(10, 60, 30),))
    evaluated(tmp_path, rules, Case("of a policy", series, firing(BURN, [10], [4])))
    assert "is spent within 9s" in prometheus.render(rules, RulesOptions())


def test_names_of_any_text_reach_the_alert_as_they_are(tmp_path: Path) -> None:
    rules = policy(replace(PREDICT, name=HOSTILE), burns=(QUICK,), no_data_s=600)
    label = {"sla_objective": HOSTILE, "severity": "ticket"}
    summary = f"no request was judged by {HOSTILE} for 10m: whether it is met is unknown"
    cases = [
        Case("breaches", {counter("breach", HOSTILE): counted((60, 10))}, firing(BURN, [59])),
        Case("silence", {"up": [1.0] * 60}, alerts={(1_200, NO_DATA): [(label, {"summary": summary})]}),
    ]
    evaluated(tmp_path, rules, *cases)


def test_an_objective_has_alerts_of_its_own_beside_those_of_all(tmp_path: Path) -> None:
    """Of a median the budget cannot burn ten times too fast: it has a lower factor, a label more, and no guard."""
    of_all = policy(burns=(QUICK,), min_requests=20, labels=(("team", "ml"),), no_data_s=600).alerts
    own = {"burns": (BurnAlert(1.5, 1_800, 300, "ticket"),), "min_requests": 0, "no_data_s": 0}
    median = replace(PREDICT, name="median", target=0.5, alerts=changed(of_all, {**own, "labels": (("tier", "2"),)}))
    silent = replace(PREDICT, name="silent", alerts=changed(of_all, {"burns": (), "no_data_s": 0}))
    series = {counter("breach", one): counted((40, 0.3), (20, 0)) for one in ("predict", "median", "silent")}
    labels = {
        "job": "churn-api",
        "service": "churn-api",
        "severity": "ticket",
        "sla_objective": "median",
        "burn_rate": "1.5",
        "long_window": "30m",
        "short_window": "5m",
        "team": "ml",
        "tier": "2",
    }
    summary = {
        "summary": "churn-api: 100% of the requests in 30m missed median; 50% may (50% over 28d)",
        "description": (
            "Over 30m and over 5m more than 75% of the requests missed the objective. At that rate, 1.5 times what the"
            " objective allows, its whole error budget is spent within 18d16h."
        ),
    }
    case = Case("few requests", series, {}, {(30 * 60, BURN): [(labels, summary)]})
    evaluated(tmp_path, replace(policy(PREDICT, median, silent), alerts=of_all), case)
    texts = prometheus.render(replace(policy(PREDICT, median, silent), alerts=of_all), RulesOptions())
    found = [
        (rule["alert"], rule["labels"]["sla_objective"])
        for group in yaml.safe_load(texts)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert found == [(BURN, "predict"), (NO_DATA, "predict"), (BURN, "median")]


def test_promtool_finds_nothing_wrong_in_any_output(tmp_path: Path) -> None:
    rules = policy(
        PREDICT,
        STRICT,
        replace(PREDICT, name=HOSTILE, segment_by=("tenant.tier",), calendar=Calendar("week", "Asia/Kathmandu")),
        replace(PREDICT, name="excluded", excludes=True),
        replace(PREDICT, name="quarters", calendar=Calendar("quarter")),
        *(
            replace(PREDICT, name=f"{unit}s", calendar=Calendar(unit, "America/New_York"))
            for unit in ("day", "month", "year")
        ),
        no_data_s=300,
        traces="http://127.0.0.1:16688",
    )
    files = []
    for number, options in enumerate((RulesOptions(), RulesOptions(0.001, "other_total", 'a"b\\c'))):
        files += [tmp_path / f"{number}.yaml", tmp_path / f"{number}-resource.yaml"]
        files[-2].write_text(prometheus.render(rules, options), "utf-8")
        resource = yaml.safe_load(prometheus.render_prometheusrule(rules, options))
        files[-1].write_text(yaml.safe_dump(resource["spec"]), "utf-8")
        assert resource["metadata"]["name"] == ("stagetrace-sla", "stagetrace-sla-a-b-c")[number]
        assert resource["spec"] == yaml.safe_load(prometheus.render(rules, options))
    check(*files)


def test_the_tests_that_are_written_for_promtool_pass_and_find_a_wrong_rule(tmp_path: Path) -> None:
    named = replace(PREDICT, name=HOSTILE, conditions=(Condition("service.name", "churn-*"),))
    rules = policy(PREDICT, STRICT, named, replace(PREDICT, name="x", excludes=True), no_data_s=600, min_requests=20)
    own = {"burns": (BurnAlert(1.9, 900, 240),), "no_data_s": 1_200, "min_requests": 70}
    median = replace(PREDICT, name="median", target=0.5, alerts=changed(rules.alerts, own))
    rules = replace(rules, objectives=(*rules.objectives, median))
    for options in (RulesOptions(), RulesOptions(0.01, service="churn")):
        written = FORMATS["prometheus"].render(rules, options)
        (tmp_path / "rules.yaml").write_text(written, "utf-8")
        (tmp_path / "tests.yaml").write_text(FORMATS["promtool"].render(rules, options), "utf-8")
        run_tests(tmp_path / "tests.yaml")
    changes = (("> 0.01\n", "> 0.009\n"), ("> 0.144", "> 1.44"), ("> 0\n", "> 1\n"), ("> 0.95", "> 0.94"))
    for right, wrong in changes:
        assert right in written
        (tmp_path / "rules.yaml").write_text(written.replace(right, wrong), "utf-8")
        with pytest.raises(AssertionError, match="FAILED"):
            run_tests(tmp_path / "tests.yaml")


# --- Links from alerts to breaches: none hides a breach of the objective that the alert is about.


def tags(objective: Objective, *objectives: Objective) -> dict[str, str]:
    """Return by what Jaeger is asked for the breaches of an objective."""
    url = breaches_url(policies.policy(*objectives, traces="http://jaeger:80/ui"), objective, "shop", 7_200)
    query = parse_qs(urlsplit(url).query)
    assert (query["service"], query["lookback"]) == (["shop"], ["2h"])
    found: dict[str, str] = json.loads(query["tags"][0])
    return found


def test_jaeger_is_asked_for_the_objective_only_where_each_of_its_breaches_shows_it() -> None:
    first, gold = replace(policies.PREDICT, continues=True), Condition("tier", "gold")
    override = replace(first, name="gold", conditions=(*first.conditions, gold), base="predict")
    alone = {"sla.breached": "true", "sla.objective": "every request"}
    assert tags(policies.OTHERS, policies.PREDICT, policies.OTHERS) == alone
    assert tags(policies.OTHERS, first, policies.OTHERS) == {"sla.breached": "true"}
    assert tags(first, override, first, policies.OTHERS) == {"sla.breached": "true", "sla.objective": "predict"}
    assert tags(override, override, first, policies.OTHERS) == {"sla.breached": "true", "sla.objective": "gold"}


@pytest.mark.parametrize("address", ["http://page:80", "http://page:80/", "http://page:80/breaches"])
def test_the_page_is_asked_for_what_the_objective_judged(address: str) -> None:
    whole = policies.policy(replace(policies.PREDICT, continues=True), policies.OTHERS, traces=address)
    url = breaches_url(whole, replace(policies.OTHERS, name="a&b c"), "shop", 30)
    assert url == "http://page:80/breaches?service=shop&judged-by=a%26b%20c&since=1m"


def test_a_link_to_jaegers_search_leads_to_the_breaches_on_the_page() -> None:
    """As `up` serves both at the address of the documented example, whose port is Jaeger's."""
    url = breaches_url(
        policies.policy(policies.PREDICT, traces="http://127.0.0.1:16686"), policies.PREDICT, "shop", 7_200
    )
    assert url.startswith("http://127.0.0.1:16686/search?")
    found = urlsplit(target(dict(parse_qsl(urlsplit(url).query))))
    assert found.path == "/breaches"
    assert parse_qs(found.query) == {"service": ["shop"], "judged-by": [policies.PREDICT.name], "since": ["2h"]}
    odd = target({"service": "a&b", "tags": '{"tenant":"x"', "lookback": "custom"})
    assert odd == "/breaches?service=a%26b"
    assert target({"tags": '{"tenant": "x=y"}'}) == "/breaches?segment=tenant%3Dx%3Dy"


# --- Which day, week, month, quarter and year it is in a time zone, as the real promtool computes it.

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe")
EPOCH_MONDAY = datetime(1969, 12, 29)  # noqa: DTZ001 -- a day of any zone


def _period(unit: str, local: datetime) -> str:
    """Return the number of the period, by Python's calendar."""
    return {
        "day": str((local - datetime(1970, 1, 1)).days),  # noqa: DTZ001
        "week": str((local - EPOCH_MONDAY).days // 7),
        "month": f"{local:%Y%m}",
        "quarter": f"{local.year}{(local.month + 2) // 3}",
        "year": str(local.year),
    }[unit]


@pytest.mark.usefixtures("promtool")
def test_periods_change_with_the_clocks_of_their_zone(tmp_path: Path) -> None:
    used = [Calendar(unit, zone) for unit in CALENDAR for zone in ZONES]
    rules = yaml_of({"groups": [{"name": "sla calendars", "rules": promql.rules(used)}]})
    midnights = [datetime(*day, tzinfo=ZoneInfo(zone)) for zone in ZONES for day in ((2027, 1, 1), (2028, 3, 27))]
    changes = [datetime(2026, 10, 25, 1), datetime(2031, 4, 5, 15), datetime(2036, 11, 2, 4, 30)]  # noqa: DTZ001
    cases = []
    for change in [*midnights, *(one.replace(tzinfo=timezone.utc) for one in changes)]:
        start = change.astimezone(timezone.utc) - timedelta(minutes=1)
        values: dict[tuple[int, str], float | None] = {}
        for at_s in (0, 60, 120):
            for one in used:
                local = (start + timedelta(seconds=at_s)).astimezone(ZoneInfo(one.timezone)).replace(tzinfo=None)
                own = f'calendar="{one.text}", {promql.PERIOD}="{_period(one.unit, local)}"'
                values[at_s, f"{promql.CURRENT}{{{own}}}"] = 1.0
        cases.append(Case(str(change), {"up": [1.0] * 3}, values, start=f"{start:%Y-%m-%dT%H:%M:%SZ}"))
    evaluate(tmp_path, rules, cases, interval_s=60)


@given(st.sampled_from(ZONES), st.datetimes(datetime(2026, 1, 2), datetime(2040, 12, 31)))  # noqa: DTZ001
def test_the_offset_of_a_zone_is_that_of_its_clocks(zone: str, moment: datetime) -> None:
    at = moment.replace(tzinfo=timezone.utc)
    known = [offset for since, offset in promql._offsets(zone) if since <= at.timestamp()]
    assert known[-1] == at.astimezone(ZoneInfo(zone)).utcoffset().total_seconds()  # type: ignore[union-attr]
