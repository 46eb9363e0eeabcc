"""Spans stored before an attribute got its column: `older/`, written by stagetrace of November 2026 (e5d498f).

Its requests are of the model versions "2" (with a stage span), "3", none, the number 7 and "3".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from messages import attribute
from stagetrace.errors import StoreError
from stagetrace.store import open_store
from stagetrace.store.local import LocalStore
from stagetrace.store.rows import spans_of
from store.local.made import EVER, LINES, judged, request, span

OLDER = Path(__file__).parent / "older"
VERSIONS = [(1, "2"), (2, "3"), (3, None), (4, None), (6, "3")]
NEWER = [(11, "2"), (12, None)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLDER / "folder", tmp_path / "folder"))


def versions(store: str | Path, relation: str = "requests") -> list[tuple[int, str | None]]:
    with open_store(str(store)) as reader, reader.relations(EVER) as relations:
        query = f"SELECT span_id, model_version FROM {relation} ORDER BY span_id"  # noqa: S608 -- a name of ours
        return [(int(number, 16), found) for number, found in list(relations.select(query)[1])]


def test_an_older_folder_has_its_model_versions(folder: Path) -> None:
    assert versions(folder) == VERSIONS
    assert versions(folder, "spans") == sorted([*VERSIONS, (5, "2")])


def test_so_has_an_older_export() -> None:
    """Which tells texts from numbers no more."""
    assert versions(OLDER / "spans.parquet") == [one if one[0] != 4 else (4, "7") for one in VERSIONS]


# Stores requests by the schema of the generation before `code` had a column.
BEFORE = """
import sys
from pathlib import Path
from stagetrace import columns
columns.SCHEMA = tuple(one for one in columns.SCHEMA if one.since < 3)
columns.GENERATION = 2
from store.local.made import LINES, judged, request
from stagetrace.store.local import LocalStore
with LocalStore.open(Path(sys.argv[1])) as store:
    store.append(request([judged(number, sla__breach__code=code) for number, code in enumerate(LINES, 1)]))
    store.flush()
"""


@pytest.mark.thorough
def test_a_breach_stored_before_its_code_had_a_column_has_it(tmp_path: Path) -> None:
    """A newer service may send to an older back end: the line is listed, selected and counted all the same."""
    argv = [sys.executable, "-c", BEFORE, str(tmp_path / "store")]
    subprocess.run(argv, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60)
    with open_store(str(tmp_path / "store")) as reader:
        assert {one.code for one in reader.breaches(EVER).breaches} == set(LINES)
        found = reader.breaches(replace(EVER, codes=("app.py:41",), limit=1))
        assert [one.code for one in found.breaches] == [LINES[0]]
        assert (found.complete, found.tally.missed, found.tally.judged) == (True, 1, 2)
        with pytest.raises(StoreError, match=r"there are app.py:7 in load, app.py:41 in predict"):
            reader.breaches(replace(EVER, codes=("app.py:14",)))


def test_a_request_stored_before_its_verdicts_had_a_column_is_selected_by_them(tmp_path: Path) -> None:
    text = "good: p99 (99% over 28d); breach: p50 (50% over 28d)"
    script = BEFORE.replace("sla__breach__code=code", f"sla__verdicts={text!r}")
    argv = [sys.executable, "-c", script, str(tmp_path / "store")]
    subprocess.run(argv, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60)
    with open_store(str(tmp_path / "store")) as reader:
        found = reader.breaches(replace(EVER, judged_by="p50", limit=1))
        assert (len(found.breaches), found.tally.missed, found.tally.judged) == (1, len(LINES), len(LINES))
        found = reader.breaches(replace(EVER, judged_by="p99"))
        assert (len(found.breaches), found.tally.missed, found.tally.judged) == (0, 0, len(LINES))
        with pytest.raises(StoreError, match="has the objective 'p90'"):
            reader.breaches(replace(EVER, judged_by="p90"))


@pytest.mark.parametrize("merged", [False, True])
def test_and_beside_newer_spans_as_well(folder: Path, merged: bool) -> None:
    """In the log, in a file of its own, and merged with the older ones into one file; nothing is lost or doubled."""
    with LocalStore.open(folder) as store:
        store.append(request([judged(11, ml__model__version="2"), judged(12), span(13, trace=11, parent=11)]))
        with store.reader() as reader, reader.relations(EVER) as relations:
            query = "SELECT count(*) FROM requests WHERE model_version = '2'"
            assert list(relations.select(query)[1]) == [(2,)]
        store.flush()
        if merged:
            assert store._table.compact() > 1
    assert versions(folder) == sorted([*VERSIONS, *NEWER])
    with open_store(str(folder)) as whole:
        spans = [one.span for message in whole.iter_otlp(EVER, []) for one in spans_of(message)]
    found = {one.span_id[-1]: [item for item in one.attributes if item.key == "ml.model.version"] for one in spans}
    told: dict[int, str | int] = {1: "2", 2: "3", 4: 7, 5: "2", 6: "3", 11: "2"}
    assert found == {
        number: [attribute("ml.model.version", told[number])] if number in told else []
        for number in (1, 2, 3, 4, 5, 6, 11, 12, 13)
    }
