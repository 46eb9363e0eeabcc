"""The indicator of an SLO as entries of a policy file: one of ours, or a histogram's buckets in Prometheus."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.policy.yaml_nodes import Mapping, Node, Scalar, mapping_of, scalar_of
from stagetrace.rules.openslo import OURS
from stagetrace.semconv import SLA_OBJECTIVE

if TYPE_CHECKING:
    from stagetrace.rules.openslo_objects import Object, Objects

_PROMETHEUS: Final = "prometheus"
_QUERIES: Final = ("query", "promql")


class Indicator(NamedTuple):
    """What is good: `entries` of an objective. `is_threshold`: the bound is the value of each objective of the SLO."""

    entries: dict[str, Node]
    is_ours: bool
    is_threshold: bool = False


def indicator(slo: Object, objects: Objects) -> Indicator | None:
    """Return the indicator of an SLO; None, with a problem, where a policy cannot express it."""
    inline, name = slo.look("spec", "indicator"), slo.text("spec", "indicatorRef")
    if (inline is None) == (name is None):
        at = slo.at if name is None else name.at
        which = "neither" if inline is None else "both"
        slo.wrong("spec", at, f"has {which} indicator and indicatorRef", "write one of the two")
        return None
    if name is not None:
        sli = objects.get("SLI", name.text)
        if sli is None:
            slo.wrong("spec.indicatorRef", name.at, f"is {name.text[:80]!r}, and no SLI of the file has that name")
            return None
        return _read(sli, ("spec",))
    slo.take("spec", "indicator", "metadata", "name")
    return _read(slo, ("spec", "indicator", "spec"))


def _read(holder: Object, path: tuple[str, ...]) -> Indicator | None:
    threshold, ratio = holder.look(*path, "thresholdMetric"), holder.look(*path, "ratioMetric")
    if (threshold is None) == (ratio is None):
        what = f"has {'neither' if ratio is None else 'both'} ratioMetric and thresholdMetric"
        holder.wrong(".".join(path), holder.at, what, "write one of the two")
        return None
    if threshold is not None:
        return _threshold(holder, (*path, "thresholdMetric"))
    return _ratio(holder, (*path, "ratioMetric"))


def _threshold(holder: Object, path: tuple[str, ...]) -> Indicator | None:
    """Return a bound that each objective of an SLO has as its value; only of requests that stagetrace records."""
    said = _ours(holder, path)
    if said is None:
        kind = holder.look(*path, "metricSource", "type")
        what = f"reads values from {_shown(kind)}, of which it is unknown whether each is that of one request"
        at = holder.at if kind is None else kind.at
        holder.wrong(f"{'.'.join(path)}.metricSource", at, what, f"write type: {OURS}, and spec.objective.match")
        return None
    return Indicator(said, is_ours=False, is_threshold=True)


def _ratio(holder: Object, path: tuple[str, ...]) -> Indicator | None:
    field = ".".join(path)
    for key in ("raw", "bad"):
        node = holder.look(*path, key)
        if node is not None:
            holder.wrong(f"{field}.{key}", node.at, "cannot be expressed: an objective says which requests are good")
            return None
    said = _ours(holder, (*path, "good"))
    if said is not None:
        holder.take(*path, "counter")
        for key in ("good", "total"):
            _query_of_ours(holder, (*path, key, "metricSource"))
        return Indicator(said, is_ours=True)
    return _buckets(holder, path)


def _ours(holder: Object, path: tuple[str, ...]) -> dict[str, Node] | None:
    """Return `spec.objective` of a metric source of ours."""
    source = (*path, "metricSource")
    found = holder.look(*source, "spec", "objective")
    kind = holder.look(*source, "type")
    if not isinstance(found, Mapping) or not is_ours(kind):
        return None
    for key in ("metricSourceRef", "type"):
        holder.take(*source, key)
    holder.took(found)
    return dict(found.entries)


def _query_of_ours(holder: Object, source: tuple[str, ...]) -> None:
    """Count a query as read that other tools get the counts of the objective by; any other one is left."""
    for key in ("metricSourceRef", "type"):
        holder.take(*source, key)
    query = holder.look(*source, "spec", "query")
    if isinstance(query, Scalar) and SLA_OBJECTIVE.replace(".", "_") in query.text:
        holder.took(query)


def is_ours(kind: Node | None) -> bool:
    """Return whether a type of a source is ours, or what people make of it for a tool that asks Prometheus."""
    return isinstance(kind, Scalar) and kind.text.lower() in (OURS, _PROMETHEUS)


def _buckets(holder: Object, path: tuple[str, ...]) -> Indicator | None:
    """Return the share of fast requests out of a histogram that another program records."""
    field = ".".join(path)
    queries = []
    for key in ("good", "total"):
        source = (*path, key, "metricSource")
        kind = holder.text(*source, "type")
        if kind is None or kind.text.lower() != _PROMETHEUS:
            node = kind or holder.look(*path, key)
            what = f"is a query to {_shown(kind)}, which stagetrace cannot judge a request by"
            fix = f"write type: {OURS}, and spec.objective with match and within"
            holder.wrong(f"{field}.{key}.metricSource", holder.at if node is None else node.at, what, fix)
            return None
        query = next(filter(None, (holder.text(*source, "spec", one) for one in _QUERIES)), None)
        if query is None:
            holder.wrong(f"{field}.{key}.metricSource.spec", kind.at, "has no query", "write query:")
            return None
        holder.take(*source, "metricSourceRef")
        queries.append(query)
    holder.take(*path, "counter")
    good, total = queries
    try:
        share = share_of(good.text, total.text)
    except ValueError as error:
        holder.wrong(f"{field}.good.metricSource.spec", good.at, f"cannot be expressed: {error}")
        return None
    match: dict[str, Node] = {key: scalar_of(good.at, value, is_text=True) for key, value in share.match.items()}
    entries: dict[str, Node] = {"within": scalar_of(good.at, share.within)}
    return Indicator({**entries, **({"match": mapping_of(good.at, match)} if match else {})}, is_ours=False)


# --- A share of fast requests as people write it for Prometheus: a bucket of a histogram over its count.


def _shown(kind: Node | None) -> str:
    return f"{kind.text[:80]}" if isinstance(kind, Scalar) else "a source without a type"


_SELECTOR: Final = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{(.*)\})?", re.ASCII | re.DOTALL)
_MATCHER: Final = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)', re.ASCII)
_CALL: Final = re.compile(r"(sum|rate|increase)\s*\((.*)\)", re.DOTALL)
_RANGE: Final = re.compile(r"(.*)\[[^\[\]]*\]", re.DOTALL)
_UNITS: Final = (("_milliseconds", "ms"), ("_ms", "ms"), ("_seconds", "s"), ("_microseconds", "us"))
# Labels of histograms of requests, and which part of a match each is: OpenTelemetry's names, and older ones.
_ROUTE: Final = ("http_route", "route", "handler", "path", "endpoint")
_METHOD: Final = ("http_request_method", "http_method", "method")
_RPC_SERVICE: Final = ("rpc_service", "grpc_service")
_RPC_METHOD: Final = ("rpc_method", "grpc_method")
_SERVICE: Final = ("job", "service_name", "service")
_ESCAPED: Final = re.compile(r'\\([\\"])')


class Share(NamedTuple):
    """What such a pair of queries says: the entries of a match, and the bound as a duration."""

    match: dict[str, str]
    within: str


class _Selector(NamedTuple):
    metric: str
    labels: dict[str, str]


def share_of(good: str, total: str) -> Share:
    """Return what two queries say. Raise ValueError where they are something else, with what."""
    fast, all_ = _selector(good), _selector(total)
    base = fast.metric.removesuffix("_bucket")
    if base == fast.metric or all_.metric != f"{base}_count":
        raise ValueError(f"{fast.metric} over {all_.metric} is no bucket of a histogram over its count")
    labels = dict(fast.labels)
    bound = labels.pop("le", "")
    if labels != all_.labels:
        raise ValueError("good and total select different series")
    return Share(_match(labels), _within(base, bound))


def _within(metric: str, bound: str) -> str:
    unit = next((unit for ending, unit in _UNITS if metric.endswith(ending)), None)
    if unit is None:
        raise ValueError(f"the unit of {metric} is unknown: its name ends with none of _seconds, _milliseconds, _ms")
    try:
        found = Decimal(bound)
    except InvalidOperation:
        raise ValueError(f"the bucket has no bound: its label le is {bound!r}") from None
    if not found.is_finite() or found <= 0:
        raise ValueError(f"the bucket of le={bound!r} holds all requests")
    return f"{found:f}{unit}"


def _match(labels: dict[str, str]) -> dict[str, str]:
    """Return the entries of a match. Raise ValueError for a label that is none."""
    left = dict(labels)

    def take(names: tuple[str, ...]) -> str | None:
        return next((left.pop(name) for name in names if name in left), None)

    service, route, method = take(_SERVICE), take(_ROUTE), take(_METHOD)
    rpc_service, rpc_method = take(_RPC_SERVICE), take(_RPC_METHOD)
    if left:
        raise ValueError(f"the label {next(iter(left))} is no part of a match that is known")
    found = {"service": service.rpartition("/")[2]} if service else {}
    if rpc_service or rpc_method:
        if route or method:
            raise ValueError("the labels name both a route and an RPC")
        return {**found, "rpc": f"{rpc_service or '*'}/{rpc_method or '*'}"}
    if route:
        found["route"] = route
    if method:
        found["method"] = method.upper()
    return found


def _selector(query: str) -> _Selector:
    """Return the one selector of a query that only sums it, or takes its rate."""
    text = query.strip()
    while call := _CALL.fullmatch(text):
        text = call.group(2).strip()
    ranged = _RANGE.fullmatch(text)
    found = _SELECTOR.fullmatch((ranged.group(1) if ranged else text).strip())
    if found is None:
        raise ValueError(f"the query {_shortened(query)} is no sum of one series or its rate")
    return _Selector(found.group(1), _labels(found.group(2) or "", query))


def _labels(text: str, query: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    place = 0
    while text[place:].strip():
        match = _MATCHER.match(text, place)
        if match is None:
            raise ValueError(f"the labels of {_shortened(query)} cannot be read")
        name, operator, value = match.groups()
        if operator != "=":
            raise ValueError(f"the label {name} is compared by {operator}, and only = can be expressed")
        labels[name] = _ESCAPED.sub(r"\1", value)
        place = match.end()
    return labels


def _shortened(query: str) -> str:
    return repr(" ".join(query.split())[:100])
