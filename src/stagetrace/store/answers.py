"""Queries of the two relations in SQL: single requests, counts, outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from stagetrace.semconv import SLA_BREACH_MISSED
from stagetrace.store.base import Entry, Relations, Selection, SpanRow, Tally
from stagetrace.store.database import rows_of, sql
from stagetrace.store.entries import missed
from stagetrace.store.relations import DECODED, LOADED, OTHER_STAGES, REQUESTS, STAGE_COLUMNS, probability_of, weight_of
from stagetrace.store.tally import Kind, Row, of_objective, summed

# The columns of a request as every command shows it.
COLUMNS: Final = tuple(column for column in REQUESTS if column not in DECODED)

# Sort key -> the column, greatest first; the name of any other stage is a sort key, too.
SORTS: Final[Mapping[str, str]] = {
    "start": "start_unix_nano",
    "duration": "duration_ms",
    "overrun": "overrun_ms",
    **STAGE_COLUMNS,
    "other": OTHER_STAGES,
}


def tally(relations: Relations, selection: Selection) -> Tally:
    """Return the outcomes of all requests; only the breaches with a cause and a code of `selection` are missed."""
    by = ["service"]
    by += ["code"] if selection.codes else []  # only then: of older files it is decoded row by row
    by += ["objective", "verdicts"] if selection.judged_by is not None else []
    return summed((_tally_row(row, len(by), selection.judged_by) for row in relations.reduce("tally", by)), selection)


def _tally_row(row: Mapping[str, Any], first: int, objective: str | None) -> Row:
    """Return a row of the reduction, before the columns of which there are `first` that it is grouped by."""
    values = list(row.values())[first:]
    kind = Kind(*values[:4])._replace(code=row.get("code"))
    kind, over_ms = of_objective(kind, values[5], objective, row.get("objective"), row.get("verdicts"))
    return Row(kind, values[4], over_ms, *values[6:])._replace(service=row["service"])


def newest(relations: Relations) -> int | None:
    """Return when the newest request began."""
    row = relations.connection.execute("SELECT max(start_unix_nano) FROM requests").fetchone()
    return row[0] if row else None


class Place(NamedTuple):
    """Where a request stands in an order: its value of what is sorted by, then what decides between equal ones."""

    value: float | None
    start_unix_nano: int
    trace_id: str
    span_id: str


class _Values:
    """Values that a query is bound to, in their order."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def mark(self, value: Any) -> str:
        """Return what stands for a value in the query."""
        self.all.append(value)
        return f"${len(self.all)}"


def requests(
    relations: Relations,
    sort: str = "start",
    top: int | None = None,
    *,
    breached: bool = False,
    after: Place | None = None,
    attributes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return rows of `requests` as `COLUMNS` -> value, greatest first, those without a value last.

    `sort`: one of `SORTS`, or the name of a stage; `breached`: only breaches; `after`: only those behind this place;
    `attributes`: the text form of these too, by their names.
    """
    values = _Values()
    by = SORTS[sort] if sort in SORTS else f"stages[{values.mark(sort)}]"
    order = f"ORDER BY {by} DESC NULLS LAST, start_unix_nano DESC, trace_id, span_id"
    tests = ["breached"] if breached else []
    if after is not None:
        tests.append(_is_behind(by, after, values))
    if top is not None:  # their ids first, so that only these requests are decoded
        order += f" LIMIT {int(top)}"
        found = relations.connection.execute(
            f"SELECT span_id, start_unix_nano FROM requests {_where(tests)} {order}",  # noqa: S608 -- constants
            values.all,
        ).fetchall()
        if not found:
            return []
        starts = [start for _, start in found]
        tests.append(f"start_unix_nano BETWEEN {min(starts)} AND {max(starts)}")
        tests.append(f"span_id IN ({', '.join(values.mark(span_id) for span_id, _ in found)})")
    wanted = [*COLUMNS, *(f"attributes[{values.mark(name)}]" for name in attributes)]
    result = relations.connection.execute(
        f"SELECT {', '.join(wanted)} FROM requests {_where(tests)} {order}",  # noqa: S608
        values.all,
    )
    names = (*COLUMNS, *attributes)
    return [_with_text_time(dict(zip(names, row, strict=True))) for row in result.fetchall()]


def _where(tests: Sequence[str]) -> str:
    return f"WHERE {' AND '.join(tests)}" if tests else ""


def _is_behind(by: str, place: Place, values: _Values) -> str:
    """Return the condition that a row comes after a place in the order of `requests`."""
    start, trace_id, span_id = map(values.mark, place[1:])
    later = (
        f"(start_unix_nano < {start} OR (start_unix_nano = {start} AND (trace_id, span_id) > ({trace_id}, {span_id})))"
    )
    if place.value is None:
        return f"({by} IS NULL AND {later})"
    value = values.mark(place.value)
    return f"({by} < {value} OR {by} IS NULL OR ({by} = {value} AND {later}))"


def entry(row: Mapping[str, Any]) -> Entry:
    """Return the record of a row of `requests`, which has the attribute SLA_BREACH_MISSED too."""
    same = {one.name: row[one.name] for one in fields(Entry) if one.name in row and one.name != "missed"}
    return Entry(**same, missed=missed(row[SLA_BREACH_MISSED]))


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
