"""Readers in processes of their own beside a writer that moves, merges and deletes files all the time."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from deltalake import DeltaTable

from backend.processes import WITHIN_S, Lines, started
from stagetrace.otlp.decode.columns import join_tables
from stagetrace.store.local import LocalReader, LocalStore, delta, folder
from stagetrace.store.local.delta import APP
from stagetrace.store.local.folder import TABLE
from store.local.made import EVER, NOW, ids, judged, request, span

TESTS = Path(__file__).parents[2]
READERS = 3
STEPS = 15


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagetrace.store.local.store.FLUSH_ROWS", 40)
    monkeypatch.setattr("stagetrace.store.local.delta.CHECKPOINT_EVERY", 4)
    monkeypatch.setattr("stagetrace.store.local.table.GRACE_S", 0.0)


@pytest.mark.thorough
def test_readers_in_other_processes_see_everything_acknowledged_once(store: LocalStore) -> None:
    argv = [sys.executable, "-m", "store.local.reading", str(store.folder)]
    written = 0
    with ExitStack() as stack:
        readers = [
            stack.enter_context(started(argv, stdin=subprocess.PIPE, stderr=None, cwd=TESTS)) for _ in range(READERS)
        ]
        answers = [Lines(reader.stdout) for reader in readers]
        for step in range(STEPS):
            for _ in range(10):
                store.append(request([span(written + at, start=NOW + written + at) for at in range(1, 6)]))
                written += 5
            if step % 5 == 4:
                store.compact()
            reader = readers[step % READERS]
            assert reader.stdin
            reader.stdin.write(b"%d\n" % written)
            reader.stdin.flush()
            # The writer goes on while the reader looks.
            for _ in range(5):
                store.append(request([span(written + 1, start=NOW + written + 1)]))
                written += 1
            found, different = map(int, answers[step % READERS].next().split())
            assert found == different
            assert written - 5 <= found <= written
        for reader in readers:
            assert reader.stdin
            reader.stdin.close()
            assert reader.wait(WITHIN_S) == 0


def test_relations_stay_readable_while_their_files_are_replaced(store: LocalStore) -> None:
    """What an analysis opened, it can read to the end: replaced files stay for a while."""
    for number in range(1, 15):
        store.append(request([span(number)]))
        store.flush()
    with LocalReader.open(store.folder) as reader, reader.relations(EVER) as relations:
        store._table.vacuum(300.0)
        store.compact()
        assert list(relations.select("SELECT count(*) FROM spans")[1]) == [(14,)]


def test_delta_lake_reads_the_same_table(store: LocalStore) -> None:
    """Deltalake is the oracle: same files, same rows, after commits, merges and checkpoints."""
    for number in range(1, 31):
        store.append(request([judged(number), span(1000 + number, trace=number, parent=number)]))
        store.flush()
    store.compact()
    store.flush()
    ours = delta.load(store.folder / TABLE)
    theirs = DeltaTable(str(store.folder / TABLE))
    assert theirs.version() == ours.version
    assert sorted(Path(uri).name for uri in theirs.file_uris()) == sorted(Path(path).name for path in ours.files)
    assert theirs.transaction_version(APP) == ours.stored
    assert [field.name for field in theirs.schema().fields] == [name for name, _ in folder.delta_schema()]
    with store.reader() as reader:
        assert len(ids(reader)) == 60
    rows = join_tables([folder.read(store.folder / TABLE, list(ours.files.values()))])
    assert rows.num_rows == 60
    log = list((store.folder / TABLE / delta.LOG).glob("*.json"))
    assert len(log) < 15, "checkpoints keep the log short"


def test_a_reader_that_looks_rarely_follows_across_checkpoints(store: LocalStore) -> None:
    with LocalReader.open(store.folder) as reader:
        assert ids(reader) == []
        for number in range(1, 20):
            store.append(request([span(number)]))
            store.flush()
        assert not (store.folder / TABLE / delta.LOG / f"{1:020d}.json").exists()
        assert ids(reader) == list(range(1, 20))


@pytest.mark.thorough
def test_a_command_does_without_pyarrow_where_the_log_is_empty(store: LocalStore) -> None:
    """Importing it takes a good part of the time to a first answer (docs/performance.md)."""
    for number in range(1, 20):
        store.append(request([judged(number)]))
        store.flush()
    assert list((store.folder / TABLE / delta.LOG).glob("*.checkpoint.parquet"))
    store.close()
    script = (
        "import sys; from stagetrace.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'duckdb', 'pyarrow'} & {*sys.modules}))"
    )
    asked = [
        "breaches",
        "--each",
        "--store",
        str(store.folder),
        "--since",
        "1970-01-01T00:00:00Z",
        "--limit",
        "5",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *asked], capture_output=True, text=True, timeout=60, check=True
    )
    answer, imported = done.stdout.splitlines()
    assert len(json.loads(answer)["breaches"]) == 5
    assert imported == "0 ['duckdb']"
