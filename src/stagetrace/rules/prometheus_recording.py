"""What is recorded of an objective: requests by verdict in each window, the share of breaches, the rest of the budget.

Without a judged request the share is absent: neither NaN nor 0. Counts are differences and not `increase()`, which
loses the first value of each series (docs/decisions/079).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.rules import burn, calendars, recorded
from stagetrace.rules.promql import YOUNG_S, counted, duration, labels, number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from stagetrace.rules.base import RulesOptions
    from stagetrace.sla.objective import Calendar, Objective

Rule = dict[str, Any]
STEP_S: Final = burn.STANDARD_WINDOWS[0]  # of calendar windows


def window_rules(
    objective: Objective, options: RulesOptions, window_s: float, *, segmented: bool = False
) -> Iterator[Rule]:
    """Yield the rules of one window: requests by verdict, then the share of breaches, which stands on them."""
    series = f'{options.requests}{{{labels(objective, options.service)}, sla_verdict=~"good|breach"}}'
    each = counted(series, duration(window_s), duration(YOUNG_S * options.scale))
    counts = recorded.counts(window_s, segmented=segmented)
    yield _rule(objective, counts, f"sum by ({recorded.by(segmented=segmented)}, sla_verdict) (\n{each}\n)")
    yield _ratio(objective, options, counts, recorded.ratio(window_s, segmented=segmented))


def budget_rules(
    objective: Objective, options: RulesOptions, windows: AbstractSet[float], *, segmented: bool = False
) -> list[Rule]:
    """Return the rules of the objective's own window, and of its error budget; `windows` are recorded already."""
    if objective.calendar is not None and options.scale == 1:
        ratio = recorded.ratio_since(objective.calendar.unit, segmented=segmented)
        rules = list(_calendar_rules(objective, objective.calendar, options, segmented=segmented))
    else:
        window_s = objective.window_s * options.scale
        ratio = recorded.ratio(window_s, segmented=segmented)
        is_recorded = window_s in windows
        rules = [] if is_recorded else list(window_rules(objective, options, window_s, segmented=segmented))
    allowed = burn.budget(objective)
    if allowed > 0:
        left = f"1 - {ratio}{{{labels(objective, options.service)}}} / {number(allowed)}"
        rules.append(_rule(objective, recorded.budget_left(segmented=segmented), left))
    return rules


def step_rules(objective: Objective, options: RulesOptions, *, segmented: bool = False) -> Iterator[Rule]:
    """Yield the rule of what a calendar window is the sum of: `STEP_S` each, to be recorded once in that time."""
    if objective.calendar is not None and options.scale == 1:
        counts = f"{recorded.counts(STEP_S, segmented=segmented)}{{{labels(objective, options.service)}}}"
        period = f"* on () group_left ({calendars.PERIOD}) {calendars.current(objective.calendar)}"
        yield _rule(objective, recorded.step(segmented=segmented), f"{counts} {period}")


def _calendar_rules(
    objective: Objective, calendar: Calendar, options: RulesOptions, *, segmented: bool
) -> Iterator[Rule]:
    by, step = recorded.by(segmented=segmented), recorded.step(segmented=segmented)
    steps = f"sum_over_time({step}{{{labels(objective, options.service)}}}[{duration(objective.window_s)}])"
    in_period = f"and on ({calendars.PERIOD}) {calendars.current(calendar)}"
    whole = recorded.counts_since(calendar.unit, segmented=segmented)
    yield _rule(objective, whole, f"sum by ({by}, sla_verdict) (\n  {steps}\n  {in_period}\n)")
    yield _ratio(objective, options, whole, recorded.ratio_since(calendar.unit, segmented=segmented))


def _ratio(objective: Objective, options: RulesOptions, counts: str, name: str) -> Rule:
    own = labels(objective, options.service)
    breaches, judged = (
        f"sum without (sla_verdict) ({counts}{{{own}{verdict}}})" for verdict in (', sla_verdict="breach"', "")
    )
    return _rule(objective, name, f"(\n  {breaches}\n  or 0 * {judged}\n)\n/ ({judged} > 0)")


def _rule(objective: Objective, name: str, expr: str) -> Rule:
    # The label is in the result already; promtool takes rules with the same name and labels for duplicates.
    return {"record": name, "expr": expr, "labels": {"sla_objective": objective.name}}
