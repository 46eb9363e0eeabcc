"""A board for Grafana on the objectives of a policy: what the recording rules record, breaches and their traces."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.rules import burn, promql
from stagetrace.rules.base import Format, RulesOptions
from stagetrace.rules.prometheus import comment, is_jaeger
from stagetrace.rules.promql import duration, literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy

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
        return promql.ratio_since(objective.calendar.unit)
    return promql.ratio(objective.window_s * options.scale)


def _of(names: list[str]) -> str:
    """Return a matcher of objectives: others may have a window of this length, too, which is not their own."""
    return f", sla_objective=~{quoted('|'.join(map(literal, names)))}"


def _budget_left() -> Piece:
    steps = [{"color": color, "value": value} for color, value in _BUDGET_COLORS]
    return bars(
        "Error budget left",
        "Of the requests that may miss their objective in its window, the share that has not been used. Below zero the"
        " objective is missed.",
        [Query(f"{promql.budget_left()}{{{_OWN}}}", "{{sla_objective}}")],
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
                f"{promql.ratio(window)}{{{_OWN}}} / on (job, sla_objective) group_left () {allowed}",
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


# --- Pieces of a Grafana board, as collector-config/grafana/stagetrace.json has them.

Piece = dict[str, Any]
METRICS: Final[Piece] = {"type": "prometheus", "uid": "${metrics}"}
TRACES: Final[Piece] = {"type": "jaeger", "uid": "${traces}"}
_RANGE: Final = "since=${__from:date:iso}&until=${__to:date:iso}"
WIDTH: Final = 24
_GREY: Final = "#8c8c8c"
_COLORS: Final = {
    "good": "green",
    "breach": "red",
    "excluded": _GREY,
    semconv.NETWORK_RECEIVE: "#6b7f99",
    semconv.QUEUE: "#e08a00",
    semconv.PREPROCESS: "#1f9e89",
    semconv.INFERENCE: "#4c6fff",
    semconv.POSTPROCESS: "#a05ad6",
    semconv.NETWORK_SEND: _GREY,
    semconv.HANDLER: "#4fa3c7",
}


class Query(NamedTuple):
    """A question to Prometheus; `legend` names its series."""

    expr: str
    legend: str
    more: Piece = {}  # noqa: RUF012 -- nobody changes it


def page_link(title: str, view: str, *, first: str = "", cause: bool = False) -> Piece:
    """Return a link to a view of stagetrace in the time range shown, of the series' cause alone where it has one."""
    of_cause = "&cause=${__field.labels.sla_breach_cause}" if cause else ""
    return _link(f"{title}, in stagetrace", f"${{page}}/{view}?{first}service=${{service}}{of_cause}&{_RANGE}")


def _link(title: str, url: str) -> Piece:
    return {"title": title, "url": url, "targetBlank": True}


def stat(title: str, about: str, queries: Iterable[Query], defaults: Piece) -> Piece:
    """Return a panel with a number for each series."""
    options = {"textMode": "value_and_name", "colorMode": "value", "graphMode": "none", "orientation": "auto"}
    return _panel("stat", title, about, _now(queries), _field(defaults), {**_LAST, **options})


def bars(title: str, about: str, queries: Iterable[Query], defaults: Piece) -> Piece:
    """Return a panel with a bar for each series."""
    options = {"orientation": "horizontal", "displayMode": "basic", "showUnfilled": True}
    return _panel("bargauge", title, about, _now(queries), _field(defaults), {**_LAST, **options})


