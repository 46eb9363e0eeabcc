"""The one column schema: a row is all that a column takes, and rows are right."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services import PYTHON
from stagetrace.columns import GENERATION, SCHEMA, older_name
from stagetrace.otlp.decode.columns import FIXED, SHARED, TYPED

if TYPE_CHECKING:
    from collections.abc import Mapping

TESTS = Path(__file__).parent.parent
OLDER = TESTS / "store/local/older"
LOG = OLDER / "folder/spans/_delta_log/00000000000000000000.json"
WIDER = TESTS / "store/wider.py"


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Return what a process says whose schema has rows more, and nothing else."""
    argv = [PYTHON, str(WIDER), str(tmp_path_factory.mktemp("wider")), str(OLDER)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("store", ["local", "log", "file", "parquet", "jaeger"])
def test_a_row_is_all_that_a_column_takes(wider: Mapping[str, Any], store: str) -> None:
    """Of each type, over each way in which spans are read; a value of another type is none."""
    first, second, third = ("0000000000000001", "0000000000000002", "0000000000000003")
    assert wider[store]["requests"] == [[first, "gold", 3, 0.5, True], [second, None, None, 7.0, None]]
    assert wider[store]["spans"] == [[first, "gold", 3], [second, None, None], [third, "inner", None]]
    assert wider[store]["counts"] == [["5", 1], ["gold", 1]]
    assert wider[store]["listed"] == [["gold", 3, 0.5, True], [None, None, 7.0, None]]


def test_an_older_folder_and_an_older_export_have_it_too(wider: Mapping[str, Any]) -> None:
    """Out of what they keep beside their columns."""
    assert wider["older folder"] == wider["older export"] == [[1, None], [2, "blue"], [3, None], [4, None], [6, None]]


def test_what_came_after_the_first_release_has_its_generation() -> None:
    """The columns of a folder from before generation 1 are those without `since`, and no other."""
    fields = json.loads(json.loads(LOG.read_text().splitlines()[2])["metaData"]["schemaString"])["fields"]
    first = {field["name"] for field in fields}
    stored = [one for one in SCHEMA if one.attribute is not None]
    assert {one.name for one in stored if one.since == 0} <= first
    assert not {one.name for one in stored if one.since > 0} & first
    assert {one.since for one in stored} == set(range(GENERATION + 1))


def test_rows_are_well_formed() -> None:
    names = [one.name for one in SCHEMA]
    attributes = [key for one in SCHEMA for key in (one.attribute, one.older) if key is not None]
    assert len(set(names)) == len(names)
    assert len(set(attributes)) == len(attributes) == len(TYPED)
    taken = {name for name, _ in (*FIXED, *SHARED)} - {"name", "kind", "status", "service", "resource"}
    assert not {one.name for one in SCHEMA if one.attribute is not None} & taken
    for one in SCHEMA:
        assert bool(one.attribute or one.holds), f"{one.name}: what does it hold?"
        assert one.older is None or older_name(one) not in names
        assert one.relations or one.attribute
