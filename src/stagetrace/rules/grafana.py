"""A board for Grafana on the objectives of a policy: what the recording rules record, breaches and their traces.

`grafana.json` is the board as Grafana has it, with looks as in collector-config/grafana/stagetrace.json; what follows
from a policy or an option is set here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.rules import burn, promql
from stagetrace.rules.base import REQUESTS, Format, RulesOptions
from stagetrace.rules.prometheus import comment, is_jaeger
from stagetrace.rules.promql import duration, literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy

Piece = dict[str, Any]
_BOARD: Final = Path(__file__).with_name("grafana.json")
_OWN: Final = 'job="$service", sla_objective=~"$objective"'
_PAGE: Final = "http://127.0.0.1:16688"
_JAEGER: Final = "http://127.0.0.1:16686"
_NOT_IN_UIDS: Final = re.compile(r"[^\w-]", re.ASCII)
_MOST: Final = 40  # characters of a board's uid


def render(policy: Policy, options: RulesOptions) -> str:
    """Return the board as JSON, to be imported into Grafana."""
    requests = json.dumps(options.requests)[1:-1]
    found: Piece = json.loads(_BOARD.read_text("utf-8").replace(REQUESTS, requests))
    found["uid"] = _NOT_IN_UIDS.sub("-", f"stagetrace-sla-{options.service}")[:_MOST].strip("-")
    found["title"] = f"Objectives{f' of {options.service}' if options.service else ''}"
    found["description"] = f"{comment(policy)} It shows what `--format prometheus` records of the same policy."
    _set_variables({one["name"]: one for one in found["templating"]["list"]}, policy, options)
    panels = {one["title"]: one for one in found["panels"] if one["type"] != "row"}
    panels["Attainment"]["targets"] = _attainment(policy, options)
    _set_burn_rates(panels["Burn rate"], policy, options)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _set_variables(variables: Piece, policy: Policy, options: RulesOptions) -> None:
    """Set the choices at the top of the board: the service, the objectives, and where pages are."""
    if options.service:
        variables["service"]["current"] = {"text": options.service, "value": options.service}
    names = [one.name for one in burn.judged(policy)]
    variables["objective"]["query"] = ",".join(name.replace(",", "\\,") for name in names)
    variables["objective"]["options"] += [{"text": name, "value": name, "selected": False} for name in names]
    for name, address in zip(("page", "jaeger"), _addresses(policy), strict=True):
        variables[name].update(query=address, current={"text": address, "value": address})


def _addresses(policy: Policy) -> tuple[str, str]:
    """Return the addresses of stagetrace's page and of Jaeger; the policy names one of them."""
    given = policy.alerts.traces.rstrip("/")
    if not given:
        return _PAGE, _JAEGER
    return (_PAGE, given.removesuffix("/search")) if is_jaeger(given) else (given.removesuffix("/breaches"), _JAEGER)


def _attainment(policy: Policy, options: RulesOptions) -> list[Piece]:
    """Return the queries of the share of good requests, over the window of each objective."""
    by_ratio: dict[str, list[str]] = {}
    for one in burn.judged(policy):
        by_ratio.setdefault(_ratio(one, options), []).append(one.name)
    # Others may have a window of the same length, too, which is not their own.
    of = {ratio: f", sla_objective=~{quoted('|'.join(map(literal, names)))}" for ratio, names in by_ratio.items()}
    queries = [
        (f"1 - {ratio}{{{_OWN}{of[ratio] if len(by_ratio) > 1 else ''}}}", "{{sla_objective}}") for ratio in by_ratio
    ]
    return _targets(queries, instant=True)


def _ratio(objective: Objective, options: RulesOptions) -> str:
    """Return the name of the share of breaches in an objective's own window."""
    if objective.calendar is not None and options.scale == 1:
        return promql.WHOLE.ratio_since(objective.calendar.unit)
    return promql.WHOLE.ratio(objective.window_s * options.scale)


def _set_burn_rates(panel: Piece, policy: Policy, options: RulesOptions) -> None:
    """Set the burn rates in the windows of the alerts; lines are the factors above which these fire."""
    alerts = [alert for one in burn.judged(policy) for alert in burn.alerts(one, policy.alerts_of(one), options.scale)]
    windows = sorted({window for alert in alerts for window in alert.windows})
    factors = sorted({alert.factor for alert in alerts if alert.factor is not None})
    allowed = f"(1 - max by (job, sla_objective) (sla_target_ratio{{{_OWN}}}) > 0)"
    panel["targets"] = _targets(
        (
            f"{promql.WHOLE.ratio(window)}{{{_OWN}}} / on (job, sla_objective) group_left () {allowed}",
            f"{{{{sla_objective}}}}, {duration(window)}",
        )
        for window in windows
    )
    panel["fieldConfig"]["defaults"]["thresholds"]["steps"] += [
        {"color": "red" if one == factors[-1] else "orange", "value": one} for one in factors
    ]


def _targets(queries: Iterable[tuple[str, str]], **more: Any) -> list[Piece]:
    """Return expressions, each with the name of its series, as queries to Prometheus."""
    metrics = {"type": "prometheus", "uid": "${metrics}"}
    return [
        {"refId": _reference(place), "datasource": metrics, "expr": expr, "legendFormat": legend, **more}
        for place, (expr, legend) in enumerate(queries)
    ]


def _reference(place: int) -> str:
    """Return the name of a query: A to Z, then A1 to Z1 ..."""
    letter = chr(ord("A") + place % 26)
    return f"{letter}{place // 26}" if place >= 26 else letter  # noqa: PLR2004


FORMAT = Format("grafana", "a board for Grafana, on what `prometheus` records", ".json", render)
