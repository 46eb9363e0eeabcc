"""The table of requests that `stagetrace clickhouse init` makes beside `otel_traces`: made, filled, removed.

ClickHouse fills it itself: a materialised view takes each entry span as it is inserted. A span that is inserted twice
is two rows until ClickHouse merges them, so every reader says FINAL. What came before is filled in day by day. Readers
use the table from the moment when that is done, which its comment says.
"""

# ruff: noqa: S608 -- names are quoted, columns are constants; every value is bound

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.columns import NUMBER, SCHEMA, TEXT, TRUTH, WHOLE
from stagetrace.errors import StoreError
from stagetrace.store.clickhouse import relation
from stagetrace.store.clickhouse.relation import FILLED, Table, select, spans_once

if TYPE_CHECKING:
    from stagetrace.store.clickhouse.client import Client

_VIEW: Final = "_mv"  # behind the name of the table of requests
_TYPES: Final = {
    TEXT: "LowCardinality(Nullable(String))",
    WHOLE: "Nullable(Int64)",
    NUMBER: "Nullable(Float64)",
    TRUTH: "Nullable(Bool)",
}
_MAP: Final = "Map(LowCardinality(String), String)"
_OWN_STAGES: Final = "Map(LowCardinality(String), Float64)"
# Columns that have a value in each row, and those of which nearly each row has another one.
_OWN_TYPES: Final = {
    "trace_id": "String",
    "span_id": "String",
    "service": "LowCardinality(String)",
    "name": "LowCardinality(String)",
    "status": "LowCardinality(String)",
    "start_unix_nano": "Int64",
    "end_unix_nano": "Int64",
    "duration_ms": "Float64",
    "weight": "Float64",
    "evidence": "Nullable(String)",
    "missed": "Nullable(String)",
    "url_path": "Nullable(String)",
    relation.OWN_STAGES: _OWN_STAGES,
    "attributes": _MAP,
    "resource": _MAP,
    "minute": "DateTime('UTC')",
    "copy": "UInt32",
}
# A day that is over becomes one part, of which FINAL costs nothing.
_SETTINGS: Final = (
    "ttl_only_drop_parts = 1, min_age_to_force_merge_seconds = 600, min_age_to_force_merge_on_partition_only = 1"
)
_DAY_NS: Final = 86_400 * 10**9
_TTL: Final = re.compile(r"\bTTL toDateTime\(Timestamp\) \+ (toInterval\w+\(\d+\))")


class Step(NamedTuple):
    """One statement, and what it does; `is_fill`: it reads and writes a day of spans."""

    sql: str
    about: str
    is_fill: bool = False


def columns() -> dict[str, str]:
    """Return column -> expression, over the spans of `relation.spans_once`."""
    found = relation.request_columns()
    found[relation.OWN_STAGES] = f"CAST({relation.own_stages(found.pop(relation.STAGES))} AS {_OWN_STAGES})"
    judged = "toUInt32(isNotNull(breached)) * 65536"
    minute = "toStartOfMinute(toDateTime(Timestamp, 'UTC'))"
    return {**found, "minute": minute, "copy": f"{judged} + least(length(attributes), 65535)"}


def _types() -> dict[str, str]:
    kinds = {one.in_requests or one.name: one.type for one in SCHEMA}
    return {name: _OWN_TYPES.get(name) or _TYPES[kinds[name]] for name in columns()}


def _query(table: Table, where: list[str]) -> str:
    return select(columns(), spans_once(table, ["SpanKind = 'Server'", *where], once=False))


def version(table: Table) -> str:
    """Return what the comment of a table says that is made by these expressions, and filled."""
    made = repr((columns(), _types(), table.is_json("SpanAttributes")))
    return f"{FILLED} {hashlib.sha256(made.encode()).hexdigest()[:12]}"


def steps(client: Client, table: Table) -> Iterator[Step]:
    """Yield the statements that make the table and fill it, or bring an older one up; none where all is done."""
    found = client.rows(
        "SELECT name, engine, engine_full, comment FROM system.tables "
        "WHERE database = {database:String} AND name IN {names:Array(String)}",
        {"database": table.database, "names": [table.name, table.requests]},
    )
    beside = {row["name"]: row for row in found}
    spans, made = beside[table.name], beside.get(table.requests)
    if spans["engine"] in ("Distributed", "View", "MaterializedView"):
        raise StoreError(
            f"{client.address.name} is a {spans['engine']} table, which holds no rows itself\n"
            "name the table on each server that holds them: clickhouse://HOST/DATABASE?table=NAME"
        )
    if made is not None and made["comment"] == version(table):
        return
    fields = ", ".join(f"{name} {kind} CODEC(ZSTD(1))" for name, kind in _types().items())
    fields += ", INDEX starts start_unix_nano TYPE minmax GRANULARITY 1"  # some requests are asked for by their start
    ttl = _TTL.search(spans["engine_full"])
    name, view = table.quoted(table.requests), table.quoted(table.requests + _VIEW)
    replicated = "Replicated" if spans["engine"].startswith("Replicated") else ""
    if made is None:
        yield Step(
            f"CREATE TABLE IF NOT EXISTS {name} ({fields}) ENGINE = {replicated}ReplacingMergeTree(copy) "
            "PARTITION BY toDate(minute) ORDER BY (minute, service, start_unix_nano, trace_id, span_id)"
            f"{f' TTL minute + {ttl[1]}' if ttl else ''} SETTINGS {_SETTINGS} COMMENT 'being filled'",
            "make the table of requests",
        )
    else:
        yield Step(f"ALTER TABLE {name} MODIFY COMMENT 'being filled'", "have readers leave it until it is filled")
        added = ", ".join(f"ADD COLUMN IF NOT EXISTS {column} {kind}" for column, kind in _types().items())
        yield Step(f"ALTER TABLE {name} {added}", "add the columns that came since")
    yield Step(f"DROP VIEW IF EXISTS {view}", "take an older view away")
    yield Step(
        f"CREATE MATERIALIZED VIEW {view} TO {name} AS {_query(table, [])}", "have each new entry span put into it"
    )
    days = client.rows(
        "SELECT DISTINCT toUnixTimestamp64Nano(toDateTime64(toStartOfDay(Timestamp, 'UTC'), 9, 'UTC')) AS day "
        f"FROM {table.quoted()} ORDER BY day DESC"
    )
    for row in days:
        day = int(row["day"])
        where = [
            f"Timestamp >= fromUnixTimestamp64Nano({day}, 'UTC')",
            f"Timestamp < fromUnixTimestamp64Nano({day + _DAY_NS}, 'UTC')",
        ]
        names = ", ".join(columns())
        yield Step(f"INSERT INTO {name} ({names}) {_query(table, where)}", "fill in a day", is_fill=True)
    yield Step(f"ALTER TABLE {name} MODIFY COMMENT {relation.text(version(table))}", "have readers use it")


def removal(table: Table) -> list[Step]:
    """Return the statements that take table and view away."""
    return [
        Step(f"DROP VIEW IF EXISTS {table.quoted(table.requests + _VIEW)}", "end the filling"),
        Step(f"DROP TABLE IF EXISTS {table.quoted(table.requests)}", "take the table of requests away"),
    ]


def run(client: Client, steps: list[Step], progress: Callable[[int, str, float | None], None]) -> None:
    """Run statements one after the other. Raise StoreError: what was done stays, and is taken up by the next run."""
    for number, step in enumerate(steps, 1):
        client.command(step.sql)
        progress(number, "steps", number / len(steps))
