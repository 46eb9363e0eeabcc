"""How long each stage takes, of each service, route and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.source import Source, by_keys, missing_first, sample_of
from stagetrace.estimates import Sample

_BY: Final = ("service", "path", "model")
# Column of the reduction `stages` -> stage (None: the whole request), in their order.
_COLUMNS: Final = {"duration_ms": None, **{f"{stage.replace('.', '_')}_ms": stage for stage in semconv.STAGES}}


@dataclass(frozen=True)
class Stage:
    """How long one stage took in the requests that have it; `share` of the whole time of all requests of the group."""

    stage: str | None  # None: the whole request
    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    share: float | None


class Group(NamedTuple):
    """The requests of one service, route (or name, where they have none) and model, whole and by stage."""

    service: str
    route: str
    model: str | None
    requests: int
    whole: Stage
    stages: tuple[Stage, ...]
    sample: Sample


def ask(source: Source) -> list[Group]:
    """Return quantiles of every stage, by service, route and model: exact ones of the stored requests, weighted."""
    wide = sorted(source.reduce("stages", _BY), key=missing_first(_BY))
    own = by_keys(sorted(source.reduce("own_stages", _BY), key=lambda row: str(row["own"])), _BY)
    uneven: dict[tuple[Any, ...], list[float]] = {}
    if any(row["uneven"] for row in wide):
        weighted = source.reduce("weighted_stages", _BY)
        uneven = {(*_key(row), row["each_stage"]): row["quantiles"] for row in weighted}
    return [_group(row, own.get(_key(row), ()), uneven) for row in wide]


def _group(
    row: Mapping[str, Any], own: Iterable[Mapping[str, Any]], uneven: Mapping[tuple[Any, ...], list[float]]
) -> Group:
    """Return one group out of its row, those of its own stages, and the quantiles by weight where these differ."""
    service, path, model = key = _key(row)
    found = [(stage, row[column]) for column, stage in _COLUMNS.items() if row[column]]
    mine = [(one["own"], [one["requests"], *one["quantiles"], one["max_ms"], one["total_ms"]]) for one in own]
    at = next((place for place, (stage, _) in enumerate(found) if stage == semconv.NETWORK_SEND), len(found))
    found[at:at] = mine
    whole = row["duration_ms"][-1]
    made = []
    for stage, (requests, *quantiles, most, total) in found:
        place = (*key, stage)
        p50, p95, p99 = uneven[place] if row["uneven"] else quantiles
        made.append(Stage(stage, round(requests), p50, p95, p99, most, total / whole if whole > 0 else None))
    return Group(service, path, model, round(row["requests"]), made[0], tuple(made[1:]), sample_of([row]))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _BY)
