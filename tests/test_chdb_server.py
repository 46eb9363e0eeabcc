"""The double of a ClickHouse server, asked by the real client over a socket."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import clickhouse_connect
import httpx
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, ProgrammingError

from backends import LOOPBACK, free_port
from clickhouse import ClickHouse, run_clickhouse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clickhouse_connect.driver.client import Client

pytestmark = pytest.mark.service
READER = {"username": "reader", "password": "secret"}
UNTIL = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    with run_clickhouse(tmp_path_factory.mktemp("clickhouse")) as running:
        yield running


def connect(server: ClickHouse, **options: Any) -> Client:
    return clickhouse_connect.get_client(host=LOOPBACK, port=server.port, database="otel", **options)


@pytest.fixture
def client(server: ClickHouse) -> Iterator[Client]:
    with connect(server) as one:
        one.command("CREATE OR REPLACE TABLE t (n UInt32, m Map(String, String)) ENGINE = MergeTree ORDER BY n")
        one.insert("t", [[n, {"a\t\0": f"'ü{n}"}] for n in range(1000)], column_names=["n", "m"])
        yield one


def refused(client: Client, sql: str, **settings: Any) -> int | None:
    """Return the code of the error that a query ends with."""
    with pytest.raises(DatabaseError) as error:
        client.query(sql, settings=settings)
    return error.value.code


def test_ping(server: ClickHouse, client: Client) -> None:
    """Both ways to ask whether the server lives."""
    assert client.ping()
    assert httpx.get(server.http).text == "Ok.\n"


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", False])
def test_insert(server: ClickHouse, client: Client, compress: str | bool) -> None:
    """Rows arrive by the format Native, compressed in any way that the client knows without a further package."""
    with connect(server, compress=compress) as other:
        assert other.insert("t", [[5000, {"b": "c"}]], column_names=["n", "m"]).written_rows == 1
    assert client.query("SELECT m FROM t WHERE n >= 1000").result_rows == [({"b": "c"},)]


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", False])
def test_insert_of_any_bytes(server: ClickHouse, client: Client, compress: str | bool) -> None:
    """Data may hold what ends a statement; several blocks arrive whole."""
    texts = [f"{n};\n\n{'x' * (n % 300)}\n;INSERT\0'" for n in range(20_000)]
    with connect(server, compress=compress) as other:
        other.insert("t", [[10_000, {"a": text}] for text in texts], column_names=["n", "m"])
    (row,) = client.query("SELECT count(), sum(length(m['a'])) FROM t WHERE n = 10000").result_rows
    assert row == (20_000, sum(map(len, texts)))


def test_formats(server: ClickHouse, client: Client) -> None:
    """Native, Arrow and text hold the same; a result may have no rows, or many."""
    assert client.query("SELECT n, m FROM t WHERE n = 7").result_rows == [(7, {"a\t\0": "'ü7"})]
    assert client.query_arrow("SELECT n, m FROM t WHERE n = 7").to_pylist() == [{"n": 7, "m": [("a\t\0", "'ü7")]}]
    assert server.rows("SELECT n, m FROM t WHERE n = 7") == [{"n": 7, "m": {"a\t\0": "'ü7"}}]
    assert server.run("SELECT n, 'a\tb' FROM t WHERE n = 7").text == "7\ta\\tb\n"
    assert client.query("SELECT * FROM t LIMIT 0").column_names == ("n", "m")
    assert client.query("SELECT * FROM t WHERE n > 1000").result_rows == []
    assert client.query_arrow("SELECT * FROM t WHERE n > 1000").num_rows == 0
    with client.query_row_block_stream("SELECT number FROM numbers(1000000)") as blocks:
        assert sum(len(block) for block in blocks) == 1_000_000


def test_parameters(client: Client) -> None:
    """The server binds them, by type; those that are too many for a URL travel as a form."""
    when = datetime(2026, 1, 2, 3, 4, 5, 6)  # noqa: DTZ001 -- in the zone of the server
    given = {"texts": ["a\t'b\\", None], "when": when, "n": 500}
    query = "SELECT {texts:Array(Nullable(String))}, {when:DateTime64(6)}, count() FROM t WHERE n < {n:UInt32}"
    assert client.query(query, parameters=given).result_rows == [(["a\t'b\\", None], when, 500)]
    many = {"ids": [f"{n:032x}" for n in range(5000)]}
    assert client.query("SELECT length({ids:Array(String)})", parameters=many).result_rows == [(5000,)]


def test_settings(client: Client) -> None:
    """They are honoured, and are those of one request; an unknown one is refused."""
    aliased = "SELECT n + 1 AS n FROM t WHERE n = 7"
    assert client.query(aliased, settings={"prefer_column_name_to_alias": 1}).result_rows == [(8,)]
    assert client.query(aliased).result_rows == [(7,)]
    assert refused(client, UNTIL, max_execution_time=0.2) == 159
    assert refused(client, "SELECT * FROM t", max_bytes_to_read=100) == 307
    assert refused(client, "SELECT number FROM numbers(10000000) ORDER BY rand()", max_memory_usage=1_000_000) == 241
    assert client.query("SELECT getSetting('max_execution_time')").result_rows == [(0,)]


def test_errors(server: ClickHouse, client: Client) -> None:
    """Status, header and text are those of the real server."""
    assert refused(client, "SELECT * FROM nowhere") == 60
    answer = server.run("SELECT * FROM nowhere")
    assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (404, "60")
    assert answer.text.startswith("Code: 60. DB::Exception: Unknown table")
    assert "(UNKNOWN_TABLE) (version 2" in answer.text
    assert server.run("SELEC").status_code == 400
    assert server.run("SELECT 1", no_such_setting="1").headers["X-ClickHouse-Exception-Code"] == "115"
    assert server.run("SELECT 1", database="nowhere").headers["X-ClickHouse-Exception-Code"] == "81"
    assert server.run("SELECT 1", decompress="1").headers["X-ClickHouse-Exception-Code"] == "48"


def test_statement_may_be_in_the_url(server: ClickHouse, client: Client) -> None:
    """Data then follow in the body; GET writes nothing."""
    assert server.run("5000\t{}\n", query="INSERT INTO t FORMAT TSV").status_code == 200
    assert client.query("SELECT max(n) FROM t").result_rows == [(5000,)]
    query = {"database": "otel", "query": "INSERT INTO t (n) VALUES (6000)"}
    assert httpx.get(server.http, params=query).headers["X-ClickHouse-Exception-Code"] == "164"


def test_summary(client: Client) -> None:
    """What was read, and what was written."""
    assert client.query("SELECT sum(n) FROM t").summary["read_rows"] == "1000"
    assert int(client.query("SELECT sum(n) FROM t").summary["read_bytes"]) == 4000


@pytest.mark.usefixtures("client")
def test_reader_may_change_nothing(server: ClickHouse) -> None:
    """The user with readonly=1 reads; settings and writing statements are refused, and the client knows it."""
    with connect(server, **READER) as reader:
        assert reader.query("SELECT count() FROM t").result_rows == [(1000,)]
        for statement in ("INSERT INTO t (n) VALUES (1)", "CREATE TABLE u (n Int8) ENGINE = Memory", "DROP TABLE t"):
            with pytest.raises(DatabaseError) as error:
                reader.command(statement)
            assert error.value.code == 164
        assert refused(reader, "SELECT 1 SETTINGS max_threads = 1") == 164
        with pytest.raises(ProgrammingError, match="max_execution_time is readonly"):
            reader.query("SELECT 1", settings={"max_execution_time": 1})
    answer = server.run("SELECT 1", user="reader", password=READER["password"], max_execution_time="1")
    assert answer.headers["X-ClickHouse-Exception-Code"] == "164"
    assert "Cannot modify 'max_execution_time' setting in readonly mode" in answer.text


@pytest.mark.parametrize("who", [{"username": "reader", "password": "wrong"}, {"username": "nobody", "password": "x"}])
def test_wrong_password(server: ClickHouse, who: dict[str, str]) -> None:
    """The client is told which user was refused."""
    with pytest.raises(DatabaseError, match=f"{who['username']}: Authentication failed") as error:
        connect(server, **who)
    assert error.value.code == 516


def test_data_stay(tmp_path: Path) -> None:
    """The next server on the same folder and port has what the first has acknowledged."""
    port = free_port()
    with run_clickhouse(tmp_path, port) as first:
        first.run("CREATE TABLE t (n Int8) ENGINE = MergeTree ORDER BY n")
        first.run("INSERT INTO t VALUES (1), (2)")
    with run_clickhouse(tmp_path, port) as second:
        assert second.rows("SELECT sum(n) AS n FROM t") == [{"n": 3}]
