"""Sloth: its own rules out of our file alert as ours do, and as a count by hand does, on the same series."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml
from hypothesis import given, settings

from backends import binary
from rules.policies import OTHERS, PREDICT, policies, policy
from rules.promtool import Case, check, evaluate
from stagetrace.rules import burn, prometheus
from stagetrace.rules.base import RulesError, RulesOptions
from stagetrace.rules.burn import Counts
from stagetrace.rules.sloth import render, render_windows
from stagetrace.sla.alert_options import PAGE, TICKET, BurnAlert
from stagetrace.sla.objective import Calendar

if TYPE_CHECKING:
    from stagetrace.sla.policy import Policy

VECTORS: Final = Path(__file__).parent / "vectors" / "sloth"
OPTIONS: Final = RulesOptions()
BURNS: Final = (
    BurnAlert(14.4, 3_600, 300, PAGE),
    BurnAlert(6.0, 2 * 3_600, 900, PAGE),
    BurnAlert(3.0, 3 * 3_600, 1_800, TICKET),
    BurnAlert(1.5, 4 * 3_600, 3_600, TICKET),
)
POLICY: Final = policy(PREDICT, burns=BURNS, min_requests=1)
FILES: Final = {"slos.yaml": render, "windows/30d.yaml": render_windows}
INTERVAL_S: Final = 60
# How many requests a minute, of which how many are breaches, for how many minutes.
PHASES: Final = (
    *((20, 0, 30), (20, 4, 4), (20, 0, 60), (20, 9, 25), (20, 1, 70), (0, 0, 12)),
    *((20, 0, 90), (50, 1, 60), (20, 0, 30), (20, 20, 15), (20, 0, 60)),
)


@pytest.mark.parametrize("name", FILES)
def test_the_recorded_files_are_what_is_written_today(name: str) -> None:
    """Sloth's rules beside them were made out of these: record_sloth.py makes all of them anew."""
    assert FILES[name](POLICY, OPTIONS) == (VECTORS / name).read_text("utf-8")


@pytest.mark.usefixtures("promtool")
def test_sloths_rules_and_ours_alert_at_the_same_times_as_a_count_by_hand(tmp_path: Path) -> None:
    ours = [one for one in prometheus.groups(POLICY, OPTIONS) if "alerts" in one["name"]]
    theirs = yaml.safe_load((VECTORS / "rules.yaml").read_text("utf-8"))["groups"]
    series, minutes = _series()
    values: dict[tuple[int, str], float | None] = {}
    fired = dict.fromkeys((PAGE, TICKET), 0)
    for at_s in range(600, 60 * (len(minutes) - 1), 420):
        for severity in (PAGE, TICKET):
            fires = _fires(minutes, at_s // 60, severity)
            fired[severity] += fires
            for label in ("severity", "sloth_severity"):
                others = 'sloth_severity=""' if label == "severity" else 'sloth_id!=""'
                alerts = f'ALERTS{{alertstate="firing", {label}="{severity}", sla_objective="predict", {others}}}'
                values[at_s, f"(count({alerts}) > bool 0) or vector(0)"] = float(fires)
    assert min(fired.values()) > 4  # of some 65: both kinds of alert come and go
    text = yaml.safe_dump({"groups": [*ours, *theirs]}, sort_keys=False)
    evaluate(tmp_path, text, [Case("alike", series, values)], interval_s=INTERVAL_S)


def _series() -> tuple[dict[str, list[float | str | None]], list[Counts]]:
    """Return the counters, a sample a minute, and the requests of each minute before a sample."""
    good, breaches = [1_000.0], [10.0]
    minutes = [Counts(good[0], breaches[0])]  # what a counter begins with counts, too
    for requests, bad, length in PHASES:
        for _ in range(length):
            good.append(good[-1] + requests - bad)
            breaches.append(breaches[-1] + bad)
            minutes.append(Counts(requests - bad, bad))
    labels = 'job="shop/churn-api", sla_objective="predict"'
    found: dict[str, list[float | str | None]] = {
        f'sla_requests_total{{{labels}, sla_verdict="good"}}': list(good),
        f'sla_requests_total{{{labels}, sla_verdict="breach", sla_breach_stage="inference"}}': list(breaches),
    }
    return found, minutes


def _fires(minutes: list[Counts], now: int, severity: str) -> bool:
    """Return whether an alert of this severity fires, counting the requests of each window one by one."""

    def counted(window_s: float) -> Counts:
        window = minutes[max(0, now + 1 - round(window_s / 60)) : now + 1]
        return Counts(sum(one.good for one in window), sum(one.breaches for one in window))

    alerts = [one for one in burn.alerts(PREDICT, POLICY.alerts) if one.severity == severity]
    return any(burn.is_burning(one, {window: counted(window) for window in one.windows}) for one in alerts)


@pytest.mark.heavy
def test_the_recorded_rules_are_what_the_real_sloth_makes_of_our_files() -> None:
    assert rules_of_sloth(VECTORS) == (VECTORS / "rules.yaml").read_text("utf-8")


@pytest.mark.heavy
@settings(max_examples=100)
@given(policies())
def test_the_real_sloth_makes_rules_of_any_policy_that_it_has_windows_for(given: Policy) -> None:
    try:
        texts = {name: write(given, OPTIONS) for name, write in FILES.items()}
    except RulesError:
        return  # more than two pairs of windows
    if not burn.judged(given):
        return
    with TemporaryDirectory() as folder:
        (Path(folder) / "windows").mkdir()
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, "utf-8")
        (Path(folder) / "rules.yaml").write_text(rules_of_sloth(Path(folder)), "utf-8")
        check(Path(folder) / "rules.yaml")


