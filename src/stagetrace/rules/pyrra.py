"""The objectives as Pyrra reads them (`pyrra.dev/v1alpha1`): an object each, in a file or for Kubernetes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from stagetrace.rules import burn, dns_names
from stagetrace.rules.base import Format, RulesOptions
from stagetrace.rules.prometheus import comment
from stagetrace.rules.prometheus_alerts import BURN, NO_DATA
from stagetrace.rules.promql import duration, labels
from stagetrace.rules.recorded import SEGMENT
from stagetrace.rules.yaml_text import yaml_of_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

# The name, or the value, of a label of Kubernetes.
_LABEL: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_FACTORS: Final = "Pyrra alerts at 14, 7, 2 and 1 times the budget, over windows that it derives from the objective's"


def render(policy: Policy, options: RulesOptions) -> str:
    """Return an object for each objective."""
    objectives = burn.judged(policy)
    names = dns_names.labels((one.name for one in objectives), "objective")
    lines = [comment(policy), *(f"Not expressed: {line}" for line in _omitted(policy))]
    return yaml_of_all([_object(one, names[one.name], policy, options) for one in objectives], "\n".join(lines))


def _omitted(policy: Policy) -> Iterator[str]:
    """Yield what Pyrra has nothing for."""
    for one in burn.judged(policy):
        if one.calendar is not None:
            rolling = duration(one.window_s)
            yield f"the window of {one.name}, {one.calendar.text}: Pyrra counts over the rolling {rolling}"
    yield f"alerts.burn: {_FACTORS}"
    all_ = [policy.alerts_of(one) for one in burn.judged(policy)]
    for key, value in dict.fromkeys(label for one in all_ for label in one.labels):
        if not _is_label(key, value):
            yield f"alerts.labels.{key}: Kubernetes allows no such label"
    for count in sorted({one.min_requests for one in all_ if one.min_requests > 1}):
        yield f"alerts.min_requests: {count}"
    if any(one.runbook or one.traces for one in all_):
        yield "alerts.runbook, alerts.traces: Pyrra's alerts have annotations of its own"


def _object(objective: Objective, name: str, policy: Policy, options: RulesOptions) -> dict[str, Any]:
    own, alerts = labels(objective, options.service), policy.alerts_of(objective)
    grouping = ["job", SEGMENT] if objective.segment_by else ["job"]
    # What begins with this prefix Pyrra gives to its alerts as labels.
    given = {f"pyrra.dev/{key}": value for key, value in alerts.labels if _is_label(key, value)}
    return {
        "apiVersion": "pyrra.dev/v1alpha1",
        "kind": "ServiceLevelObjective",
        "metadata": {"name": name, **({"labels": given} if given else {})},
        "spec": {
            "target": f"{100 * objective.target:.12g}",
            "window": duration(objective.window_s * options.scale),
            "description": objective.description or objective.name,
            "indicator": {
                "ratio": {
                    "errors": {"metric": f'{options.requests}{{{own}, sla_verdict="breach"}}'},
                    "total": {"metric": f'{options.requests}{{{own}, sla_verdict=~"good|breach"}}'},
                    "grouping": grouping,
                }
            },
            "alerting": {
                "name": BURN,
                "burnrates": bool(alerts.burns),
                "absent": alerts.no_data_s > 0,
                "absentName": NO_DATA,
            },
        },
    }


def _is_label(key: str, value: str) -> bool:
    return _LABEL.fullmatch(key) is not None and _LABEL.fullmatch(value) is not None


FORMAT = Format("pyrra", "objects for Pyrra (pyrra.dev/v1alpha1), one for each objective", ".yaml", render)
