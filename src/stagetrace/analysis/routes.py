"""How each route does: counts, quantiles and attainment, of each service, route, model and objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from stagetrace.analysis.source import Source, missing_first, sample_of
from stagetrace.estimates import OVERFLOW, Attainment, Counted, Sample, attainment

_BY: Final = ("service", "path", "model", "objective")


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


def ask(source: Source, *, with_models: bool = True) -> list[Route]:
    """Return how each route does, the one with most breaches first: counts and quantiles by weight.

    Without models, requests of all models are taken together.
    """
    by = [key for key in _BY if with_models or key != "model"]
    rows = [{"model": None, **row} for row in source.reduce("routes", by)]
    rows.sort(key=missing_first(by))
    rows.sort(key=lambda row: (-row["breaches"], -row["requests"]))
    uneven: dict[tuple[Any, ...], list[float]] = {}
    if any(row["uneven"] for row in rows):
        weighted = source.reduce("weighted_routes", by)
        uneven = {tuple(row[name] for name in by): row["quantiles"] for row in weighted}
    found = []
    for row in rows:
        service, path, model, objective = (row[name] for name in _BY)
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
