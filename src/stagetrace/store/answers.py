"""Queries of the two relations in SQL: durations of stages, routes, the slowest requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.estimates import Attainment, Sample, attainment
from stagetrace.store.base import Counted, Relations, SpanRow, Tally
from stagetrace.store.database import rows_of, sql
from stagetrace.store.relations import DECODED, LOADED, OTHER_STAGES, REQUESTS, STAGE_COLUMNS, probability_of, weight_of
from stagetrace.store.tally import Kind, Row, summed

# The columns of a request as every command shows it.
COLUMNS: Final = tuple(column for column in REQUESTS if column not in DECODED)

_BY_MODEL: Final = ("service", "path", "model")
_BY_OBJECTIVE: Final = (*_BY_MODEL, "objective")
_STAGES: Final = {column: stage for stage, column in STAGE_COLUMNS.items()}  # in their order

# Sort key -> the column, greatest first; the name of any other stage is a sort key, too.
SORTS: Final[Mapping[str, str]] = {
    "start": "start_unix_nano",
    "duration": "duration_ms",
    "overrun": "overrun_ms",
    **STAGE_COLUMNS,
    "other": OTHER_STAGES,
}


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


def stages(relations: Relations) -> list[Group]:
    """Return quantiles of every stage, by service, route and model: exact ones of the stored requests, weighted."""
    wide = sorted(relations.reduce("stages", _BY_MODEL), key=_place)
    own: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(relations.reduce("own_stages", _BY_MODEL), key=lambda row: str(row["own"])):
        own.setdefault(_key(row), []).append(row)
    uneven: dict[tuple[Any, ...], list[float]] = {}
    if any(row["uneven"] for row in wide):
        weighted = relations.reduce("weighted_stages", _BY_MODEL)
        uneven = {(*_key(row), row["each_stage"]): row["quantiles"] for row in weighted}
    return [_group(row, own.get(_key(row), ()), uneven) for row in wide]


def _group(
    row: Mapping[str, Any], own: Iterable[Mapping[str, Any]], uneven: Mapping[tuple[Any, ...], list[float]]
) -> Group:
    """Return one group out of its row, those of its own stages, and the quantiles by weight where these differ."""
    service, path, model = key = _key(row)
    found = [(stage, row[column]) for column, stage in {"duration_ms": None, **_STAGES}.items() if row[column]]
    mine = [(one["own"], [one["requests"], *one["quantiles"], one["max_ms"], one["total_ms"]]) for one in own]
    at = next((place for place, (stage, _) in enumerate(found) if stage == semconv.NETWORK_SEND), len(found))
    found[at:at] = mine
    whole = row["duration_ms"][-1]
    made = []
    for stage, (requests, *quantiles, most, total) in found:
        place = (*key, stage)
        p50, p95, p99 = uneven[place] if row["uneven"] else quantiles
        made.append(Stage(stage, round(requests), p50, p95, p99, most, total / whole if whole > 0 else None))
    return Group(service, path, model, round(row["requests"]), made[0], tuple(made[1:]), _sample(row))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _BY_MODEL)


def _place(row: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Return the sort key of a row: its group, missing values first."""
    return [(row.get(name) is not None, row.get(name) or "") for name in _BY_OBJECTIVE]


def routes(relations: Relations) -> list[Route]:
    """Return how each route does, the one with most breaches first: counts and quantiles by weight."""
    rows = sorted(relations.reduce("routes", _BY_OBJECTIVE), key=_place)
    rows.sort(key=lambda row: (-row["breaches"], -row["requests"]))
    uneven: dict[tuple[Any, ...], list[float]] = {}
    if any(row["uneven"] for row in rows):
        weighted = relations.reduce("weighted_routes", _BY_OBJECTIVE)
        uneven = {tuple(row[name] for name in _BY_OBJECTIVE): row["quantiles"] for row in weighted}
    found = []
    for row in rows:
        service, path, model, objective = key = tuple(row[name] for name in _BY_OBJECTIVE)
        p50, p99 = uneven[key] if row["uneven"] else row["quantiles"]
        requests, judged, breaches, errors = (round(row[name]) for name in ("requests", "judged", "breaches", "errors"))
        sample = _sample(row)
        weights = (row["good"], row["spread"], row["most"], row["breaches"])
        known = attainment(sample, *weights) if row["judged"] else None
        times = (p50, p99, row["max_ms"])
        of = (service, path, model, objective)
        found.append(Route(*of, requests, judged, breaches, errors, *times, known, sample))
    return found


