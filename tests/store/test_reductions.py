"""Each reduction gives the same rows on DuckDB, out of a local store, and on ClickHouse, in process (chDB)."""

from __future__ import annotations

import json
import random
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chdb.session import Session
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import stagetrace.store
from answers.made import MS, NOON, Made, store
from stagetrace.store import open_store
from stagetrace.store.base import Relations, Selection
from stagetrace.store.load import DuckDBRelations, load
from stagetrace.store.local import LocalStore
from stagetrace.store.reductions import CLICKHOUSE, statement

if TYPE_CHECKING:
    from collections.abc import Iterator

SQL = Path(stagetrace.store.__file__).parent / "sql"
CALLS = Path(__file__).parent / "reductions"
NAMES: Final = sorted(path.name.removesuffix(".clickhouse.sql") for path in SQL.glob("*.clickhouse.sql"))
EVER = Selection(0, 2**63 - 1)
DIGITS = 1e-9
SEVERAL: Final = "good: predict-p99 (99% over 28d); breach: predict p50 (50% over month@Europe/Berlin)"
MANY: Final = "excluded: POST /predict within 50ms (99% over 28d); good: it's (90% over 7d); and 3 more"
RENAMED: Final = ("network.disconnect", "stagetrace.network.disconnect")


def requests() -> Iterator[Made]:
    """Yield requests of all kinds: judged or not, sampled or not, of several routes, models, versions and tenants."""
    chance = random.Random(7)
    for number in range(1, 1501):
        stages = {"preprocess": chance.lognormvariate(1, 0.5), "inference": chance.lognormvariate(3, 0.6)}
        if number % 7 == 0:
            stages["tokenize"] = chance.uniform(0, 5)
        if number % 3 == 0:
            stages = {"queue": chance.expovariate(0.2), **stages}
        yield Made(
            number,
            NOON + round(number * 1700 * MS * chance.random()),
            stages if number % 50 else {},
            service=chance.choice(["shop", "shop", "search"]),
            route=chance.choice(["/predict", "/predict", "/embed", None]),
            model=chance.choice(["churn", "ranker", None]),
            version=chance.choice(["2", "3", None]),
            within_ms=50 if number % 11 else None,
            verdict="excluded" if number % 97 == 0 else None,
            cause=chance.choice(["cpu_wait", "downstream", "it's"]),
            status=chance.choice([200, 200, 200, 500]),
            probability=chance.choice([0.25, 0.5, 1.0, None]) if number % 4 == 0 else None,
            attributes={
                ("network.disconnect", "stagetrace.network.disconnect")[number % 2]: (None, "client", "cancelled")[
                    number % 3
                ],
                "sla.breach.code": ("app.py:41 in predict", "app.py:7 in load", None)[number % 3],
                "sla.verdicts": (SEVERAL if number % 7 == 0 else MANY) if number % 6 == 0 else None,
                "sla.excluded.reason": ("rule", "error", "warmup", "disconnect", None)[number % 5],
                "sla.deadline.source": ("grpc-timeout", "x-request-timeout-ms")[number % 2]
                if number % 9 == 0
                else None,
                "sla.deadline.remaining_ms": chance.uniform(1, 80) if number % 13 == 0 else None,
                "sla.breach.promise": "first_chunk" if number % 17 == 0 else None,
                "stagetrace.network.first_byte_ms": chance.choice([None, 5.0, 5.000001, 80.5]),
                "network.chunk_gap.max_ms": chance.choice([None, 10.0, 9.999999]),
                "stagetrace.tokens.first_ms": chance.choice([None, 7.0, 7.000001]),
                "stagetrace.tokens.gap.mean_ms": chance.choice([None, 1.0, 1.0000001, 2.5]),
                "url.scheme": chance.choice(["http", "https", "ws"]),
                "tenant.id": chance.choice(["gold", "free", 'o"neil', "ünï"]) if number % 5 else None,
                "http.request.body.size": chance.randrange(10, 10**6),
                "gen_ai.usage.input_tokens": chance.choice([None, 10, 200, "many"]),
                "gen_ai.usage.output_tokens": chance.choice([None, 3, 50]),
                "ml.batch.size": chance.randrange(1, 9),
            },
            with_stage_spans=number % 5 == 0,
            stage_attributes={
                "queue": {"queue.reason": chance.choice(["thread_pool", "socket"]), "queue.pool_size": number % 40}
            },
            resource={"region": chance.choice(["eu", "us"]), "service.instance.id": chance.choice("abc")},
        )