def rules_of_sloth(folder: Path) -> str:
    """Return what the real Sloth makes of the files in a folder, once it has validated them."""
    period = yaml.safe_load((folder / "windows" / "30d.yaml").read_text("utf-8"))["spec"]["sloPeriod"]
    windows = ["--slo-period-windows-path", str(folder / "windows"), "--default-slo-period", period, "--no-log"]
    slos = ["--input", str(folder / "slos.yaml")]
    subprocess.run([binary("sloth"), "validate", *windows, *slos], check=True, capture_output=True)
    made = subprocess.run([binary("sloth"), "generate", *windows, *slos], check=True, capture_output=True, text=True)
    return made.stdout


def test_what_sloth_cannot_express_is_named_and_a_third_pair_of_windows_refused() -> None:
    month = replace(
        OTHERS, calendar=Calendar("month", "Europe/Berlin"), window_s=31 * 86_400, segment_by=("tenant.tier",)
    )
    text = render(policy(PREDICT, PREDICT, month, no_data_s=600), OPTIONS)
    assert [line for line in text.splitlines() if line.startswith("# Not expressed")] == [
        "# Not expressed: the window of every request, month@Europe/Berlin: Sloth counts all over the rolling 30d",
        "# Not expressed: the segments of every request: Sloth alerts on all requests together",
        "# Not expressed: alerts.min_requests: 10",
        "# Not expressed: alerts.no_data: 10m",
    ]
    three = policy(burns=tuple(BurnAlert(factor, 3_600, 300) for factor in (9.0, 6.0, 3.0)))
    for write in FILES.values():
        with pytest.raises(RulesError, match="the policy has 3 alerts of severity page, and Sloth has two for each"):
            write(three, OPTIONS)


def test_objectives_have_the_same_windows_or_no_alert_since_sloth_has_one_catalog() -> None:
    median = replace(
        PREDICT, name="median", target=0.5, alerts=replace(POLICY.alerts, burns=(BurnAlert(1.9, 900, 300),))
    )
    why = "the objectives 'predict' and 'median' have different alerts, and Sloth has one catalog for all"
    for write in FILES.values():
        with pytest.raises(RulesError, match=why):
            write(replace(POLICY, objectives=(PREDICT, median)), OPTIONS)
    silent = replace(PREDICT, name="silent", alerts=replace(POLICY.alerts, burns=(), labels=(("tier", "2"),)))
    whole = replace(POLICY, objectives=(PREDICT, silent))
    assert render_windows(whole, OPTIONS) == render_windows(POLICY, OPTIONS)
    first, second = yaml.safe_load(render(whole, OPTIONS))["slos"]
    assert first == yaml.safe_load(render(POLICY, OPTIONS))["slos"][0]
    assert second["alerting"]["page_alert"] == second["alerting"]["ticket_alert"] == {"disable": True}
    assert second["alerting"]["labels"]["tier"] == "2"
    (only,) = yaml.safe_load(render(replace(POLICY, objectives=(median,)), OPTIONS))["slos"]
    assert only["alerting"]["ticket_alert"] == {"disable": True}


def test_a_file_is_one_document_with_names_that_sloth_allows() -> None:
    others = [
        replace(OTHERS, name=name) for name in ("Every request", "every request?", "漢", "{{.window}}", "a", "a" * 80)
    ]
    document: dict[str, Any] = yaml.safe_load(render(policy(PREDICT, *others), OPTIONS))
    assert document["service"] == "any-service"
    assert yaml.safe_load(render(policy(PREDICT), OPTIONS))["service"] == "churn-api"
    slos = document["slos"]
    assert [one["name"] for one in slos] == [
        "predict",
        "every-request",
        "every-request-2",
        "objective",
        "window",
        "objective-a",
        "a" * 63,
    ]
    assert slos[0]["labels"] == {"sla_objective": "predict", "service": "churn-api"}
    query = slos[4]["sli"]["events"]["total_query"]
    assert 'sla_objective="{{ "{{" }}.window}}"' in query  # Sloth's template gives the name back
