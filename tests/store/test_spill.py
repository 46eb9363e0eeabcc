"""Where databases go on disk: folders that nobody else can enter, deleted with their database or by a later one."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backend.processes import WITHIN_S, Lines, started
from stagetrace.backend.counters import Counters
from stagetrace.backend.options import Listening
from stagetrace.page.app import Page
from stagetrace.page.base import Site
from stagetrace.page.login import Login
from stagetrace.store import database, open_store
from stagetrace.store.base import Selection
from stagetrace.store.load import load
from stagetrace.store.local import LocalStore
from store.local.made import request, span

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SORT = "SELECT range, md5(range::VARCHAR) AS m FROM range(1000000) ORDER BY m"
MAKING = """
import sys, time
from pathlib import Path
from stagetrace.store import database

connection = database.connect(Path(sys.argv[1]))
print("made", flush=True)
time.sleep(100)
"""


def spilled(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{database.PREFIX}*"))


def folder_of(connection: DuckDBPyConnection) -> Path:
    ((name,),) = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    return Path(name)


def test_what_is_written_is_private_and_deleted(tmp_path: Path) -> None:
    """By a database that is locked, too."""
    connection = database.connect(tmp_path)
    connection.execute("SET memory_limit = '40MB'")
    connection.execute("SET threads = 2")
    database.lock(connection)
    (folder,) = spilled(tmp_path)
    assert folder == folder_of(connection)
    assert connection.execute(SORT).fetchone()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert any(folder.iterdir())
    database.close(connection)
    assert not spilled(tmp_path)


def test_a_database_that_nobody_closes_leaves_nothing(tmp_path: Path) -> None:
    connection = database.connect(tmp_path)
    assert spilled(tmp_path)
    del connection
    assert not spilled(tmp_path)


def test_what_a_killed_process_left_is_deleted_and_not_what_others_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = [sys.executable, "-c", MAKING, str(tmp_path)]
    with started(making) as killed:
        assert Lines(killed.stdout).next() == "made"
        left = spilled(tmp_path)
        killed.send_signal(signal.SIGKILL)
        killed.wait(WITHIN_S)
    assert spilled(tmp_path) == left
    with started(making) as other:
        assert Lines(other.stdout).next() == "made"
        used = spilled(tmp_path)
        assert len(used) == 1
        assert used != left
        monkeypatch.setattr(database, "_cleared", set())
        database.close(database.connect(tmp_path))
        assert spilled(tmp_path) == used


def test_a_store_of_somebody_else_gets_nothing_written_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    monkeypatch.setattr(database, "_cleared", set())
    connection = database.connect(tmp_path)
    assert folder_of(connection).parent == Path(tempfile.gettempdir())
    database.close(connection)


def test_without_any_folder_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/nowhere")
    connection = database.connect()
    assert connection.execute("SELECT current_setting('temp_directory')").fetchall() == [("",)]
    assert connection.execute("SELECT 1").fetchall() == [(1,)]
    database.close(connection)


def test_each_database_of_a_store_has_a_folder_in_it(tmp_path: Path) -> None:
    """Of its writer, of a reader and of relations; when all are closed, none is left."""
    store = tmp_path / "store"
    with LocalStore.open(store) as opened:
        opened.append(request([span(1)]))
        writers = spilled(store)
        with open_store(str(store)) as reader, load(reader, Selection(0, 2**63 - 1)) as relations:
            assert list(relations.select("SELECT count(*) FROM spans")[1]) == [(1,)]
            assert folder_of(relations.connection) in spilled(store)
            assert len(spilled(store)) > len(writers) > 0
    assert not spilled(store)


def test_databases_of_a_server_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has seven at a time, each with a seventh of what a command has."""
    monkeypatch.setattr(database, "_sharers", 1)
    alone = memory_limit()
    with ExitStack() as stack:
        site = Site("a store", lambda: pytest.fail("nobody asked"), lambda *_: pytest.fail("nobody asked"))
        Page(site, Login(Listening(), 0, Counters()), stack)
        assert memory_limit() == pytest.approx(alone / 7, rel=0.05)  # shown with one digit


def memory_limit() -> float:
    """Return the limit of a new database, in GiB."""
    connection = database.connect()
    ((text,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    database.close(connection)
    number, unit = text.split()
    return float(number) / {"MiB": 1024, "GiB": 1, "TiB": 1 / 1024}[unit]


def test_a_long_query_prints_no_progress_bar() -> None:
    """DuckDB's would stand on stdout, amid the answer; cursors are as their connection is."""
    connection = database.connect()
    for one in (connection, connection.cursor()):
        assert one.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]
    database.close(connection)


def test_every_database_is_made_in_one_place() -> None:
    """Or it would write where everyone can read."""
    source = Path(database.__file__).parent.parent
    made = {path.name for path in source.rglob("*.py") if "duckdb.connect(" in path.read_text("utf-8")}
    assert made == {"database.py"}
