"""The SQL of reductions without an engine: both texts of each parse in their dialects, and give the same columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import sqlglot
from sqlglot.optimizer.qualify import qualify

import stagetrace.store
from stagetrace.store.reductions import CLICKHOUSE, REQUESTS, SPANS, statement
from stagetrace.store.stored import ENGINE

if TYPE_CHECKING:
    from stagetrace.store.reductions import Engine

SQL: Final = Path(stagetrace.store.__file__).parent / "sql"
NAMES: Final = sorted(path.name.removesuffix(".duckdb.sql") for path in SQL.glob("*.duckdb.sql"))
TABLE: Final = {
    **REQUESTS,
    "resource": "MAP(VARCHAR, VARCHAR)",
    "of_resource": "BLOB",
    "rest": "BLOB",
    "missed": "VARCHAR",
}
# Of ClickHouse's aggregate functions with two lists of arguments sqlglot knows some; alike as far as columns go.
KNOWN: Final = {"quantilesExactInclusive": "quantilesExact", "groupArraySorted": "groupArraySample"}


def columns(engine: Engine, name: str) -> list[str]:
    text = statement(engine, name, ["service", "path"])
    for one, other in KNOWN.items():
        text = text.replace(one, other)
    tables: dict[str, object] = {engine.source: TABLE, engine.spans: SPANS}
    parsed = sqlglot.parse_one(text, dialect=engine.name)
    whole = qualify(parsed, dialect=engine.name, schema=tables, validate_qualify_columns=False)
    assert isinstance(whole, sqlglot.exp.Query)
    return list(whole.named_selects)


@pytest.mark.parametrize("name", NAMES)
def test_both_texts_parse_and_give_the_same_columns(name: str) -> None:
    ours = columns(ENGINE, name)
    assert ours == columns(CLICKHOUSE, name)
    assert "*" not in ours


def test_a_text_is_repeated_for_each_stage() -> None:
    """In the order of the schema; what is not ours to fill, as ClickHouse's values, stays."""
    text = statement(CLICKHOUSE, "ranks", [])
    names = ["network_receive", "queue", "preprocess", "handler", "inference", "postprocess", "network_send", "other"]
    places = [text.index(f"{name}_ms < {{{name}_ms:Float64}}") for name in names]
    assert places == sorted(places)
    assert "{each" not in text
