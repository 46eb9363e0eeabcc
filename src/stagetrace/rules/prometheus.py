"""Recording rules and alerts for Prometheus, out of the counter of judged requests.

Each window has two series: the number of judged requests, and the share of breaches among them. A counter's first
value counts, too, where the series has begun within the window: `increase` alone would lose it, and with it the first
breach of each process, stage and segment. Without any judged request the share is absent, never NaN or 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.rules import burn, recorded
from stagetrace.rules.base import Format, RulesOptions
from stagetrace.rules.prometheus_alerts import alert_rules
from stagetrace.rules.promql import counted, duration, labels, number
from stagetrace.rules.yaml_text import yaml_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

Group = dict[str, Any]
BUDGET_INTERVAL_S: Final = 300  # the objective's whole window is read anew at this interval
YOUNG_S: Final = 3_600  # a series without a sample in this time before a window has begun within the window
_JUDGED: Final = 'sla_verdict=~"good|breach"'
_BREACH: Final = 'sla_verdict="breach"'


def render(policy: Policy, options: RulesOptions) -> str:
    """Return a rule file."""
    return yaml_of({"groups": groups(policy, options)}, comment(policy))


def comment(policy: Policy) -> str:
    """Return how the file was made."""
    source = f" out of {policy.source}" if policy.source else ""
    return f"Made by `stagetrace sla rules`{source}: change the policy, not this file."


def groups(policy: Policy, options: RulesOptions) -> list[Group]:
    """Return for each objective a group with its windows and alerts, and one with its error budget."""
    return [group for one in burn.judged(policy) for group in _of(one, policy, options)]


def _of(objective: Objective, policy: Policy, options: RulesOptions) -> Iterator[Group]:
    alerts = burn.alerts(objective, policy.alerts, options.scale)
    standard = {one * options.scale for one in burn.STANDARD_WINDOWS}
    needed = {window for alert in alerts for window in alert.windows}
    rules = [rule for one in sorted(standard | needed) for rule in _window(objective, options, one)]
    if objective.segment_by:
        rules += [rule for one in sorted(needed) for rule in _window(objective, options, one, segmented=True)]
    rules += alert_rules(objective, alerts, policy.alerts, options)
    yield {"name": f"sla windows and alerts: {objective.name}", "rules": rules}
    yield {
        "name": f"sla error budget: {objective.name}",
        "interval": duration(max(1, BUDGET_INTERVAL_S * options.scale)),
        "rules": _budget(objective, options, standard | needed),
    }


def _window(
    objective: Objective, options: RulesOptions, window_s: float, *, segmented: bool = False
) -> Iterator[Group]:
    own, by = labels(objective, options.service), recorded.by(segmented=segmented)
    count = recorded.requests(window_s, segmented=segmented)
    yield {"record": count, "expr": f"sum by ({by}) (\n{_counted(own, _JUDGED, window_s, options)}\n)"}
    breaches = f"sum by ({by}) (\n{_counted(own, _BREACH, window_s, options)}\n)"
    expr = f"(\n{breaches}\nor\n0 * {count}{{{own}}}\n)\n/ ({count}{{{own}}} > 0)"
    yield {"record": recorded.ratio(window_s, segmented=segmented), "expr": expr}


def _counted(own: str, verdict: str, window_s: float, options: RulesOptions) -> str:
    """Return how much each counter has counted in a window."""
    series = f"{options.requests}{{{own}, {verdict}}}"
    return counted(series, duration(window_s), duration(YOUNG_S * options.scale))


def _budget(objective: Objective, options: RulesOptions, recorded_already: set[float]) -> list[Group]:
    window_s = objective.window_s * options.scale
    levels = (False, True) if objective.segment_by else (False,)
    rules: list[Group] = []
    for segmented in levels:
        if segmented or window_s not in recorded_already:
            rules += _window(objective, options, window_s, segmented=segmented)
        allowed = burn.budget(objective)
        if allowed > 0:
            ratio = f"{recorded.ratio(window_s, segmented=segmented)}{{{labels(objective, options.service)}}}"
            rules.append(
                {"record": recorded.budget_left(segmented=segmented), "expr": f"1 - {ratio} / {number(allowed)}"}
            )
    return rules


FORMAT = Format("prometheus", "a rule file for Prometheus: recording rules and alerts", ".yaml", render)
