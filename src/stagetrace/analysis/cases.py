"""Breaches and good requests to compare: a case-control sample, all attributes of each request, and the weights.

All breaches are taken, or a sample where they are very many, and as many good requests as a comparison needs; the
weights make each kind stand for all of its requests. A box of times and durations may take the place of the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace import semconv
from stagetrace.analysis.arrays import Array
from stagetrace.analysis.source import Source, by_keys
from stagetrace.columns import names_of

GOOD: Final = 0
BREACH: Final = 1
ANY: Final = 2
MOST: Final = 20_000  # requests of each kind
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
            for keys, texts in (("resource_keys", "resource_texts"), ("keys", "texts")):
                for key, text in zip(row[keys], row[texts], strict=True):
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
    """Return breaches and good requests of a source, about `most` of each; none, if none is judged."""
    (total,) = source.reduce("counts") or [{}]
    breaches, good = float(total.get("breaches") or 0), float(total.get("good") or 0)
    if not total or breaches + good == 0:
        return _make_cases([], [], 0.0, 0.0, total)
    rest = int(total["stored"]) - round(breaches)
    bad, others = _rows(source, _BY_VERDICT, part(most, breaches), part(most, rest))
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
    return [row for row in rows if row["marked"]], [row for row in rows if not row["marked"]]


def _values(box: Box | None) -> dict[str, Any]:
    """Return a box as parameters of a reduction; without one they matter to none."""
    return {f"box_{name.partition('_')[0]}": value for name, value in (box or _NO_BOX)._asdict().items()}


def part(most: int, count: float) -> int:
    """Return the `below` of a reduction that takes about so many of so many."""
    return min(_WHOLE, -(-most * _WHOLE // max(1, int(count))))


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
