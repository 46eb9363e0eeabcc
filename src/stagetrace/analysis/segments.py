"""How segments of the requests differ: breaches, latency, stages, their part of the excess, against the rest.

Out of histograms by segment, service, route and duration (reduction `segments`): in memory are the largest ones alone;
all others are summed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf, log
from typing import Any, Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.cases import Cases
from stagetrace.analysis.statistics import Cells, benjamini_hochberg, one_sided, weighted_median
from stagetrace.semconv import STAGES

ALPHA: Final = 0.05
LEAST_P50: Final = 10  # requests
LEAST_P99: Final = 100
_CERTAIN: Final = 1e6  # prior breaches and good requests where segments do not differ beyond chance
_STAGES: Final = {f"{stage.replace('.', '_')}_sum": stage for stage in (*STAGES, "other")}
Interval = tuple[float, float]


@dataclass(frozen=True)
class Segment:
    """One segment; counts are sums of weights. None where nothing is judged, or there are not enough requests."""

    segment: str | None  # None: the attribute is absent
    requests: float
    stored: int
    judged: float
    breaches: float
    breach_share: float | None
    interval: Interval | None  # of 95 % (Clopper and Pearson)
    shrunk: float | None  # the share, drawn to that of all segments by as little as it is known
    shrunk_interval: Interval | None
    rest_share: float | None  # of all other segments
    p50_ms: float | None
    p99_ms: float | None
    needed: int | None  # requests needed for the p99, where it is unknown
    stages: Mapping[str, float]  # shares of the time
    excess_ms: float  # time over the thresholds
    excess_share: float | None
    q_value: float | None  # of its breaches being as frequent as the others' on the same routes; unjudged: of latency
    latency_q_value: float | None  # of its durations being as long
    is_longer: bool  # rather than shorter, where they differ


@dataclass(frozen=True)
class Segments:
    """The largest segments, by requests, and the sum of all others."""

    segments: tuple[Segment, ...]
    others: Segment | None
    other_segments: int
    share: float | None  # of breaches, over all
    prior: tuple[float, float] | None  # breaches and good requests that each share is drawn by; None: unjudged
    is_estimate: bool
    is_unknown: bool
    requests: float

    @property
    def different(self) -> tuple[Segment, ...]:
        """Return segments whose breach share (unjudged: latency) differs from the rest's, surest first."""
        found = [one for one in self.segments if one.q_value is not None and one.q_value <= ALPHA]
        return tuple(sorted(found, key=lambda one: one.q_value or 0.0))


class _Table(NamedTuple):
    """Rows of the reduction as arrays: of each place, by stratum or by stratum and bucket."""

    names: list[str | None]
    places: Array
    strata: Array
    routes: int  # how many strata


def segments(rows: Sequence[Mapping[str, Any]]) -> Segments:
    """Return the segments of rows as the reduction `segments` gives them; place 0 is all others together."""
    if not rows:
        return Segments((), None, 0, None, None, is_estimate=False, is_unknown=False, requests=0.0)
    order = sorted({row["place"] for row in rows}, key=lambda place: place or np.inf)  # all others last
    names = {row["place"]: row["segment"] for row in rows}
    strata = {key: at for at, key in enumerate(dict.fromkeys((row["service"], row["path"]) for row in rows))}
    at = {place: number for number, place in enumerate(order)}
    table = _Table(
        [names[place] for place in order],
        np.array([at[row["place"]] for row in rows]),
        np.array([strata[row["service"], row["path"]] for row in rows]),
        len(strata),
    )
    sums = {
        name: _by_place(table, _column(rows, name)) for name in ("requests", "good", "breaches", "over_ms", "stored")
    }
    unknown = any(row["unknown"] for row in rows)
    judged = sums["good"] + sums["breaches"]
    breach_p = _of_breaches(table, rows) if judged.sum() else None
    latency_p, longer = _of_latency(table, rows)
    # What all others together do is no segment to be tested.
    tested = len(order) - (order[-1] == 0)
    tests = [latency_p[:tested]] if breach_p is None else [breach_p[:tested], latency_p[:tested]]
    q_values = np.split(benjamini_hochberg(np.concatenate(tests)), len(tests))
    prior = _prior(sums["breaches"], judged) if breach_p is not None else None
    effective = _effective(table, rows)
    stages = _stage_shares(table, rows)
    made = []
    for place, name in enumerate(table.names):
        is_tested = place < tested
        q_value = float(q_values[0][place]) if is_tested else None
        made.append(
            Segment(
                name,
                float(sums["requests"][place]),
                int(sums["stored"][place]),
                float(judged[place]),
                float(sums["breaches"][place]),
                **_shares(sums["breaches"], judged, effective, prior, place),
                **_quantiles(rows, table, place),
                stages=stages[place],
                excess_ms=float(sums["over_ms"][place]),
                excess_share=_ratio(sums["over_ms"][place], sums["over_ms"].sum()),
                q_value=q_value,
                latency_q_value=float(q_values[-1][place]) if is_tested else None,
                is_longer=bool(longer[place]),
            )
        )
    return Segments(
        tuple(made[:tested]),
        made[-1] if tested < len(made) else None,
        max(0, int(rows[0]["groups"]) - tested),
        _ratio(sums["breaches"].sum(), judged.sum()),
        prior,
        any(row["sampled"] for row in rows),
        unknown,
        float(sums["requests"].sum()),
    )


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> Array:
    return np.array([row[name] for row in rows], float)


