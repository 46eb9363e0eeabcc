"""Breaches and good requests to compare: a case-control sample, all attributes of each request, and the weights.

All breaches are taken, or a sample where they are very many, and as many good requests as a comparison needs; the
weights make each kind stand for all of its requests. A box of times and durations may take the place of the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import isfinite
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from stagetrace import semconv
from stagetrace.analysis.arrays import Array
from stagetrace.analysis.base import Source, by_keys
from stagetrace.columns import names_of

GOOD: Final = 0
BREACH: Final = 1
ANY: Final = 2
MOST: Final = 20_000  # requests of each kind
_ENOUGH: Final = 5_000  # good ones, beside few breaches
_FOR_EACH: Final = 2  # good ones for each breach: with any number of them, errors would be a fifth smaller
# The kinds of requests that the reduction `cases` tells apart.
_BY_VERDICT: Final = 0
_BY_BOX: Final = 1
_ANY: Final = 2
_WHOLE: Final = (1 << 64) - 1  # the greatest hash
_MOST_ROWS: Final = 200_000
_MOST_KEYS: Final = 60
_SLOW: Final = 0.95  # quantile of normal requests from which on one is slow, where none is judged
# Our attributes that describe a request, not its outcome. All others are measured, some for breaches alone.
_GIVEN: Final = frozenset(
    {
        semconv.ML_MODEL_NAME,
        semconv.ML_MODEL_VERSION,
        semconv.ML_FRAMEWORK,
        semconv.ML_BATCH_SIZE,
        semconv.ML_COLD_START,
        semconv.HTTP_REQUEST_BODY_SIZE,
        semconv.HTTP_RESPONSE_BODY_SIZE,
    }
)
_MEASURED: Final = frozenset(name for one in semconv.ATTRIBUTES for name in names_of(one)) - _GIVEN
_OURS: Final = ("sla.", "ml.stage.", "stagetrace.")
# They identify connections, processes and threads, which change with time: values differ by when they occur.
_PASSING: Final = frozenset(
    {
        "client.port",
        "network.peer.port",
        "net.peer.port",
        "net.sock.peer.port",
        "source.port",
        "process.pid",
        "thread.id",
    }
)
_TIMES: Final = ("_ms", ".ms", "_ns", "_us", "_seconds", "duration", "latency")


class Box(NamedTuple):
    """Requests that began within [since_ns, until_ns) and took [least_ms, most_ms)."""

    since_ns: int
    until_ns: int
    least_ms: float
    most_ms: float


_NO_BOX: Final = Box(0, 0, 0.0, 0.0)


@dataclass(frozen=True)
class Cases:
    """Requests, breaches (or slow ones, or those of a box) first; `weights` add up to the stored number of each kind.

    Of a box, "breaches" are the requests in it, and "good" ones those that are not.
    """

    rows: Sequence[Mapping[str, Any]]
    breached: Array
    weights: Array
    breaches: float  # in all: sums of weights
    good: float
    stored: int  # judged requests in the store
    is_estimate: bool  # a head sampler kept a part of the good requests
    is_unknown: bool  # nor is it known which part
    by_time: bool = False  # no verdict: the slow ones, by the normal window

    @property
    def strata(self) -> list[tuple[str, str]]:
        """Return the stratum of each request."""
        return [(row["service"], row["path"]) for row in self.rows]

    @property
    def starts(self) -> list[int]:
        """Return when each began, ns."""
        return [row["start_unix_nano"] for row in self.rows]

    @cached_property
    def attributes(self) -> dict[str, list[str | None]]:
        """Return key -> text of each request; of the span, or else of its resource. The keys that most have."""
        columns: dict[str, list[str | None]] = {}
        measured: set[str] = set()
        for place, row in enumerate(self.rows):
            for of in ("resource", "attributes"):
                for key, text in row[of].items():
                    if key in measured:
                        continue
                    if key not in columns:
                        if not is_given(key):
                            measured.add(key)
                            continue
                        columns[key] = [None] * len(self.rows)
                    columns[key][place] = text
        most = sorted(columns, key=lambda key: (columns[key].count(None), key))[:_MOST_KEYS]
        return {key: columns[key] for key in sorted(most)}


def is_given(key: str) -> bool:
    """Return whether an attribute describes a request; its duration or outcome is no cause."""
    return key in _GIVEN or not (key in _MEASURED or key in _PASSING or key.startswith(_OURS) or key.endswith(_TIMES))


def ask(source: Source, most: int = MOST) -> Cases:
    """Return breaches and good requests of a source, about `most` of each at most; none, if none is judged."""
    (total,) = source.reduce("counts") or [{}]
    breaches, good = float(total.get("breaches") or 0), float(total.get("good") or 0)
    if not total or breaches + good == 0:
        return _make_cases([], [], 0.0, 0.0, total)
    rest = int(total["stored"]) - round(breaches)
    enough = min(most, max(_ENOUGH, _FOR_EACH * breaches))
    bad, others = _rows(source, _BY_VERDICT, part(most, breaches), part(enough, rest))
    return _make_cases(bad, others, breaches, good, total)


def ask_box(source: Source, box: Box, most: int = MOST) -> Cases:
    """Return the requests in a box as breaches, and all others as good ones, about `most` of each."""
    sides = source.reduce("box_counts", **_values(box))
    inside, others = ([row for row in sides if row["inside"] is is_in] for is_in in (True, False))
    stored, sums = ([sum(row[name] for row in side) for side in (inside, others)] for name in ("stored", "requests"))
    bad, rest = _rows(source, _BY_BOX, part(most, stored[0]), part(most, stored[1]), box)
    total = {
        "stored": sum(stored),
        "sampled": any(row["sampled"] for row in sides),
        "unknown": any(row["unknown"] for row in sides),
    }
    return _make_cases(bad, rest, float(sums[0]), float(sums[1]), total)


def longest(source: Source, box: Box | None, most: int) -> list[dict[str, Any]]:
    """Return the requests of a box that took longest; without one, the breaches that did."""
    return source.reduce("longest", kind=_BY_VERDICT if box is None else _BY_BOX, most=most, **_values(box))


def ask_any(source: Source) -> Cases:
    """Return requests whether they are judged or not, none of them as a breach."""
    rows, total = _any_of(source)
    return replace(_make_cases([], rows, 0.0, float(total.get("requests") or 0), total), good=0.0)


def _any_of(source: Source) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Return a sample of requests, whatever their verdicts, and the counts of all."""
    (total,) = source.reduce("counts") or [{}]
    count = int(total.get("stored") or 0)
    return _rows(source, _ANY, 0, part(MOST, count))[1] if count else [], total


