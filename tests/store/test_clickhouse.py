"""ClickHouse: the local store's answers over the table that the exporter writes, with and without one of requests."""

from __future__ import annotations

import html
import itertools
import json
import random
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from cli.running import answered, cli, printed, refused, time_of
from clickhouse import run_clickhouse
from messages import leaves
from page.data import HOSTILE_TRACE, demo
from page.paths import ALL_PARTS
from page.serving import AS_PART, run_page
from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.store import Selection, answers, open_store
from stagetrace.store.clickhouse import reader as clickhouse_reader
from stagetrace.store.clickhouse import requests_table
from stagetrace.store.local.counts import Point
from stagetrace.store.local.store import LocalStore
from stagetrace.store.rows import request_of, spans_of
from store import otel_traces
from store.questions import QUESTIONS, SINCE, rounded, said

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clickhouse import ClickHouse

pytestmark = [pytest.mark.service, pytest.mark.xdist_group("clickhouse")]
S: Final = 10**9
T: Final = 1_790_000_000 * S
EVER: Final = Selection(0, 2**63 - 1)


@pytest.fixture(scope="module")
def messages() -> list[Any]:
    """Return what the demo recorded, some spans a message."""
    (message,) = demo()
    spans = list(spans_of(message))
    return [request_of(spans[at : at + 300]) for at in range(0, len(spans), 300)]


