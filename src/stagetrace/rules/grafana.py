"""A board for Grafana on the objectives of a policy: what the recording rules record, breaches and their traces."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from stagetrace import semconv
from stagetrace.rules import burn, recorded
from stagetrace.rules.base import Format, RulesOptions
from stagetrace.rules.grafana_panels import (
    METRICS,
    Piece,
    Query,
    arranged,
    bars,
    breached_traces,
    heatmap,
    lines,
    page_link,
    stat,
    states,
    variables,
)
from stagetrace.rules.links import is_jaeger
from stagetrace.rules.prometheus import comment
from stagetrace.rules.promql import duration, literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

_OWN: Final = 'job="$service", sla_objective=~"$objective"'
_PAGE: Final = "http://127.0.0.1:16688"
_JAEGER: Final = "http://127.0.0.1:16686"
_DURATION: Final = "sla_duration_seconds"
_SPANS: Final = "traces_span_metrics_duration_milliseconds_bucket"
_ENTRY: Final = 'job="$service", span_kind="SPAN_KIND_SERVER"'
_RATE: Final = "[$__rate_interval]"
_STAGES: Final = (*(one for one in semconv.STAGES if one != semconv.HANDLER), semconv.HANDLER)
_NOT_IN_UIDS: Final = re.compile(r"[^\w-]", re.ASCII)
_MOST: Final = 40  # characters of a board's uid
_BUDGET_COLORS: Final = [("red", None), ("orange", 0.1), ("green", 0.5)]


def render(policy: Policy, options: RulesOptions) -> str:
    """Return the board as JSON, to be imported into Grafana."""
    return json.dumps(board(policy, options), indent=2, ensure_ascii=False) + "\n"


def board(policy: Policy, options: RulesOptions) -> Piece:
    """Return the board as a dictionary."""
    names = [one.name for one in burn.judged(policy)]
    service = _service(options)
    about = f"{comment(policy)} It shows what `--format prometheus` records of the same policy."
    search = {"title": "Jaeger", "url": _search(), "tooltip": "Traces with a breach, in Jaeger"}
    page = {"title": "stagetrace", "url": "${page}/board?service=${service}", "tooltip": "The page of stagetrace"}
    shown = {"type": "link", "icon": "external link", "targetBlank": True, "keepTime": False, "includeVars": False}
    return {
        "uid": _NOT_IN_UIDS.sub("-", f"stagetrace-sla-{options.service}")[:_MOST].strip("-"),
        "title": f"Objectives{f' of {options.service}' if options.service else ''}",
        "description": about,
        "tags": ["stagetrace", "slo", "latency"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{**shown, **page}, {**shown, **search}],
        "annotations": {"list": []},
        "templating": {"list": list(variables(service, names, *_addresses(policy)))},
        "panels": arranged(_rows(policy, options)),
    }


def _rows(policy: Policy, options: RulesOptions) -> Iterator[tuple[str, int, list[Piece]]]:
    yield "Objectives", 6, [_attainment(policy, options), _budget_left(), _targets()]
    yield "", 8, [_burn_rates(policy, options), _alerts()]
    yield "Requests", 9, [_requests(options), _heatmap(), _quantiles()]
    yield "Breaches", 8, [_by_stage(options), _by_cause()]
    yield "", 9, [breached_traces()]


def _attainment(policy: Policy, options: RulesOptions) -> Piece:
    """Return the share of good requests, over the window of each objective."""
    by_ratio: dict[str, list[str]] = {}
    for one in burn.judged(policy):
        by_ratio.setdefault(_ratio(one, options), []).append(one.name)
    return stat(
        "Attainment",
        "The share of judged requests that met their objective, over its window. Exact: counted before any sampling.",
        [
            Query(f"1 - {ratio}{{{_OWN}{_of(names) if len(by_ratio) > 1 else ''}}}", "{{sla_objective}}")
            for ratio, names in by_ratio.items()
        ],
        {"unit": "percentunit", "decimals": 3, "max": 1, "links": [page_link("Breaches", "breaches")]},
    )


def _ratio(objective: Objective, options: RulesOptions) -> str:
    """Return the name of the share of breaches in an objective's own window."""
    if objective.calendar is not None and options.scale == 1:
        return recorded.ratio_since(objective.calendar.unit)
    return recorded.ratio(objective.window_s * options.scale)


def _of(names: list[str]) -> str:
    """Return a matcher of objectives: others may have a window of this length, too, which is not their own."""
    return f", sla_objective=~{quoted('|'.join(map(literal, names)))}"


def _budget_left() -> Piece:
    steps = [{"color": color, "value": value} for color, value in _BUDGET_COLORS]
    return bars(
        "Error budget left",
        "Of the requests that may miss their objective in its window, the share that has not been used. Below zero the"
        " objective is missed.",
        [Query(f"{recorded.budget_left()}{{{_OWN}}}", "{{sla_objective}}")],
        {
            "unit": "percentunit",
            "decimals": 1,
            "min": 0,
            "max": 1,
            "thresholds": {"mode": "absolute", "steps": steps},
            "links": [page_link("Board", "board")],
        },
    )


def _targets() -> Piece:
    return stat(
        "Objectives",
        "The share of requests that each objective wants good.",
        [Query(f"max by (sla_objective) (sla_target_ratio{{{_OWN}}})", "{{sla_objective}}")],
        {"unit": "percentunit", "decimals": 3},
    )