def _rows(
    source: Source, kind: int, marked_below: int, below: int, box: Box | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the requests that are marked, and the others: out of one scan, which takes most of the time."""
    rows = source.reduce("cases", kind=kind, marked_below=marked_below, below=below, most=_MOST_ROWS, **_values(box))
    resources: dict[str, dict[str, str]] = {}  # few different ones
    for row in rows:
        row["attributes"], text = json.loads(row["attributes"]), row["resource"]
        if text not in resources:
            resources[text] = json.loads(text)
        row["resource"] = resources[text]
    return [row for row in rows if row["marked"]], [row for row in rows if not row["marked"]]


def _values(box: Box | None) -> dict[str, Any]:
    """Return a box as parameters of a reduction; without one they matter to none."""
    return {f"box_{name.partition('_')[0]}": value for name, value in (box or _NO_BOX)._asdict().items()}


def part(most: float, count: float) -> int:
    """Return the `below` of a reduction that takes about so many of so many."""
    return min(_WHOLE, -(-int(most) * _WHOLE // max(1, int(count))))


def _make_cases(
    bad: list[dict[str, Any]],
    rest: list[dict[str, Any]],
    breaches: float,
    good: float,
    total: Mapping[str, Any],
    *,
    by_time: bool = False,
) -> Cases:
    for some in (bad, rest):  # a store gives them in any order
        some.sort(key=lambda row: (row["start_unix_nano"], row["trace_id"], row["span_id"]))
    weights = np.array([row["weight"] for row in (*bad, *rest)], float)
    for which, sums in ((slice(len(bad)), breaches), (slice(len(bad), None), good)):
        if weights[which].sum() > 0 and sums > 0:
            weights[which] *= sums / weights[which].sum()
    return Cases(
        [*bad, *rest],
        np.arange(len(weights)) < len(bad),
        weights,
        breaches,
        good,
        int(total.get("stored") or 0),
        bool(total.get("sampled")),
        bool(total.get("unknown")),
        by_time,
    )


def ask_slow(source: Source, normal: Source) -> Cases:
    """Return requests by whether they took longer than 95 % of the normal ones of their route did: without verdicts."""
    (rows, total), (baseline, _) = _any_of(source), _any_of(normal)
    limits = _limits(baseline)
    judged = [row for row in rows if (row["service"], row["path"]) in limits]
    slow = [row for row in judged if row["duration_ms"] > limits[row["service"], row["path"]]]
    rest = [row for row in judged if row["duration_ms"] <= limits[row["service"], row["path"]]]
    sums = [sum(row["weight"] for row in some) for some in (slow, rest)]
    grown = float(total.get("requests") or 0) / max(1e-9, sum(row["weight"] for row in rows)) if rows else 1.0
    return _make_cases(slow, rest, sums[0] * grown, sums[1] * grown, total, by_time=True)


def _limits(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    routes = by_keys(rows, ("service", "path"))
    return {key: float(np.quantile([row["duration_ms"] for row in of], _SLOW)) for key, of in routes.items()}


# --- An attribute of many requests as small integers: one for each value that enough of them have.

MOST_VALUES: Final = 1000  # of one key, the most frequent
_BINS_FROM: Final = 20  # distinct numbers, for them to be divided into bins
_QUANTILES: Final = (0.25, 0.5, 0.75, 0.9, 0.99)
_FEW: Final = 0.5  # a key of which more than this share of the requests have a value of their own is an id


_Unions: TypeAlias = "Sequence[tuple[str, Sequence[str]]]"


@dataclass(frozen=True)
class Coded:
    """The code of each request, a place in `values`; `len(values)` for a value that is none of them."""

    codes: Array
    values: tuple[str | None, ...]  # the most frequent first
    has_others: bool
    unions: tuple[tuple[str, tuple[int, ...]], ...] = ()  # of ranges: all beyond an edge, and all up to it

    def shortened(self, most: int) -> Coded:
        """Return it with the most frequent values alone."""
        if len(self.values) <= most:
            return self
        return Coded(np.minimum(self.codes, most), self.values[:most], has_others=True)


def coded(column: Sequence[str | None], least: int, *, is_size: bool = False) -> Coded | None:
    """Return the values that at least so many requests have; None where almost each request has its own.

    Numbers of many values become ranges between quantiles (25, 50, 75, 90 and 99 %). `is_size`: few numbers are in an
    order, too.
    """
    places = {value: place for place, value in enumerate(dict.fromkeys(column))}
    codes = np.fromiter(map(places.__getitem__, column), np.int64, len(column))
    if len(places) >= _BINS_FROM:
        binned = _binned(list(places), codes)
        if binned is not None:
            codes, names, unions = binned
            return _with_unions(_frequent(codes, names, least), unions)
        present = len(column) - (np.count_nonzero(codes == places[None]) if None in places else 0)
        if len(places) > max(_BINS_FROM, _FEW * present):
            return None
    made = _frequent(codes, list(places), least)
    ordered = sorted((found, name) for name in made.values if name is not None and (found := number(name)) is not None)
    if is_size and len(ordered) >= len([name for name in made.values if name is not None]):
        return _with_unions(made, list(_beyond([edge for edge, _ in ordered[:-1]], [name for _, name in ordered])))
    return made


def _with_unions(made: Coded, unions: _Unions) -> Coded:
    """Return it with those of these sets of values that are more than one of its values."""
    places = {name: place for place, name in enumerate(made.values)}
    kept = [(name, tuple(places[one] for one in of if one in places)) for name, of in unions]
    return replace(made, unions=tuple((name, of) for name, of in kept if len(of) > 1))


def _beyond(edges: Sequence[float], labels: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield, for the end of each value but the last, what is beyond it and what is up to it."""
    for place, edge in enumerate(edges, 1):
        yield f"over {_text(edge)}", labels[place:]
        yield f"up to {_text(edge)}", labels[:place]


def _frequent(codes: Array, names: list[str | None], least: int) -> Coded:
    sizes = np.bincount(codes, minlength=len(names))
    order = np.argsort(-sizes, kind="stable")
    kept = order[sizes[order] >= least][:MOST_VALUES]
    recode = np.full(len(names), len(kept))
    recode[kept] = np.arange(len(kept))
    return Coded(recode[codes], tuple(names[place] for place in kept), has_others=bool(sizes.sum() > sizes[kept].sum()))


def _binned(names: list[str | None], codes: Array) -> tuple[Array, list[str | None], _Unions] | None:
    """Return codes and names of ranges, and of what is beyond or up to an edge, if all values are numbers.

    Absence remains a value of its own.
    """
    numbers = [number(name) for name in names]
    if any(one is None and name is not None for one, name in zip(numbers, names, strict=True)):
        return None
    of_value = np.array([np.nan if one is None else one for one in numbers])
    values = of_value[codes]
    there = ~np.isnan(values)
    edges = np.unique(np.quantile(values[there], _QUANTILES, method="inverted_cdf"))
    low, high = values[there].min(), values[there].max()
    edges = edges[edges < high]
    if not len(edges):
        return None
    ends = [low, *edges, high]
    labels = [range_text(first, last, is_first=not place) for place, (first, last) in enumerate(pairwise(ends))]
    bins = np.where(there, np.searchsorted(edges, np.where(there, values, low), side="left"), len(labels))
    return bins, [*labels, None], list(_beyond(edges.tolist(), labels))


def range_text(low: float, high: float, *, is_first: bool) -> str:
    """Return how a range is written that does not include its low end, unless it is the first one."""
    return f"{_text(low)} to {_text(high)}" if is_first else f"over {_text(low)}, to {_text(high)}"


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else f"{value:g}"


def number(text: str | None) -> float | None:
    """Return the finite number that a text is, or None."""
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        return None
    return found if isfinite(found) else None
