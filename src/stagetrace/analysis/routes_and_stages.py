"""How each route does, and how long each of its stages takes: counts, quantiles, attainment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.base import Source, by_keys, missing_first, sample_of
from stagetrace.analysis.estimates import OVERFLOW, Attainment, Counted, Sample, attainment

_BY_OBJECTIVE: Final = ("service", "path", "model", "objective")


# --- How each route does: counts, quantiles and attainment, of each service, route, model and objective.


class Route(NamedTuple):
    """How the requests of one service, route, model and objective did."""

    service: str
    route: str
    model: str | None
    objective: str | None
    requests: int
    judged: int
    breaches: int
    errors: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    attainment: Attainment | None
    sample: Sample


# --- How long each stage takes, of each service, route and model.


def ask(source: Source, *, with_models: bool = True) -> list[Route]:
    """Return how each route does, the one with most breaches first: counts and quantiles by weight.

    Without models, requests of all models are taken together.
    """
    by = [key for key in _BY_OBJECTIVE if with_models or key != "model"]
    rows = [{"model": None, **row} for row in source.reduce("routes", by)]
    rows.sort(key=missing_first(by))
    rows.sort(key=lambda row: (-row["breaches"], -row["requests"]))
    uneven: dict[tuple[Any, ...], list[float]] = {}
    if any(row["uneven"] for row in rows):
        weighted = source.reduce("weighted_routes", by)
        uneven = {tuple(row[name] for name in by): row["quantiles"] for row in weighted}
    found = []
    for row in rows:
        service, path, model, objective = (row[name] for name in _BY_OBJECTIVE)
        p50, p99 = uneven[tuple(row[name] for name in by)] if row["uneven"] else row["quantiles"]
        requests, judged, breaches, errors = (round(row[name]) for name in ("requests", "judged", "breaches", "errors"))
        sample = sample_of([row])
        weights = (row["good"], row["spread"], row["most"], row["breaches"])
        known = attainment(sample, *weights) if row["judged"] else None
        times = (p50, p99, row["max_ms"])
        found.append(Route(service, path, model, objective, requests, judged, breaches, errors, *times, known, sample))
    return found


def exactly(source: Source, found: Sequence[Route], counted: Iterable[Counted]) -> list[Route]:
    """Return routes with the counts of their services in place of the estimates.

    Requests that ended before these counts begin or after they end are added by weight. A route of which nothing was
    sampled stays as it is; so does one with several models, since services do not count by model, one with fewer
    counted requests than stored ones, and one of whose objective not all routes were counted.
    """
    made = list(found)
    for one in counted:
        window = {"service": one.service, "since_ns": one.since_ns, "until_ns": one.until_ns}
        rows = source.reduce("uncounted", ("path", "objective"), **window)
        besides = {(row["path"], row["objective"]): row for row in rows}
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for (path, objective, verdict), count in one.counts.items():
            counts.setdefault((path, objective), {})[verdict] = count
        incomplete = {objective for path, objective in counts if path == OVERFLOW}
        for place, route in enumerate(made):
            key = (route.route, route.objective or "")
            alone = sum((other.service, other.route, other.objective) == (one.service, *key) for other in made) == 1
            if route.service == one.service and key in counts and alone and key[1] not in incomplete:
                made[place] = _exact(route, counts[key], besides.get(key), is_exact=one.is_exact)
    return made


def _exact(route: Route, counts: Mapping[str, int], besides: Mapping[str, Any] | None, *, is_exact: bool) -> Route:
    if not route.sample.is_estimate:
        return route  # nothing was sampled: what is stored is all there is
    more = besides or {"good": 0, "breaches": 0, "excluded": 0, "spread": 0, "most": 1}
    good, breaches, excluded = (
        counts.get(verdict, 0) + more[name]
        for verdict, name in (("good", "good"), ("breach", "breaches"), ("excluded", "excluded"))
    )
    requests, sample = good + breaches + excluded, route.sample
    if breaches < route.breaches or requests < sample.rows:
        return route
    sample = Sample(
        sample.rows, not is_exact or besides is not None, sample.is_unknown and besides is not None, is_counted=True
    )
    known = attainment(sample, good, more["spread"], more["most"], breaches) if good + breaches else None
    return route._replace(
        requests=round(requests),
        judged=round(good + breaches),
        breaches=round(breaches),
        attainment=known,
        sample=sample,
    )


_BY_MODEL: Final = ("service", "path", "model")
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


def ask_stages(source: Source) -> list[Group]:
    """Return quantiles of every stage, by service, route and model: exact ones of the stored requests, weighted."""
    return [Group(service, route, model, *times) for (service, route, model), times in _times(source, _BY_MODEL)]


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