def _by_place(table: _Table, values: Array) -> Array:
    return np.asarray(np.bincount(table.places, values, len(table.names)))


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _scale(weights: Array, squares: Array) -> float:
    """Return how many rows a weighted one is worth, by Kish's effective size."""
    return float(weights.sum() / squares.sum()) if squares.sum() > 0 else 1.0


def _effective(table: _Table, rows: Sequence[Mapping[str, Any]]) -> Array:
    """Return the effective number of good requests of each segment."""
    good, squares = (_by_place(table, _column(rows, name)) for name in ("good", "squares_good"))
    return np.asarray(np.divide(good**2, squares, out=np.zeros_like(good), where=squares > 0))


def _of_breaches(table: _Table, rows: Sequence[Mapping[str, Any]]) -> Array:
    """Return two-sided p-values of each segment's breaches against the rest's, exactly and within routes."""
    shape = (table.routes, len(table.names))
    where = table.strata * shape[1] + table.places
    bad, good, squares = (
        np.bincount(where, _column(rows, name), shape[0] * shape[1]).reshape(shape)
        for name in ("breaches", "good", "squares_good")
    )
    scale = np.divide(good.sum(1), squares.sum(1), out=np.ones(shape[0]), where=squares.sum(1) > 0)
    mine = Cells(bad, good * scale[:, None])
    rest = mine.summed(1) - mine
    both = np.minimum(one_sided(mine, rest), one_sided(rest, mine))
    return np.asarray(np.minimum(1.0, 2 * both))


