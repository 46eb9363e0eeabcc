"""Pieces of a Grafana board, as collector-config/grafana/stagetrace.json has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Iterable

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
