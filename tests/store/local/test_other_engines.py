"""ClickHouse, Spark and deltalake read the folder in place, by the examples of docs/folder.md, as stagetrace does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from cli.running import answered
from environments import interpreter_once, once
from stagetrace.otlp.decode.columns import ALL as COLUMNS
from stagetrace.otlp.decode.columns import DOUBLE, TYPED
from stagetrace.store.local import LocalStore
from stagetrace.store.local.folder import delta_schema
from store.feed import readable
from store.spans import AGAIN, ALL

DOCS = (Path(__file__).parents[3] / "docs/folder.md").read_text()
SHOWN = "/data/traces"  # in the examples
OURS = """
    SELECT service, route, count(*) AS requests, count(*) FILTER (breached) AS breaches,
           sum(end_unix_nano - start_unix_nano)::BIGINT AS total_ns, sum(inference_ms) AS inference_ms
    FROM requests GROUP BY ALL ORDER BY service, route NULLS LAST
"""
EACH = """
    SELECT lower(hex(trace_id)) AS trace, lower(hex(span_id)) AS span, lower(hex(parent_span_id)) AS parent, service,
           name, start_unix_nano, end_unix_nano, {columns}
    FROM deltaLakeLocal('{folder}/spans') {where} ORDER BY trace, span FORMAT JSONEachRow
    SETTINGS output_format_json_quote_64bit_integers = 0