def _of_latency(table: _Table, rows: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """Return two-sided p-values of each segment's durations against the rest's, and whether they are longer.

    Van Elteren's test (1960): Wilcoxon's rank sums of the histograms' buckets, within routes.
    """
    from scipy.special import ndtr

    weights, squares = _column(rows, "requests"), _column(rows, "squares")
    buckets = np.array([row["bucket"] for row in rows])
    total, variance = np.zeros(len(table.names)), np.zeros(len(table.names))
    for stratum in range(table.routes):
        inside = np.flatnonzero(table.strata == stratum)
        _, codes = np.unique(buckets[inside], return_inverse=True)
        width = int(codes.max()) + 1
        counts = np.bincount(table.places[inside] * width + codes, weights[inside], len(table.names) * width).reshape(
            -1, width
        ) * _scale(weights[inside], squares[inside])
        all_of = counts.sum(0)
        size = all_of.sum()
        ranks = all_of.cumsum() - (all_of - 1) / 2
        mine = counts.sum(1)
        spread = ((all_of * ranks**2).sum() - (all_of * ranks).sum() ** 2 / size) / max(1.0, size - 1)
        total += (counts @ ranks - mine * (size + 1) / 2) / (size + 1)
        variance += mine * (size - mine) / size * spread / (size + 1) ** 2
    z = np.divide(total, np.sqrt(variance), out=np.zeros_like(total), where=variance > 1e-12)  # noqa: PLR2004 -- rounding
    made: Array = np.minimum(1.0, 2 * ndtr(-np.abs(z)))
    return made, z > 0


def _shares(
    breaches: Array, judged: Array, effective: Array, prior: tuple[float, float] | None, place: int
) -> dict[str, Any]:
    """Return the breach share of a segment, raw and shrunk, with intervals."""
    from scipy.special import betaincinv

    bad, whole = float(breaches[place]), float(judged[place])
    rest = _ratio(breaches.sum() - bad, judged.sum() - whole)
    if whole == 0 or prior is None:
        return dict.fromkeys(("breach_share", "interval", "shrunk", "shrunk_interval"), None) | {"rest_share": rest}
    share = bad / whole
    # As many requests as an unsampled count would need to be as sure.
    good = max(float(effective[place]), 1e-9)
    size = good if bad == 0 else bad if share == 1 else 1 / (share * (1 - share) * (1 / bad + 1 / good))
    low = float(betaincinv(share * size, size - share * size + 1, 0.025)) if bad else 0.0
    high = float(betaincinv(share * size + 1, size - share * size, 0.975)) if share < 1 else 1.0
    drawn = (prior[0] + share * size, prior[1] + (1 - share) * size)
    return {
        "breach_share": share,
        "interval": (low, high),
        "shrunk": drawn[0] / sum(drawn),
        "shrunk_interval": (float(betaincinv(*drawn, 0.025)), float(betaincinv(*drawn, 0.975))),
        "rest_share": rest,
    }


def _prior(breaches: Array, judged: Array) -> tuple[float, float]:
    """Return the beta distribution of the segments' shares, by moments (Kleinman 1973).

    Where they vary no more than by chance, it is so narrow that each is drawn to the mean.
    """
    there = judged > 0
    bad, sizes = breaches[there], judged[there]
    mean = bad.sum() / sizes.sum()
    spread = (sizes * (bad / sizes - mean) ** 2).sum()
    by_chance = mean * (1 - mean)
    degrees = len(sizes) - 1
    extra = sizes.sum() - (sizes**2).sum() / sizes.sum()
    between = (spread - degrees * by_chance) / extra if extra > 0 else 0.0
    if not 0 < mean < 1:
        return mean * _CERTAIN + 0.5, (1 - mean) * _CERTAIN + 0.5
    strength = min(_CERTAIN, by_chance / between - 1) if between > 0 else _CERTAIN
    strength = max(strength, 1.0)
    return float(mean * strength), float((1 - mean) * strength)


def _quantiles(rows: Sequence[Mapping[str, Any]], table: _Table, place: int) -> dict[str, Any]:
    """Return p50 and p99 of a segment: between the least and the greatest duration of the bucket that they are in."""
    mine = [rows[at] for at in np.flatnonzero(table.places == place).tolist()]
    stored = sum(row["stored"] for row in mine)
    found = {
        name: quantile(mine, q) if stored >= least else None
        for name, q, least in (("p50_ms", 0.5, LEAST_P50), ("p99_ms", 0.99, LEAST_P99))
    }
    return {**found, "needed": None if stored >= LEAST_P99 else LEAST_P99}


def quantile(rows: Sequence[Mapping[str, Any]], q: float) -> float:
    """Return a quantile of durations out of buckets; exact in those with at most two."""
    merged: dict[int, list[float]] = {}
    for row in rows:
        one = merged.setdefault(row["bucket"], [0.0, np.inf, -np.inf])
        one[0] += row["requests"]
        one[1], one[2] = min(one[1], row["low_ms"]), max(one[2], row["high_ms"])
    buckets = [merged[bucket] for bucket in sorted(merged)]
    at = q * (sum(one[0] for one in buckets) - 1)
    positions: list[float] = []
    values: list[float] = []
    before = 0.0
    for count, low, high in buckets:
        # The first and the last of its requests, by their places among all.
        positions += [before, max(before, before + count - 1)]
        values += [low, high]
        before += count
    return float(np.interp(at, positions, values))


def _stage_shares(table: _Table, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    sums = {stage: _by_place(table, _column(rows, name)) for name, stage in _STAGES.items()}
    made = []
    for place in range(len(table.names)):
        whole = sum(float(one[place]) for one in sums.values())
        shares = {stage: float(one[place]) / whole for stage, one in sums.items() if whole > 0 and one[place] > 0}
        made.append(shares)
    return made


# --- The rows of the reduction `segments`, out of a sample of requests: for segments that a store cannot group by.

_GROWTH: Final = log(1.02)  # as in sql/segments.duckdb.sql
_LEAST_MS: Final = 1e-3


def of_cases(cases: Cases, names: Sequence[str | None], most: int) -> list[dict[str, Any]]:
    """Return rows by segment, service, route and duration; the `most` largest segments, the others as place 0."""
    sizes: dict[str | None, float] = defaultdict(float)
    for name, weight in zip(names, cases.weights.tolist(), strict=True):
        sizes[name] += weight
    order = sorted(sizes, key=lambda name: (-sizes[name], name is None, name or ""))
    places = {name: place for place, name in enumerate(order[:most], 1)}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    judged = not cases.by_time and bool(cases.breaches + cases.good)
    for row, name, weight, bad in zip(cases.rows, names, cases.weights.tolist(), cases.breached.tolist(), strict=True):
        place = places.get(name, 0)
        bucket = floor(log(max(row["duration_ms"], _LEAST_MS)) / _GROWTH)
        key = (place, row["service"], row["path"], bucket)
        if key not in found:
            found[key] = {
                "segment": name if place else None,
                "place": place,
                "groups": len(order),
                "service": row["service"],
                "path": row["path"],
                "bucket": bucket,
                "low_ms": inf,
                "high_ms": -inf,
                "sampled": cases.is_estimate,
                "unknown": cases.is_unknown,
                **defaultdict(float),
            }
        one = found[key]
        counted = {
            "requests": weight,
            "squares": weight**2,
            "stored": 1,
            "good": weight * (judged and not bad),
            "squares_good": weight**2 * (judged and not bad),
            "breaches": weight * (judged and bad),
            "over_ms": weight * (row["overrun_ms"] or 0.0) * bad,
            **_stages(row, weight),
        }
        for column, value in counted.items():
            one[column] = one.get(column, 0.0) + value
        one["low_ms"] = min(one["low_ms"], row["duration_ms"])
        one["high_ms"] = max(one["high_ms"], row["duration_ms"])
    return list(found.values())


# --- The gain of each segment if its slowest stage were as fast as the median of the others, out of a sample.


def _stages(row: Any, weight: float) -> dict[str, float]:
    """Return the weighed totals of the stages, as the columns of the reduction."""
    made = {f"{stage.replace('.', '_')}_sum": 0.0 for stage in (*STAGES, "other")}
    for stage, took in zip(row["stage_names"], row["stage_ms"], strict=True):
        made[f"{(stage if stage in STAGES else 'other').replace('.', '_')}_sum"] += took * weight
    return made


LEAST: Final = 20  # requests of a segment in the sample, and of the others


@dataclass(frozen=True)
class Remedy:
    """The gain if one stage were no slower than the median of the others."""

    stage: str  # the one with the greatest mean excess over that median
    median_ms: float  # of the other segments
    gain_ms: float  # less time, mean over the segment's requests
    breaches: float | None  # share of its breaches that would be none; None where it has none


def remedies(cases: Cases, names: Sequence[str | None]) -> dict[str | None, Remedy]:
    """Return the remedy of each segment that has a stage slower than the others'; `names`: the segment of each row."""
    codes = {name: place for place, name in enumerate(dict.fromkeys(names))}
    of = np.array([codes[name] for name in names])
    columns = _stage_columns(cases.rows)
    over = np.array([row["overrun_ms"] or 0.0 for row in cases.rows], float)
    found = {}
    for name, place in codes.items():
        mine = of == place
        if min(mine.sum(), (~mine).sum()) < LEAST:
            continue
        best: Remedy | None = None
        for stage, took in columns.items():
            median = weighted_median(took[~mine], cases.weights[~mine])
            less = np.maximum(0.0, took[mine] - median)
            gain = float(np.average(less, weights=cases.weights[mine]))
            if gain > (best.gain_ms if best is not None else 0.0):
                bad = cases.breached[mine]
                avoided = less[bad] >= over[mine][bad]
                best = Remedy(stage, median, gain, float(avoided.mean()) if bad.any() else None)
        if best is not None:
            found[name] = best
    return found


def _stage_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Return how long each stage takes of each row; 0 where it has none."""
    columns: dict[str, Array] = {}
    for place, row in enumerate(rows):
        for stage, took in zip(row["stage_names"], row["stage_ms"], strict=True):
            if stage not in columns:
                columns[stage] = np.zeros(len(rows))
            columns[stage][place] = took
    return columns