@pytest.fixture(scope="module")
def local(messages: list[Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a local store that holds them once."""
    folder = tmp_path_factory.mktemp("local") / "store"
    with LocalStore.open(folder) as opened:
        for message in messages:
            opened.append(message.SerializeToString())
    return str(folder)


@pytest.fixture(scope="module")
def server(messages: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """Run a server whose table holds them, one message in twenty twice: as after retries."""
    with run_clickhouse(tmp_path_factory.mktemp("clickhouse")) as running:
        otel_traces.create(running)
        otel_traces.insert(running, [*messages, *messages[::20]])
        yield running


@pytest.fixture(scope="module")
def table(messages: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a server with a table of requests, half of which came after it was made."""
    half = len(messages) // 2
    with run_clickhouse(tmp_path_factory.mktemp("table")) as running:
        otel_traces.create(running)
        otel_traces.insert(running, messages[:half])
        answered("clickhouse init", "--store", running.url)
        otel_traces.insert(running, [*messages[half:], *messages[::20]])
        yield running.url


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_those_of_the_local_store(server: ClickHouse, table: str, local: str, name: str) -> None:
    """Over spans some of which are there twice, and over the table of requests."""
    ours = said(name, local)
    assert ours
    for url in (server.url, table):
        assert said(name, url) == ours


def test_the_table_is_made_once_and_taken_back(tmp_path: Path, messages: list[Any]) -> None:
    with run_clickhouse(tmp_path) as server:
        otel_traces.create(server)
        otel_traces.insert(server, messages[:3])
        before = server.rows("SELECT name, create_table_query FROM system.tables WHERE database = 'otel' ORDER BY name")
        sql = printed("clickhouse init", "--store", server.url, "--dry-run")
        assert sql.count(";\n") == len(sql.splitlines()) > 3
        assert not has_table(server)
        made = answered("clickhouse init", "--store", server.url)
        assert made["changed"]
        assert has_table(server)
        again = answered("clickhouse init", "--store", server.url)
        assert (again["statements"], again["changed"]) == ([], True)
        assert requests_of(server) == len(entries(messages[:3]))
        answered("clickhouse init", "--store", server.url, "--remove")
        after = server.rows("SELECT name, create_table_query FROM system.tables WHERE database = 'otel' ORDER BY name")
        assert after == before


def test_each_table_of_spans_has_its_own_table_of_requests(tmp_path: Path, messages: list[Any]) -> None:
    with run_clickhouse(tmp_path) as server:
        otel_traces.create(server)
        server.run("CREATE TABLE spans AS otel_traces").raise_for_status()
        otel_traces.insert(server, messages[:3])
        other = server.url.replace("table=otel_traces", "table=spans")
        answered("clickhouse init", "--store", server.url)
        answered("clickhouse init", "--store", other)
        for url, expected in ((server.url, len(entries(messages[:3]))), (other, 0)):
            with open_store(url) as reader, reader.relations(EVER) as relations:
                assert answers.count(relations) == expected


def test_a_table_of_another_version_is_not_read_until_it_is_brought_up(
    tmp_path: Path, messages: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has one column less, and a view without it; what it holds is not believed."""
    with run_clickhouse(tmp_path) as server:
        otel_traces.create(server)
        otel_traces.insert(server, messages[:3])
        all_ = requests_table.columns()
        older = {name: how for name, how in all_.items() if name != "process_cpu_ms"}
        with monkeypatch.context() as patch:
            patch.setattr(requests_table, "columns", lambda: older)
            answered("clickhouse init", "--store", server.url)
        server.run("DELETE FROM stagetrace_requests WHERE true").raise_for_status()
        monkeypatch.setattr(log, "_logged", set())
        assert requests_of(server) == len(entries(messages[:3]))
        assert "is of another version of stagetrace and is not used" in capsys.readouterr().err
        answered("clickhouse init", "--store", server.url)
        assert requests_of(server) == len(entries(messages[:3]))
        otel_traces.insert(server, messages[3:6])
        assert requests_of(server) == len(entries(messages[:6]))
        assert server.rows("SELECT count() AS n FROM stagetrace_requests FINAL") == [{"n": len(entries(messages[:6]))}]


def entries(messages: list[Any]) -> list[Any]:
    return [span for message in messages for *_, span in leaves(message) if span.kind == span.SPAN_KIND_SERVER]


def requests_of(server: ClickHouse) -> int:
    with open_store(server.url) as reader, reader.relations(EVER) as relations:
        return answers.count(relations)


def has_table(server: ClickHouse) -> bool:
    with open_store(server.url) as reader:
        assert isinstance(reader, clickhouse_reader.ClickHouseReader)
        return reader.table.has_requests


def test_a_user_who_may_set_nothing_reads_as_well(server: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queries have the server's bounds alone, which is said."""
    monkeypatch.setattr(log, "_logged", set())
    url = server.url.replace("://", "://reader:secret@")
    found = cli("stages", *SINCE, "--store", url, "--json")
    assert found.returncode == 0
    assert "user reader may set nothing (readonly = 1)" in found.stderr
    ours = answered("stages", *SINCE, "--store", server.url)
    assert rounded(json.loads(found.stdout)["groups"]) == rounded(ours["groups"])
    assert "secret" not in found.stdout + found.stderr
    said = refused("clickhouse init", "--store", url)
    assert "the user of the URL needs" in said or "readonly" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("otel_traces", "spans"), "name the table: clickhouse://HOST/DATABASE?table=NAME"),
        (("/otel?", "/otle?"), "name the database: clickhouse://HOST/DATABASE?table=NAME"),
        (("/otel?table=otel_traces", "/?table=otel_traces"), "it names one database behind the host, as /otel"),
        (("://", "://reader:wrong@"), "check them: clickhouse://USER:PASSWORD@HOST/"),
        (
            ("otel_traces", "otel_traces_trace_id_ts"),
            "it has no column Timestamp, so it is no table of the ",
        ),
        (("otel_traces", "otel_traces&max_execution_tim=3"), "ClickHouse has no setting 'max_execution_tim'"),
        (("otel_traces", "otel_traces&max_rows_to_read=10"), "or allow more: clickhouse://...&max_rows_to_read=N"),
        (
            ("otel_traces", "otel_traces&max_memory_usage=9000"),
            "or allow more: clickhouse://...&max_memory_usage=BYTES",
        ),
        (("127.0.0.1:", "127.0.0.1:1"), ""),
    ],
)
def test_what_cannot_be_read_says_what_is_wrong(server: ClickHouse, change: tuple[str, str], expected: str) -> None:
    said = refused("stages", *SINCE, "--store", server.url.replace(*change))
    assert expected in said
    assert "wrong" not in said.replace("is wrong", "")