def exactly(relations: Relations, found: Sequence[Route], counted: Iterable[Counted]) -> list[Route]:
    """Return routes with the counts of their services in place of the estimates.

    Requests that ended before these counts begin or after they end are added by weight. A route with several models
    stays as it is, since services do not count by model; so does one with fewer counted requests than stored ones.
    """
    made = list(found)
    for one in counted:
        window = {"service": one.service, "since_ns": one.since_ns, "until_ns": one.until_ns}
        rows = relations.reduce("uncounted", ("path", "objective"), **window)
        besides = {(row["path"], row["objective"]): row for row in rows}
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for (path, objective, verdict), count in one.counts.items():
            counts.setdefault((path, objective), {})[verdict] = count
        for place, route in enumerate(made):
            key = (route.route, route.objective or "")
            alone = sum((other.service, other.route, other.objective) == (one.service, *key) for other in made) == 1
            if route.service == one.service and key in counts and alone:
                made[place] = _exact(route, counts[key], besides.get(key), is_exact=one.is_exact)
    return made


def _exact(route: Route, counts: Mapping[str, int], besides: Mapping[str, Any] | None, *, is_exact: bool) -> Route:
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


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(row["stored"], row["sampled"], row["unknown"])


def tally(relations: Relations, causes: Sequence[str] = ()) -> Tally:
    """Return the outcomes of all requests; with `causes`, only the breaches that have one of them are missed."""
    rows = [tuple(row.values()) for row in relations.reduce("tally")]
    return summed((Row(Kind(*row[:4]), *row[4:]) for row in rows), causes)


def newest(relations: Relations) -> int | None:
    """Return when the newest request began."""
    row = relations.connection.execute("SELECT max(start_unix_nano) FROM requests").fetchone()
    return row[0] if row else None


def requests(
    relations: Relations, sort: str = "start", top: int | None = None, *, breached: bool = False
) -> list[dict[str, Any]]:
    """Return rows of `requests` as `COLUMNS` -> value, greatest first, those without a value last.

    `sort`: one of `SORTS`, or the name of a stage; `breached`: only breaches.
    """
    by, values = (SORTS[sort], []) if sort in SORTS else ("stages[$1]", [sort])
    order = f"ORDER BY {by} DESC NULLS LAST, start_unix_nano DESC, trace_id, span_id"
    where = "WHERE breached" if breached else ""
    if top is not None:  # their ids first, so that only these requests are decoded
        found = relations.connection.execute(
            f"SELECT span_id FROM requests {where} {order} LIMIT {int(top)}",  # noqa: S608 -- constants
            values,
        ).fetchall()
        if not found:
            return []
        first = len(values) + 1
        values += [span_id for (span_id,) in found]
        where = f"WHERE span_id IN ({', '.join(f'${number}' for number in range(first, len(values) + 1))})"
        order += f" LIMIT {int(top)}"
    result = relations.connection.execute(
        f"SELECT {', '.join(COLUMNS)} FROM requests {where} {order}",  # noqa: S608
        values,
    )
    return [_with_text_time(dict(zip(COLUMNS, row, strict=True))) for row in result.fetchall()]


def stage_names(relations: Relations) -> list[str]:
    """Return the names of all stages that the requests have, sorted."""
    rows = relations.connection.execute("SELECT DISTINCT unnest(map_keys(stages)) FROM requests ORDER BY 1").fetchall()
    return [name for (name,) in rows]


def request_of(span: SpanRow) -> dict[str, Any]:
    """Return one entry span as `requests` does, without a database."""
    from stagetrace.store.load import cells

    found = dict(zip(LOADED, cells(span), strict=True))
    found["stage"] = found["breach_stage"]
    found["sampling_probability"] = probability_of(found["sampling_probability"])
    found["weight"] = weight_of(found["sampling_probability"], breached=found["breached"])
    found["stages"] = dict(found["stages"])
    found["start_time"] = datetime.fromtimestamp(0, timezone.utc) + timedelta(microseconds=span.start_unix_nano // 1000)
    return _with_text_time({name: found[name] for name in COLUMNS})


def _with_text_time(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its time as text (RFC 3339)."""
    return {**row, "start_time": f"{row['start_time']:%Y-%m-%dT%H:%M:%S.%f}Z"}


def slowest_stage(request: Mapping[str, Any]) -> str | None:
    """Return the stage that the verdict names, else the one with the greatest total."""
    if request["stage"] is not None:
        return str(request["stage"])
    totals = request["stages"]
    return max(totals, key=lambda stage: totals[stage], default=None)


def count(relations: Relations, relation: str = "requests") -> int:
    """Return how many rows a relation has."""
    row = relations.connection.execute(f"SELECT count(*) FROM {relation}").fetchone()  # noqa: S608 -- a name of ours
    return int(row[0]) if row else 0


def pools(relations: Relations, service: str, since_ns: int, until_ns: int, one_in: int) -> list[dict[str, Any]]:
    """Return the pools that requests waited for, most often first, of one wait in `one_in`: `sql/pools.sql`."""
    return rows_of(relations.connection.execute(sql("pools"), [service, one_in, since_ns, until_ns]))


def newest_first(spans: Iterable[SpanRow]) -> Sequence[SpanRow]:
    """Return entry spans by start, the newest first."""
    return sorted(spans, key=lambda span: (-span.start_unix_nano, span.trace_id, span.span_id))
