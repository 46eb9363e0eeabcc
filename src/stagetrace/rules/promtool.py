"""Unit tests of the rules of `prometheus.py`, which promtool runs: each alert fires when it has to, and only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.rules import burn
from stagetrace.rules.base import Format, RulesOptions
from stagetrace.rules.prometheus import comment
from stagetrace.rules.prometheus_alerts import BREACH, BURN, NO_DATA
from stagetrace.rules.promql import duration, number, quoted
from stagetrace.rules.yaml_text import yaml_of
from stagetrace.sla.objective import SERVICE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stagetrace.rules.burn import Alert
    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

Test = dict[str, Any]
RULES: Final = "rules.yaml"
_STEPS: Final = 10  # values of each series
_LESS: Final = 0.99  # of the lowest threshold
_DEFAULT_S: Final = 60


def render(policy: Policy, options: RulesOptions) -> str:
    """Return the file; it names that of the rules, beside it."""
    objectives = burn.judged(policy)
    groups = [found for one in objectives if (found := burn.alerts(one, policy.alerts_of(one), options.scale))]
    alerts = [one for group in groups for one in group]
    length_s = min((one.short_s for one in alerts), default=_DEFAULT_S)
    step = duration(length_s / _STEPS)
    a_step = max(1, *(policy.alerts_of(one).min_requests for one in objectives))
    tests = []
    for name, fires in (("all requests are breaches", True), ("fewer breaches than any alert takes", False)):
        series = [
            {"series": _selector(options.requests, group[0].objective, options, sla_verdict=verdict), "values": values}
            for group in groups
            for share in (1.0 if fires else _LESS * min(one.threshold for one in group),)
            for verdict, values in (
                ("good", f"0+{number(a_step * (1 - share))}x{_STEPS}"),
                ("breach", f"0+{number(a_step * share)}x{_STEPS}"),
            )
        ]
        tests.append(_test(name, step, series, length_s, (_firing(one, options) for one in alerts), fires=fires))
    watched = [one for one in objectives if policy.alerts_of(one).no_data_s]
    if watched:
        length_s = max(policy.alerts_of(one).no_data_s for one in watched) * options.scale
        silent = (f'ALERTS{{alertname="{NO_DATA}", sla_objective={quoted(one.name)}}}' for one in watched)
        tests.append(_test("no request at all", step, [], length_s, silent, fires=True))
    how = f"{comment(policy)}\nThe rules are in {RULES}, beside this file: promtool test rules FILE"
    return yaml_of({"rule_files": [RULES], "evaluation_interval": step, "tests": tests}, how)


def _firing(alert: Alert, options: RulesOptions) -> str:
    """Return the expression of an alert that fires."""
    own = {"alertname": BREACH} if alert.factor is None else {"alertname": BURN, "burn_rate": number(alert.factor)}
    windows = {"long_window": duration(alert.long_s), "short_window": duration(alert.short_s)}
    return _selector("ALERTS", alert.objective, options, alertstate="firing", **own, **windows)


def _selector(name: str, objective: Objective, options: RulesOptions, **more: str) -> str:
    """Return a series of a service that the objective is about."""
    services = (one.glob.replace("*", "x") for one in objective.conditions if one.key == SERVICE_KEY)
    own = {"job": next(services, options.service) or "any", "sla_objective": objective.name, **more}
    return f"{name}{{{', '.join(f'{key}={quoted(value)}' for key, value in own.items())}}}"


def _test(name: str, step: str, series: list[Test], at_s: float, firing: Iterable[str], *, fires: bool) -> Test:
    samples = [{"labels": "{}", "value": 1}] if fires else []
    return {
        "name": name,
        "interval": step,
        "input_series": series,
        "promql_expr_test": [
            {"expr": f"count({expr})", "eval_time": duration(at_s), "exp_samples": samples} for expr in firing
        ],
    }


FORMAT = Format("promtool", f"unit tests of these rules, which promtool runs beside {RULES}", ".yaml", render)
