"""`stagetrace query` over literal spans: what it prints, whole, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cli.running import answered, printed, refused
from stagetrace.cli import query

if TYPE_CHECKING:
    from pathlib import Path


def test_query_gives_every_type_as_json_has_it(spans: Path) -> None:
    sql = (
        "SELECT 9223372036854775807 AS big, 1.50::DECIMAL(9, 2) AS d, 'nan'::DOUBLE AS n, '-inf'::DOUBLE AS i, "
        "attributes AS m, [1, NULL] AS l, {'a': 'b'} AS s, '\\x01'::BLOB AS b, DATE '2026-03-01' AS day, 'é\x1b' AS t "
        "FROM spans WHERE stage = 'network.send'"
    )
    found = answered("query", sql, "--store", spans)
    assert found["rows"] == [
        [
            *(9223372036854775807, 1.5, "NaN", "-Infinity", {"ml.stage": "network.send"}, [1, None], {"a": "b"}),
            *("AQ==", "2026-03-01", "é\x1b"),
        ]
    ]
    assert "\x1b" not in printed("query", sql, "--store", spans)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT nope FROM requests", 'Referenced column "nope" not found'),
        ("SELECT * FROM reqests", "Table with name reqests does not exist"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("ATTACH '/tmp/x.db'", "query only reads, and this is ATTACH"),
        ("COPY requests TO '/tmp/x.csv'", "query only reads, and this is COPY"),
        ("EXPORT DATABASE '/tmp/x'", "query only reads, and this is EXPORT"),
        ("EXPLAIN ANALYZE COPY requests TO '/tmp/x.csv'", "Cannot access file"),
        ("FROM read_csv('/etc/passwd')", "file system operations are disabled"),
        ("FROM read_text('/etc/passwd')", "file system operations are disabled"),
        ("FROM '/etc/passwd'", "does not exist"),
        ("FROM glob('/*')", "file system operations are disabled"),
        ("SELECT getenv('HOME')", "does not exist"),
        ("FROM query('DROP VIEW requests')", "SELECT statement"),
    ],
)
def test_query_reads_the_relations_and_nothing_else(spans: Path, sql: str, expected: str) -> None:
    assert expected in refused("query", sql, "--store", spans)


def test_a_query_that_takes_too_long_is_ended(spans: Path) -> None:
    """While it computes, and while it yields rows; one that is done in time is not."""
    endless = "SELECT count(*) FROM range(1000000000000)"
    for sql in (endless, "SELECT range FROM range(1000000000000) WHERE range < 5"):
        said = refused("query", sql, "--timeout", "0.2", "--store", spans)
        assert said.startswith("stagetrace: the query took longer than 0.2 s, and was ended\n")
    assert printed("query", "SELECT 1 AS one", "--timeout", "60", "--csv", "--store", spans) == "one\n1\n"
    assert printed("query", "SELECT 1 AS one", "--timeout", "0", "--csv", "--store", spans) == "one\n1\n"


def test_a_result_has_a_limit_of_rows_and_of_bytes(spans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answered("query", "FROM range(1000000000000)", "--rows", "700", "--store", spans)
    assert found["rows"] == [[number] for number in range(700)]
    assert (found["complete"], found["reason"]) == (False, "there are more than 700 rows: --rows N prints more")
    assert answered("query", "FROM range(700)", "--rows", "700", "--store", spans)["complete"]
    monkeypatch.setattr(query, "_MOST_BYTES", 1 << 20)
    found = answered("query", "SELECT repeat('x', 1000) FROM range(1000000000)", "--store", spans)
    assert found["reason"] == f"the first {len(found['rows']):,} rows have 1 MiB, and there are more"
    assert 1000 < len(found["rows"]) < 1100