"""
MAVEN = "https://repo1.maven.org/maven2/io/delta"
JARS = ("delta-spark_4.2_2.13-4.4.0.jar", "delta-storage-4.4.0.jar")


def example(language: str, holding: str) -> str:
    """Return an example of the page."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)
    (found,) = (one for one in blocks if holding in one)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of many files and commits, a checkpoint, and spans that came twice or as better copies."""
    path = tmp_path_factory.mktemp("engines") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stagetrace.store.local.delta.CHECKPOINT_EVERY", 4)
        patch.setattr("stagetrace.store.local.store.ARCHIVE_SPREAD_MS", 1)
        with LocalStore.open(path, archived=True) as store:
            for at in range(0, len(ALL), 40):
                for spans in (ALL[at : at + 40], AGAIN):
                    store.append(encode_spans([readable(one) for one in spans]).SerializeToString())
                    store.flush()
                if at == 120:
                    store.compact()
                    for file in store.claim():  # what an archive notes about files changes nothing for readers
                        store.note_archived(file.path)
            assert any(file.archive for file in store.view().snapshot.files.values())
    assert list((path / "spans/_delta_log").glob("*.checkpoint.parquet"))
    return path


def ours(folder: Path, sql: str) -> list[dict[str, Any]]:
    """Return the rows of `stagetrace query`."""
    found = answered("query", sql, "--store", folder, "--since", "1970-01-01T00:00:00Z")
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def clickhouse(folder: Path, sql: str) -> list[dict[str, Any]]:
    """Return the rows that chDB gives, in a process whose working directory has the folder."""
    script = "import sys, chdb; sys.stdout.write(str(chdb.query(sys.stdin.read(), 'JSONEachRow')))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, input=sql, cwd=folder.parent, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.thorough
def test_clickhouse_gives_the_sums_of_every_route(folder: Path) -> None:
    """By the example of the page: requests, breaches and times of each route, to the last digit."""
    sql = example("sql", "deltaLakeLocal").replace(SHOWN, str(folder))
    found = clickhouse(folder, f"{sql} SETTINGS output_format_json_quote_64bit_integers = 0")
    assert found == ours(folder, OURS)
    breaches = answered("breaches", "--each", "--store", folder, "--since", "1970-01-01T00:00:00Z")
    assert sum(one["breaches"] for one in found) == len(breaches["breaches"])


@pytest.mark.thorough
def test_clickhouse_gives_every_span_and_every_value(folder: Path) -> None:
    """Each once, though some were delivered many times; and of requests all that has a column."""
    renamed = {"breach_stage": "stage"}
    both = ["batch_size", "breached", "cause", "framework", "model", "overrun_ms", "severity"]
    sparse = {one.column for one in TYPED.values() if one.kind == DOUBLE} | {*both, "breach_stage", "evidence"}
    columns = sorted(sparse - {"sampling_probability"})  # which 1 counts as none of
    selected = ", ".join(f"{renamed.get(name, name)} AS {name}" for name in columns)
    for where, relation, theirs, mine in (
        ("", "spans", ", ".join(both), ", ".join(both)),
        ("WHERE entry", "requests", ", ".join(columns), selected),
    ):
        parent = "parent_span_id" if relation == "spans" else "NULL"
        found = clickhouse(folder, EACH.format(columns=theirs, folder=folder, where=where))
        wanted = ours(
            folder,
            f"SELECT trace_id AS trace, span_id AS span, {parent} AS parent, service, name, start_unix_nano, "  # noqa: S608
            f"end_unix_nano, {mine} FROM {relation} ORDER BY trace, span",
        )
        if relation == "requests":
            found = [{**row, "parent": None} for row in found]
        assert found == wanted, relation
    assert len(ours(folder, "SELECT 1 FROM spans")) == len(ALL)


def test_deltalake_gives_the_breaches(folder: Path) -> None:
    names: dict[str, Any] = {}
    exec(example("python", "deltalake").replace(SHOWN, str(folder)), names)  # noqa: S102 -- an example of ours
    wanted = ours(folder, "SELECT service, route, cause, overrun_ms FROM requests WHERE breached")

    def in_order(rows: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(row, sort_keys=True) for row in rows)

    # The stored column has no `rpc.method` in place of a route.
    assert in_order(names["breaches"].to_pylist()) == in_order(
        [{**row, "route": None if "." in (row["route"] or "") else row["route"]} for row in wanted]
    )


def test_the_page_names_what_the_table_has() -> None:
    """The columns that it lists by name exist, and those that it says no engine can read are the ones of bytes."""
    table = DOCS[DOCS.index("| columns |") : DOCS.index("What they cannot read")]
    named = set(re.findall(r"`([a-z_]+)`", table)) - {"lower"}
    assert named <= {name for name, _ in delta_schema()}
    ids = {"trace_id", "span_id", "parent_span_id"}
    assert {name for name, kind in COLUMNS if kind == "binary"} - ids == {"rest", "resource", "scope"}
    assert all(f"`{name}`" in DOCS for name in ("rest", "resource", "scope"))


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_spark_gives_the_sums_of_every_route(folder: Path, tmp_path: Path) -> None:
    """By the example of the page, with Spark and Delta as they are released; half a minute after their download."""
    spark = interpreter_once("spark", ("pyspark==4.2.0",))

    def download(into: Path) -> None:
        for jar in JARS:
            artifact, _, version = jar.removesuffix(".jar").rpartition("-")
            urllib.request.urlretrieve(f"{MAVEN}/{artifact}/{version}/{jar}", into / jar)  # noqa: S310

    jars = once("delta-jars", list(JARS), download)
    script = example("python", "pyspark").replace(SHOWN, str(folder))
    for jar in JARS:
        assert jar in script
        script = script.replace(jar, str(jars / jar))
    (tmp_path / "example.py").write_text(f"{script}\nrows.coalesce(1).write.json('found')\n")
    subprocess.run([spark, "example.py"], cwd=tmp_path, check=True, timeout=500)
    lines = [line for one in (tmp_path / "found").glob("part-*.json") for line in one.read_text().splitlines()]
    names = ("service", "route", "requests", "breaches", "total_ns", "inference_ms")
    found = [{name: json.loads(line).get(name) for name in names} for line in lines]

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["service"], row["route"] or ""

    assert sorted(found, key=key) == sorted(ours(folder, OURS), key=key)