def calls() -> ExportTraceServiceRequest:
    """Return calls of some of these requests: of peers, by their names of now and of before, and of one without any."""
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add()
    spans.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope = spans.scope_spans.add()
    for number in range(1, 200):
        span = scope.spans.add(trace_id=number.to_bytes(16, "big"), span_id=(10**6 + number).to_bytes(8, "big"), kind=3)
        span.parent_span_id = number.to_bytes(8, "big")
        span.start_time_unix_nano, span.end_time_unix_nano = NOON, NOON + number * MS
        key = ("peer.service", "server.address", "net.peer.name", "db.system", "other")[number % 5]
        span.attributes.add(key=key).value.string_value = "it's"
    return message


@pytest.fixture(scope="module")
def duckdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBRelations]:
    folder = store(tmp_path_factory.mktemp("reductions") / "store", requests())
    with LocalStore.open(folder) as opened:
        assert not opened.append(calls().SerializeToString()).rejected
    with open_store(str(folder)) as reader, load(reader, EVER) as relations:
        yield relations


@pytest.fixture(scope="module")
def clickhouse(duckdb: DuckDBRelations, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Give a ClickHouse with the same `requests`, as its store is to have them: with the resource's attributes."""
    folder = tmp_path_factory.mktemp("clickhouse")
    session: Any = Session()
    more = "resource, requests.attributes['sla.breach.missed'] AS missed"
    requests = f"SELECT requests.*, {more} FROM requests JOIN spans USING (span_id)"  # noqa: S608 -- ours
    for name, query in {"requests": requests, "spans": "FROM spans"}.items():
        path = folder / f"{name}.parquet"
        pq.write_table(duckdb.connection.sql(query).to_arrow_table(), path)
        session.query(f"CREATE TABLE {name} ENGINE = Memory AS SELECT * FROM file('{path}', Parquet)")  # noqa: S608
    yield session
    session.close()


def literal(value: Any) -> Any:
    """Return a value as chDB takes it: it writes texts within a list without their quotes."""
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and any(isinstance(one, str) for one in value):
        return "[" + ", ".join("'" + str(one).replace("\\", "\\\\").replace("'", "\\'") + "'" for one in value) + "]"
    return value


def asked(session: Any, name: str, by: list[str], values: dict[str, Any]) -> list[dict[str, Any]]:
    answer = session.query(
        statement(CLICKHOUSE, name, by), "Arrow", params={key: literal(values[key]) for key in values}
    )
    found: list[dict[str, Any]] = pa.ipc.open_file(answer.bytes()).read_all().to_pylist()
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):  # Arrow has maps as pairs
        return one.keys() == dict(other).keys() and all(same(one[key], dict(other)[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and other is not None and isclose(one, other, rel_tol=DIGITS, abs_tol=DIGITS)
    return bool(one == other)


def decoded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with JSON as what it says: its members are in any order."""
    return [
        {key: json.loads(text) if isinstance(text, str) and text.startswith("{") else text for key, text in row.items()}
        for row in rows
    ]


def in_order(rows: list[dict[str, Any]], by: list[str]) -> list[dict[str, Any]]:
    """Return rows by what they are grouped by, then by everything that no rounding touches."""

    def key(row: dict[str, Any]) -> list[str]:
        plain = [name for name in row if isinstance(row[name], (str, int, bool, type(None))) and name not in by]
        return [f"{row[name]!r:>24}" for name in (*(one for one in by if one in row), *sorted(plain))]

    return sorted(rows, key=key)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_both_engines_agree(name: str, duckdb: Relations, clickhouse: Any) -> None:
    """Row by row, whatever their order; each call that `reductions/NAME.json` lists."""
    calls = json.loads((CALLS / f"{name}.json").read_text())
    assert calls
    for call in calls:
        by, values = call.get("by", []), call.get("values", {})
        ours = in_order(decoded(duckdb.reduce(name, by, **values)), by)
        theirs = in_order(decoded(asked(clickhouse, name, by, values)), by)
        assert ours
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            assert {key: (one[key], other[key]) for key in one if not same(one[key], other[key])} == {}


def test_a_renamed_attribute_is_found_by_either_name(duckdb: Relations, clickhouse: Any) -> None:
    """Of spans of older versions as of those of this one."""
    for name in RENAMED:
        for rows in (duckdb.reduce("counts", [name]), asked(clickhouse, "counts", [name], {})):
            assert {row[name]: row["stored"] for row in rows} == {None: 500, "client": 500, "cancelled": 500}


def test_each_reduction_is_written_for_both_engines() -> None:
    written = {path.name.removesuffix(".duckdb.sql") for path in SQL.glob("*.duckdb.sql")}
    assert set(NAMES) == written == {path.stem for path in CALLS.glob("*.json")}
