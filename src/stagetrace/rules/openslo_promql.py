"""A share of fast requests as people write it for Prometheus: a bucket of a histogram over its count."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

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


def share(good: str, total: str) -> Share:
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
        raise ValueError(f"the query {_shown(query)} is no sum of one series or its rate")
    return _Selector(found.group(1), _labels(found.group(2) or "", query))


def _labels(text: str, query: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    place = 0
    while text[place:].strip():
        match = _MATCHER.match(text, place)
        if match is None:
            raise ValueError(f"the labels of {_shown(query)} cannot be read")
        name, operator, value = match.groups()
        if operator != "=":
            raise ValueError(f"the label {name} is compared by {operator}, and only = can be expressed")
        labels[name] = _ESCAPED.sub(r"\1", value)
        place = match.end()
    return labels


def _shown(query: str) -> str:
    return repr(" ".join(query.split())[:100])