def lines(
    title: str,
    about: str,
    queries: Iterable[Query],
    defaults: Piece,
    *,
    stacked: bool = False,
    custom: Piece | None = None,
    colored: Iterable[str] = (),
    overrides: Iterable[Piece] = (),
) -> Piece:
    """Return a chart over time; `colored` names series that have the colours of their kind."""
    stacking = {"mode": "normal" if stacked else "none", "group": "A"}
    style = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 40 if stacked else 10, "showPoints": "never"}
    all_custom = {**style, "spanNulls": False, "stacking": stacking, **(custom or {})}
    all_overrides = [*(_color(name) for name in colored), *overrides]
    legend = {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    field = _field({**defaults, "min": 0, "custom": all_custom}, all_overrides)
    return {**_panel("timeseries", title, about, queries, field, options), "interval": "1m"}


def heatmap(title: str, about: str, query: Query, unit: str) -> Piece:
    """Return a heat map of a native histogram."""
    options = {
        "calculate": False,
        "yAxis": {"unit": unit, "axisPlacement": "left"},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "tooltip": {"mode": "single", "yHistogram": False},
        "cellGap": 1,
    }
    scale = {"scaleDistribution": {"type": "log", "log": 2}}
    return _panel("heatmap", title, about, [query], _field({"unit": "short", "custom": scale}), options)


def states(title: str, about: str, queries: Iterable[Query]) -> Piece:
    """Return a panel that shows over time when each series is there."""
    mapped = {"type": "value", "options": {"1": {"text": "firing", "color": "red", "index": 0}}}
    options = {"showValue": "never", "mergeValues": True, "legend": {"displayMode": "list", "placement": "bottom"}}
    return _panel("state-timeline", title, about, queries, _field({"mappings": [mapped]}), options)


def breached_traces() -> Piece:
    """Return a table of the newest traces with a breach, out of Jaeger."""
    links = [
        _link("Why it was slow, in stagetrace", "${page}/trace/${__value.raw}"),
        _link("In Jaeger", "${jaeger}/trace/${__value.raw}"),
    ]
    of_trace = {"id": "byRegexp", "options": "/^Trace ID$/i"}
    overrides = [{"matcher": of_trace, "properties": [{"id": "links", "value": links}]}]
    search = {"queryType": "search", "service": "${service}", "tags": f"{semconv.SLA_BREACHED}=true", "limit": 50}
    return {
        "type": "table",
        "title": "Traces with a breach",
        "description": "The newest that Jaeger finds: 50 at most.",
        "datasource": TRACES,
        "targets": [{"refId": "A", "datasource": TRACES, **search}],
        "fieldConfig": {"defaults": {}, "overrides": overrides},
        "options": {"showHeader": True, "cellHeight": "sm"},
    }


def row(title: str) -> Piece:
    """Return the heading of the panels below it."""
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def variables(service: Piece, objectives: Iterable[str], page: str, jaeger: str) -> Iterable[Piece]:
    """Yield the choices at the top of a board: data sources, service, objectives, addresses."""
    for name, label, kind in (("metrics", "Metrics", "prometheus"), ("traces", "Traces", "jaeger")):
        current = {"text": f"stagetrace {name}", "value": f"stagetrace-{name}"}
        source = {"type": "datasource", "query": kind, "refresh": 1, "hide": 0, "current": current}
        yield {"name": name, "label": label, **source}
    yield service
    options = [{"text": name, "value": name, "selected": False} for name in objectives]
    yield {
        "name": "objective",
        "label": "Objective",
        "type": "custom",
        "query": ",".join(name.replace(",", "\\,") for name in objectives),
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [{"text": "All", "value": "$__all", "selected": True}, *options],
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "hide": 0,
    }
    for name, label, address in (("page", "stagetrace", page), ("jaeger", "Jaeger", jaeger)):
        current = {"text": address, "value": address}
        yield {"name": name, "label": label, "type": "textbox", "query": address, "current": current, "hide": 0}


def arranged(rows: Iterable[tuple[str, int, list[Piece]]]) -> list[Piece]:
    """Return panels with their numbers and places; a row has a title or none, its height, and panels side by side."""
    found: list[Piece] = []
    y = 0
    for title, height, panels in rows:
        if title:
            found.append({"id": len(found) + 1, **row(title), "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y}})
            y += 1
        width = WIDTH // len(panels)
        for place, panel in enumerate(panels):
            at = {"h": height, "w": width, "x": place * width, "y": y}
            found.append({"id": len(found) + 1, **panel, "gridPos": at})
        y += height
    return found


_LAST: Final[Piece] = {"reduceOptions": {"calcs": ["lastNotNull"]}}


def _panel(kind: str, title: str, about: str, queries: Iterable[Query], field: Piece, options: Piece) -> Piece:
    targets = [
        {
            "refId": _reference(place),
            "datasource": METRICS,
            "expr": one.expr,
            "legendFormat": one.legend,
            **one.more,
        }
        for place, one in enumerate(queries)
    ]
    about_it = {"type": kind, "title": title, "description": about, "datasource": METRICS}
    return {**about_it, "targets": targets, "fieldConfig": field, "options": options}


def _reference(place: int) -> str:
    """Return the name of a query: A to Z, then A1 to Z1 ..."""
    letter = chr(ord("A") + place % 26)
    return f"{letter}{place // 26}" if place >= 26 else letter  # noqa: PLR2004


def _now(queries: Iterable[Query]) -> Iterable[Query]:
    return [one._replace(more={**one.more, "instant": True}) for one in queries]


def _field(defaults: Piece, overrides: Iterable[Piece] = ()) -> Piece:
    return {"defaults": defaults, "overrides": list(overrides)}


def _color(name: str) -> Piece:
    color = {"mode": "fixed", "fixedColor": _COLORS[name]}
    matcher = {"id": "byName", "options": name}
    return {"matcher": matcher, "properties": [{"id": "color", "value": color}]}
