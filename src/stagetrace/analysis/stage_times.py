"""How long each stage takes, of each service, route and model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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


class Times(NamedTuple):
    """Any requests, whole and by stage."""

    requests: int
    whole: Stage
    stages: tuple[Stage, ...]
    sample: Sample


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
    return [Group(service, route, model, *times) for (service, route, model), times in _times(source, _BY)]


def of_all(source: Source) -> Times | None:
    """Return the same of all requests together; None where there are none."""
    return next((times for _, times in _times(source, ())), None)


def _times(source: Source, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Times]]:
    wide = sorted(source.reduce("stages", by), key=missing_first(by))
    own = by_keys(sorted(source.reduce("own_stages", by), key=lambda row: str(row["own"])), by)
    uneven: dict[tuple[Any, ...], list[float]] = {}
    if any(row["uneven"] for row in wide):
        weighted = source.reduce("weighted_stages", by)
        uneven = {(*_key(row, by), row["each_stage"]): row["quantiles"] for row in weighted}
    for row in wide:
        if row["stored"]:  # without groups there is a row even of no requests
            key = _key(row, by)
            yield key, _group(key, row, own.get(key, ()), uneven)


def _group(
    key: tuple[Any, ...],
    row: Mapping[str, Any],
    own: Iterable[Mapping[str, Any]],
    uneven: Mapping[tuple[Any, ...], list[float]],
) -> Times:
    """Return one group out of its row, those of its own stages, and the quantiles by weight where these differ."""
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
    return Times(round(row["requests"]), made[0], tuple(made[1:]), sample_of([row]))


def _key(row: Mapping[str, Any], by: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in by)
