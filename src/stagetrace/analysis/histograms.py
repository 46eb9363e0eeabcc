"""The rows of the reduction `segments`, out of a sample of requests: for segments that a store cannot group by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import floor, inf, log
from typing import Any, Final

from stagetrace.analysis.cases import Cases
from stagetrace.semconv import STAGES

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


def _stages(row: Any, weight: float) -> dict[str, float]:
    """Return the weighed totals of the stages, as the columns of the reduction."""
    made = {f"{stage.replace('.', '_')}_sum": 0.0 for stage in (*STAGES, "other")}
    for stage, took in zip(row["stage_names"], row["stage_ms"], strict=True):
        made[f"{(stage if stage in STAGES else 'other').replace('.', '_')}_sum"] += took * weight
    return made
