"""Which kind of requests got slower: those with a value of an attribute, or with an input of a certain size.

A percentile of all requests hides what happened to few of them. So requests of both sides are sampled with all of
their attributes; within each route every value that enough requests of both sides have is tested: whether the median
of these requests rose, and by more than that of the route's other requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log2
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace import semconv
from stagetrace.analysis.arrays import Array, Floats
from stagetrace.analysis.base import rank_of
from stagetrace.analysis.cases import Cases, coded, number
from stagetrace.analysis.quantiles import Binned, QuantileDifference, needed
from stagetrace.columns import names_of

INPUT_SIZE: Final = "input_size"
_BODY: Final = names_of(semconv.HTTP_REQUEST_BODY_SIZE)
_BATCH: Final = names_of(semconv.ML_BATCH_SIZE)
# Sizes are one kind of their own, routes are the strata, and what a response was is no kind of request.
_NO_KIND: Final = ("http.response.", "http.route", "http.target", "http.status_code", "http.url", "url.", "error.")
_MOST_SHARE: Final = 0.9  # of a route's requests: a kind that most are of is the route itself
_LEAST_LOST: Final = 0.01  # of the time of a route's requests: a kind that costs less is not worth a headline
_SAME: Final = 0.7  # of the requests of two kinds, which then are one by two names
_WITHIN: Final = 0.5  # of the requests of a kind, which then is explained by the other one
_MOST: Final = 5
_MOSTLY: Final = 0.5  # of the time lost, in one stage


@dataclass(frozen=True)
class SlowerKind:
    """Requests of one route with one value, which got slower than the route's others did. Counts are by weight."""

    path: str | None  # None where routes are pooled
    key: str
    value: str | int | None  # of INPUT_SIZE n: 4^n to below 4^(n + 1), -1: empty; None: the attribute is absent
    requests: tuple[float, float]
    route_requests: tuple[float, float]
    p50: QuantileDifference  # ms
    rest: QuantileDifference  # of the route's other requests
    stage: str | None  # where most of the time is lost
    lost_ms: float  # in all requests of b: by the medians
    is_heavy: bool  # that is a part of the route's time which counts, and more than its other requests lost
    rows: Array = field(repr=False, compare=False)  # places of its requests


class Kinds(NamedTuple):
    """The kinds that got slower, most time lost first; `is_part`: out of a sample of the requests."""

    slower: tuple[SlowerKind, ...]
    routes: tuple[str, ...]  # of both sides
    is_part: bool
    in_bytes: bool  # sizes are those of bodies, rather than of batches


class _Requests(NamedTuple):
    """Requests of both sides, as arrays of one length."""

    took: Floats
    weights: Floats
    is_b: Array
    routes: Array
    sizes: Array  # codes


def slower_kinds(
    a: Cases, b: Cases, *, by_route: bool, sizes: bool, resolution: float, alpha: float, sequential: bool
) -> Kinds:
    """Return the kinds of requests whose median surely rose, by at least `resolution` more than that of the others.

    `by_route`: requests of two routes are not compared; `sizes`: within each kind, requests of b are weighted so that
    each size of input is as frequent as in a. `alpha` holds for all kinds together.
    """
    rows = [*a.rows, *b.rows]
    both = (a.attributes.keys() & b.attributes.keys()) - {*_BODY, *_BATCH}
    columns = {key: a.attributes[key] + b.attributes[key] for key in sorted(both) if not key.startswith(_NO_KIND)}
    classes, in_bytes = _sizes(a, b)
    columns[INPUT_SIZE] = classes
    names = [row["path"] if by_route else None for row in rows]
    paths = list(dict.fromkeys(names))
    size_codes = {name: code for code, name in enumerate(dict.fromkeys(classes))}
    requests = _Requests(
        np.array([row["duration_ms"] for row in rows], float),
        np.concatenate([a.weights, b.weights]),
        np.arange(len(rows)) >= len(a.rows),
        np.array([paths.index(name) for name in names], int),
        np.array([size_codes[one] if sizes else 0 for one in classes], int),
    )
    groups = list(_groups(requests, columns, paths, needed(0.5, alpha, sequential=sequential)))
    level = alpha / max(1, len(groups))
    found = []
    for path, key, value, where, route in groups:
        if _may_be_slower(requests, where, route, resolution):
            made = _tested(requests, rows, (paths[path], key, value), where, route, level, sequential=sequential)
            if made is not None and (made.p50.difference or 0) >= resolution:
                found.append(made)
    routes = tuple(sorted({str(row["path"]) for row in rows}))
    is_part = len(a.rows) < a.stored or len(b.rows) < b.stored
    return Kinds(tuple(_distinct(found)[:_MOST]), routes, is_part, in_bytes)


def _sizes(a: Cases, b: Cases) -> tuple[list[str | None], bool]:
    """Return the class of each request's input, as the reduction `histograms` has it, and whether it is of bytes."""
    found: list[str | None] = []
    in_bytes = False
    for row in (*a.rows, *b.rows):
        texts = row["attributes"]
        body = next((number(texts[name]) for name in _BODY if name in texts), None)
        batch = next((number(texts[name]) for name in _BATCH if name in texts), None)
        in_bytes = in_bytes or body is not None
        size = batch if body is None else body
        found.append(None if size is None or size < 0 else str(floor(log2(size) / 2)) if size else "-1")
    return found, in_bytes