def _burn_rates(policy: Policy, options: RulesOptions) -> Piece:
    """Return the burn rates in the windows of the alerts; lines are the factors above which these fire."""
    alerts = [alert for one in burn.judged(policy) for alert in burn.alerts(one, policy.alerts_of(one), options.scale)]
    windows = sorted({window for alert in alerts for window in alert.windows})
    factors = sorted({alert.factor for alert in alerts if alert.factor is not None})
    allowed = f"(1 - max by (job, sla_objective) (sla_target_ratio{{{_OWN}}}) > 0)"
    steps: list[Piece] = [{"color": "transparent", "value": None}]
    steps += [{"color": "red" if one == factors[-1] else "orange", "value": one} for one in factors]
    return lines(
        "Burn rate",
        "How fast the error budget is used: 1 uses it up exactly at the end of the objective's window. Lines: the rates"
        " above which an alert fires.",
        [
            Query(
                f"{recorded.ratio(window)}{{{_OWN}}} / on (job, sla_objective) group_left () {allowed}",
                f"{{{{sla_objective}}}}, {duration(window)}",
            )
            for window in windows
        ],
        {"unit": "short", "thresholds": {"mode": "absolute", "steps": steps}},
        custom={"thresholdsStyle": {"mode": "line"}},
    )


def _alerts() -> Piece:
    return states(
        "Alerts",
        "When an alert on an objective fires.",
        [
            Query(
                f'max by (alertname, sla_objective, severity) (ALERTS{{{_OWN}, alertstate="firing"}})',
                "{{sla_objective}}: {{alertname}} ({{severity}})",
            )
        ],
    )


def _requests(options: RulesOptions) -> Piece:
    return lines(
        "Judged requests",
        "Per second, by verdict. Exact: counted before any sampling.",
        [Query(f"sum by (sla_verdict) (rate({options.requests}{{{_OWN}}}{_RATE}))", "{{sla_verdict}}")],
        {"unit": "reqps"},
        stacked=True,
        colored=("good", "breach", "excluded"),
    )


def _heatmap() -> Piece:
    return heatmap(
        "Durations",
        "Judged requests by their duration, for each objective. Exact: counted before any sampling. The heat map of"
        " stagetrace names what distinguishes a box of it.",
        Query(f"sum (increase({_DURATION}{{{_OWN}}}{_RATE}))", "requests", {"format": "heatmap", "exemplar": True}),
        "s",
    )


def _quantiles() -> Piece:
    return lines(
        "p50 and p99 by route",
        "Entry spans, as the Collector counts them. Each dot is a trace: it opens in Jaeger and in stagetrace. Dashed:"
        " the objectives.",
        [
            Query(_quantile(0.99), "{{span_name}} p99", {"exemplar": True}),
            Query(_quantile(0.5), "{{span_name}} p50"),
            Query(f"max by (sla_objective) (sla_threshold_milliseconds{{{_OWN}}})", "objective: {{sla_objective}}"),
        ],
        {"unit": "ms", "links": [page_link("Heat map", "heatmap")]},
        overrides=[
            {
                "matcher": {"id": "byRegexp", "options": "/^objective/"},
                "properties": [
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
                    {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                    {"id": "custom.fillOpacity", "value": 0},
                ],
            }
        ],
    )


def _quantile(share: float) -> str:
    return f"histogram_quantile({share}, sum by (le, span_name) (rate({_SPANS}{{{_ENTRY}}}{_RATE})))"


def _by_stage(options: RulesOptions) -> Piece:
    breaches = f'{options.requests}{{{_OWN}, sla_verdict="breach"}}'
    return lines(
        "Breaches by stage",
        "The stage to which the cause belongs. Exact: counted before any sampling.",
        [Query(f"sum by (sla_breach_stage) (increase({breaches}{_RATE}))", "{{sla_breach_stage}}")],
        {"unit": "short"},
        stacked=True,
        custom=_BARS,
        colored=_STAGES,
    )


def _by_cause() -> Piece:
    links = [
        page_link("Breaches with this cause", "breaches", cause=True),
        page_link("Their lines of code", "breaches", first="groups=1&", cause=True),
    ]
    return lines(
        "Breaches by cause",
        "Exact: counted before any sampling.",
        [Query(f"sum by (sla_breach_cause) (increase(sla_breaches_total{{{_OWN}}}{_RATE}))", "{{sla_breach_cause}}")],
        {"unit": "short", "links": links},
        stacked=True,
        custom=_BARS,
    )


_BARS: Final[Piece] = {"drawStyle": "bars", "fillOpacity": 60}


def _service(options: RulesOptions) -> Piece:
    """Return the choice of the service: those that have judged requests."""
    asked = f"label_values({options.requests}, job)"
    found: Piece = {
        "name": "service",
        "label": "Service",
        "type": "query",
        "datasource": METRICS,
        "query": {"qryType": 1, "query": asked, "refId": "service"},
        "refresh": 2,
        "sort": 1,
        "multi": False,
        "includeAll": False,
        "hide": 0,
    }
    chosen = {"text": options.service, "value": options.service}
    return {**found, "current": chosen} if options.service else found


def _addresses(policy: Policy) -> tuple[str, str]:
    """Return the addresses of stagetrace's page and of Jaeger; the policy names one of them."""
    given = policy.alerts.traces.rstrip("/")
    if not given:
        return _PAGE, _JAEGER
    return (_PAGE, given.removesuffix("/search")) if is_jaeger(given) else (given.removesuffix("/breaches"), _JAEGER)


def _search() -> str:
    return "${jaeger}/search?service=${service}&tags=%7B%22sla.breached%22%3A%22true%22%7D"


FORMAT = Format("grafana", "a board for Grafana, on what `prometheus` records", ".json", render)
