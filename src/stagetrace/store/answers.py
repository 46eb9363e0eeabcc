"""Queries of the two relations in SQL: single requests, counts, outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from stagetrace.store.base import Relations, SpanRow, Tally
from stagetrace.store.database import rows_of, sql
from stagetrace.store.relations import DECODED, LOADED, OTHER_STAGES, REQUESTS, STAGE_COLUMNS, probability_of, weight_of
from stagetrace.store.tally import Kind, Row, summed

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
