"""Recording rules and alerts for Prometheus, out of the counter of judged requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.rules import burn, calendars
from stagetrace.rules.base import Format, RulesOptions
from stagetrace.rules.prometheus_alerts import alert_rules
from stagetrace.rules.prometheus_recording import STEP_S, budget_rules, step_rules, window_rules
from stagetrace.rules.promql import duration
from stagetrace.rules.yaml_text import yaml_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

Group = dict[str, Any]
# The objective's whole window is read anew at this interval. After 5 minutes, Prometheus takes a series for ended.
BUDGET_INTERVAL_S: Final = 240


def render(policy: Policy, options: RulesOptions) -> str:
    """Return a rule file."""
    return yaml_of({"groups": groups(policy, options)}, comment(policy))


def comment(policy: Policy) -> str:
    """Return how the file was made."""
    source = f" out of {policy.source}" if policy.source else ""
    return f"Made by `stagetrace sla rules`{source}: change the policy, not this file."


def groups(policy: Policy, options: RulesOptions) -> list[Group]:
    """Return for each objective a group with its windows and alerts, and one with its error budget."""
    objectives = burn.judged(policy)
    used = {one.calendar for one in objectives if one.calendar is not None} if options.scale == 1 else set()
    rules = calendars.rules(used)
    first = [{"name": "sla calendars", "rules": rules}] if rules else []
    return first + [group for one in objectives for group in _of(one, policy, options)]


def _of(objective: Objective, policy: Policy, options: RulesOptions) -> Iterator[Group]:
    alerts = burn.alerts(objective, policy.alerts_of(objective), options.scale)
    needed = {window for alert in alerts for window in alert.windows}
    windows = needed | {one * options.scale for one in burn.STANDARD_WINDOWS}
    rules = [rule for one in sorted(windows) for rule in window_rules(objective, options, one)]
    if objective.segment_by:
        rules += [rule for one in sorted(needed) for rule in window_rules(objective, options, one, segmented=True)]
    rules += alert_rules(objective, alerts, policy, options)
    yield {"name": f"sla windows and alerts: {objective.name}", "rules": rules}
    levels = (False, True) if objective.segment_by else (False,)
    steps = [rule for segmented in levels for rule in step_rules(objective, options, segmented=segmented)]
    if steps:
        yield {"name": f"sla steps: {objective.name}", "interval": duration(STEP_S), "rules": steps}
    rules = budget_rules(objective, options, windows)
    if objective.segment_by:
        rules += budget_rules(objective, options, needed, segmented=True)
    interval = duration(max(1, BUDGET_INTERVAL_S * options.scale))
    yield {"name": f"sla error budget: {objective.name}", "interval": interval, "rules": rules}


FORMAT = Format("prometheus", "a rule file for Prometheus: recording rules and alerts", ".yaml", render)