def _groups(
    requests: _Requests, columns: Mapping[str, list[str | None]], paths: Sequence[str | None], least: int
) -> Iterator[tuple[int, str, str | None, Array, Array]]:
    """Yield the route, key and value of each group that both sides have enough of, its requests and the route's."""
    routes = [requests.routes == place for place in range(len(paths))]
    for key, column in columns.items():
        made = coded(column, 2 * least)
        if made is None:
            continue
        for place, route in enumerate(routes):
            sizes = [np.bincount(made.codes[route & side], minlength=1) for side in (~requests.is_b, requests.is_b)]
            width = min(len(sizes[0]), len(sizes[1]), len(made.values))
            whole = int(np.count_nonzero(route & requests.is_b))
            for code in range(width):
                if min(sizes[0][code], sizes[1][code]) >= least and sizes[1][code] <= _MOST_SHARE * whole:
                    yield place, key, made.values[code], route & (made.codes == code), route


def _may_be_slower(requests: _Requests, where: Array, route: Array, resolution: float) -> bool:
    """Return whether the median rose at all, and by more than that of the others: without a test, which takes long."""
    own, rest = (_ratio(requests, one) for one in (where, route & ~where))
    return own >= (1 + resolution) * max(1.0, rest)


def _ratio(requests: _Requests, where: Array) -> float:
    medians = [one.quantile(0.5) for one in _binned(requests, where)]
    return medians[1] / medians[0] if medians[0] and medians[1] is not None else 0.0


def _binned(requests: _Requests, where: Array) -> tuple[Binned, Binned]:
    """Return the durations of both sides, of b weighted so that sizes of input are as frequent as in a."""
    sides = [where & ~requests.is_b, where & requests.is_b]
    width = int(requests.sizes.max(initial=0)) + 1
    counts = [np.bincount(requests.sizes[side], requests.weights[side], width) for side in sides]
    both = (counts[0] > 0) & (counts[1] > 0)
    shares = [np.where(both, one, 0.0) / max(1e-300, float(one[both].sum())) for one in counts]
    factors = np.divide(shares[0], shares[1], out=np.zeros(width), where=shares[1] > 0)
    if np.count_nonzero(both) == 1:
        factors = both.astype(float)
    made = []
    for side, factor in zip(sides, (both.astype(float), factors), strict=True):
        weights = requests.weights[side] * factor[requests.sizes[side]]
        order = np.argsort(requests.took[side][weights > 0], kind="stable")
        took, kept = requests.took[side][weights > 0][order], weights[weights > 0][order]
        made.append(Binned(took, took, kept, kept**2, np.ones(len(took))))
    return made[0], made[1]


def _tested(
    requests: _Requests,
    rows: Sequence[Mapping[str, Any]],
    name: tuple[str | None, str, str | None],
    where: Array,
    route: Array,
    alpha: float,
    *,
    sequential: bool,
) -> SlowerKind | None:
    """Return the kind if it surely got slower, and surely by more than the others; else None."""
    sides = [_binned(requests, one) for one in (where, route & ~where)]
    p50, rest = (a.difference(b, 0.5, alpha, sequential=sequential) for a, b in sides)
    if p50.shift[0] <= 0 or p50.interval[0] <= rest.interval[1] or p50.a is None or p50.b is None:
        return None
    counts, of_route = (
        (float(requests.weights[one & ~requests.is_b].sum()), float(requests.weights[one & requests.is_b].sum()))
        for one in (where, route)
    )
    lost = counts[1] * (p50.b - p50.a)
    others = (of_route[1] - counts[1]) * max(0.0, (rest.b or 0.0) - (rest.a or 0.0)) if rest.shift[0] > 0 else 0.0
    here = route & requests.is_b
    spent = float(requests.weights[here] @ requests.took[here])
    path, key, text = name
    value = int(text) if key == INPUT_SIZE and text is not None else text
    is_heavy = lost >= max(others, _LEAST_LOST * spent)
    stage = _stage(requests, rows, where)
    return SlowerKind(path, key, value, counts, of_route, p50, rest, stage, lost, is_heavy, np.flatnonzero(where))


def _stage(requests: _Requests, rows: Sequence[Mapping[str, Any]], where: Array) -> str | None:
    """Return the stage that most of the lost time is in, by the means, if one has half of it."""
    lost: dict[str, float] = {}
    for side, sign in ((where & ~requests.is_b, -1), (where & requests.is_b, 1)):
        places = np.flatnonzero(side).tolist()
        whole = float(requests.weights[side].sum())
        for place in places:
            row = rows[place]
            for stage, took in zip(row["stage_names"], row["stage_ms"], strict=True):
                lost[stage] = lost.get(stage, 0.0) + sign * float(requests.weights[place]) * (took or 0.0) / whole
    most = max(lost, key=lambda stage: lost[stage], default=None)
    risen = sum(one for one in lost.values() if one > 0)
    return most if most is not None and 0 < _MOSTLY * risen <= lost[most] else None


def _distinct(found: Sequence[SlowerKind]) -> list[SlowerKind]:
    """Return kinds, most time lost first, one of those that mean the same requests: by the name that people know."""
    kept: list[SlowerKind] = []
    for one in sorted(found, key=lambda kind: (-kind.lost_ms, _rank(kind), kind.key, str(kind.value))):
        shared = [len(np.intersect1d(one.rows, other.rows, assume_unique=True)) for other in kept]
        for place, common in enumerate(shared):
            other = kept[place]
            if common >= _SAME * (len(one.rows) + len(other.rows) - common):
                kept[place] = min(other, one, key=_rank)
                break
            if common >= _WITHIN * min(len(one.rows), len(other.rows)):
                break
        else:
            kept.append(one)
    return kept


def _rank(kind: SlowerKind) -> tuple[int, int, int]:
    """Return how well people know a kind by its name, the least best."""
    return rank_of({kind.key: None if kind.value is None else str(kind.value)})