def test_a_tenant_with_a_database_of_its_own_sees_no_other(tmp_path: Path, messages: list[Any]) -> None:
    """Nor does a question that names what only the other has."""
    with run_clickhouse(tmp_path) as server:
        otel_traces.create(server)
        otel_traces.insert(server, messages[:2])
        server.run("CREATE DATABASE other").raise_for_status()
        server.run("CREATE TABLE other.otel_traces AS otel.otel_traces").raise_for_status()
        other = server.url.replace("/otel?", "/other?")
        assert answered("services", "--store", server.url)["services"]
        assert answered("services", "--store", other)["services"] == []
        assert "there is no service" in refused("stages", *SINCE, "--service", "ticket-router", "--store", other)
        found = answered("query", "SELECT count() AS n FROM spans", *SINCE, "--store", other)
        assert found["rows"] == [[0]]


def test_a_server_that_is_not_there_is_an_error() -> None:
    said = refused("stages", "--store", "clickhouse://127.0.0.1:9/otel")
    assert said.startswith("stagetrace: cannot reach ClickHouse at 127.0.0.1:9: ")
    assert said.endswith("check host, port (of HTTP, normally 8123) and that ClickHouse runs\n")


def test_the_page_shows_what_it_shows_of_the_local_store(
    server: ClickHouse, local: str, messages: list[Any], tmp_path: Path
) -> None:
    """Each part of each view, but for the name of the store and the time that it took."""
    starts = [one.start_time_unix_nano for one in entries(messages)]
    window = f"since={time_of(min(starts) - S)}&until={time_of(max(starts) + S)}"
    late = answered("breaches", "--each", *SINCE, "--store", local)["breaches"][0]["trace_id"]
    folders = [tmp_path / "local", tmp_path / "clickhouse"]
    for folder in folders:
        folder.mkdir()
    with run_page(folders[0], local) as ours, run_page(folders[1], server.url) as theirs:
        for path in ALL_PARTS:
            at = f"{path.replace(HOSTILE_TRACE, late)}?{window}"
            found, expected = theirs.get(at, headers=AS_PART), ours.get(at, headers=AS_PART)
            assert found.status_code == expected.status_code, (path, found.text, expected.text)
            assert shown(found.text, server.url) == shown(expected.text, local), path


def shown(page: str, store: str) -> str:
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    text = (
        re.sub(r"asked at .*? took [\d.]+ m?s", "", text)
        .replace(store, "STORE")
        .replace("'STORE'", "STORE")
        .replace("'--store=STORE'", "--store=STORE")
    )
    text = re.sub(r'"(-?[\d.]+|true|false)"', r"\1", text)  # attributes that stagetrace does not know are texts
    return re.sub(r"\d+\.\d{7,}", lambda found: f"{float(found[0]):.6f}", text)


@pytest.mark.parametrize("delta", [False, True])
def test_counts_that_services_sent_are_those_of_the_local_store(tmp_path: Path, delta: bool) -> None:
    """Of processes that restart, verdicts that begin later, points that come twice; in windows of all edges."""
    chance = random.Random(3)
    points = []
    for instance in ("a", "b"):
        for start in (0, 3600):
            for verdict, later in (("good", 0), ("breach", 120), ("excluded", 0)):
                total = 0
                for minute in range(1 + later // 60, 20):
                    added = chance.choice([0, 0, 3, 50])
                    total += added
                    at = T + (start + minute * 60) * S
                    began = at - 60 * S if delta else T + start * S
                    value = added if delta else total
                    points.append(Point("api", instance, began, "/x", "* within 1s", verdict, value, at, delta))
    folder = tmp_path / "store"
    with LocalStore.open(folder) as opened:
        for _, told in itertools.groupby(sorted(points, key=by_process), by_process):
            opened.append_counts(list(told))
    with run_clickhouse(tmp_path / "server") as server:
        otel_traces.create(server)
        otel_traces.insert_counts(server, [*points, *points[::7]])
        edges = [T + seconds * S for seconds in (-100, 0, 90, 120, 600, 1140, 3700, 4000, 10_000)]
        with open_store(str(folder)) as ours, open_store(server.url) as theirs:
            assert "counts" in theirs.capabilities
            for since, until in itertools.combinations(edges, 2):
                wanted = Selection(since, until, service="api")
                found, expected = (reader.counted(wanted) for reader in (theirs, ours))  # type: ignore[attr-defined]
                assert [one.counts for one in found] == [one.counts for one in expected], (since - T, until - T)
                assert [one.is_exact for one in found] == [one.is_exact for one in expected]


def by_process(point: Point) -> tuple[int, str]:
    return point.time_ns, point.instance


def test_no_one_writes_by_a_query(server: ClickHouse) -> None:
    """By what a SELECT cannot be, and by what looks like one."""
    before = server.rows("SELECT count() AS n FROM otel_traces")
    for sql in (
        "INSERT INTO otel_traces (TraceId) SELECT trace_id FROM requests",
        "DROP TABLE otel_traces",
        "SELECT 1; DROP TABLE otel_traces",
        "DESCRIBE requests; DROP TABLE otel_traces",
        "CREATE TABLE mine ENGINE = Memory AS SELECT * FROM requests",
    ):
        assert len(refused("query", sql, *SINCE, "--store", server.url).splitlines()) <= 3
    assert server.rows("SELECT count() AS n FROM otel_traces") == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count() AS n FROM requests",
        "WITH few AS (SELECT * FROM requests LIMIT 7) SELECT count() AS n FROM few",
        "-- how many?\n/* all */ SELECT count(*) AS n FROM spans WHERE is_entry",
        "DESCRIBE requests",
        "describe table spans;",
        "EXPLAIN SELECT count() FROM requests",
    ],
)
def test_a_query_is_clickhouse_sql_over_both_relations(server: ClickHouse, sql: str) -> None:
    found = answered("query", sql, *SINCE, "--store", server.url)
    assert found["rows"]
    if found["columns"] == ["n"]:
        assert found["rows"] in ([[7]], [[827]])


def test_a_query_in_work_is_interrupted_by_its_id(server: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The double cannot end a query; what is shown is that the server is asked to, for the one that runs."""
    asked: list[str] = []
    reader = clickhouse_reader.open_url(server.url)
    begun = threading.Event()

    def ask() -> None:
        with reader.relations(EVER) as relations:
            begun.set()
            list(relations.select("SELECT sleepEachRow(0.5) FROM numbers(4) SETTINGS max_block_size = 1")[1])

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(60)
    real = reader.client.connect

    def connect() -> Any:
        other = real()
        monkeypatch.setattr(other, "command", lambda sql, parameters: asked.append(f"{sql} {parameters['id']}"))
        return other

    monkeypatch.setattr(reader.client, "connect", connect)
    deadline = time.monotonic() + 60
    while not asked and time.monotonic() < deadline:
        reader.interrupt()
        time.sleep(0.05)
    thread.join(60)
    reader.close()
    assert asked
    assert asked[0].startswith("KILL QUERY WHERE query_id = {id:String} ASYNC ")
    assert len(asked[0].split()[-1]) == 32


def test_what_a_table_lacks_is_no_error(server: ClickHouse) -> None:
    with pytest.raises(StoreError, match="there is no trace"), open_store(server.url) as reader:
        reader.trace("ab" * 16)
