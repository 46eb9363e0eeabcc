"""A writer that is killed at any moment: what it acknowledged is there, once, whether or not anyone opens it again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from heavy import scaled
from stagetrace.errors import StoreError
from stagetrace.store.local import LocalReader, LocalStore, delta, wal
from stagetrace.store.local.view import TABLE, WAL
from store.local.made import NOW, ids, request, span

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = scaled(6, 15, 50)
TESTS = Path(__file__).parents[2]


def _killed(folder: Path, first: int, after_s: float) -> list[int]:
    """Run a writer, kill it, and return the numbers of all spans that it said were on disk."""
    argv = [sys.executable, "-m", "store.local.writer", str(folder), str(first)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=TESTS) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return list(_numbers(said))


def _numbers(said: bytes) -> Iterator[int]:
    for line in said.splitlines(keepends=True):
        if line.endswith(b"\n"):
            first, number = map(int, line.split())
            yield from range(first, first + number)


@pytest.mark.sample
@pytest.mark.heavier
def test_everything_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    """Kill the writer again and again on one folder; read beside the corpse and after recovery."""
    draw = random.Random(4)
    acknowledged: set[int] = set()
    for round_ in range(ROUNDS):
        acknowledged |= set(_killed(tmp_path / "store", 10_000_000 * (round_ + 1), draw.uniform(0.05, 1.0)))
        with LocalReader.open(tmp_path / "store") as outside:
            found = ids(outside)
        assert len(found) == len(set(found)), "a span is there twice"
        assert acknowledged <= set(found), f"lost after round {round_}"
        with LocalStore.open(tmp_path / "store") as store, store.reader() as reader:
            assert ids(reader) == found
        assert not wal.segments(tmp_path / "store" / WAL), "what is in the table is not in the log any more"
    assert len(acknowledged) > ROUNDS * 20, "the writers did next to nothing"


def test_a_torn_end_of_the_log_is_cut_off(tmp_path: Path) -> None:
    """Half a frame was never acknowledged; all before it was."""
    for cut in (1, 7, 15, 30):
        folder = tmp_path / str(cut)
        frames = _log(folder)
        segment = folder / WAL / f"{1:020d}.wal"
        segment.write_bytes(frames[: len(frames) - cut])
        with LocalReader.open(folder) as outside:
            assert ids(outside) == [1, 2]
        with LocalStore.open(folder) as store, store.reader() as reader:
            assert ids(reader) == [1, 2]
            store.append(request([span(9)]))
            assert ids(reader) == [1, 2, 9]


def test_a_flipped_bit_in_the_log_is_noticed(tmp_path: Path) -> None:
    frames = bytearray(_log(tmp_path))
    frames[-5] ^= 1
    (tmp_path / WAL / f"{1:020d}.wal").write_bytes(frames)
    with LocalReader.open(tmp_path) as outside:
        assert ids(outside) == [1, 2]


def _log(folder: Path) -> bytes:
    """Return the log of three requests of one span each, which never reached the table."""
    LocalStore.open(folder).close()
    log: wal.Wal[None] = wal.Wal(folder / WAL, 1, lambda _: None)
    for number in (1, 2, 3):
        log.append(request([span(number, start=NOW + number)]), None)
    log.close()
    return (folder / WAL / f"{1:020d}.wal").read_bytes()


def test_files_of_a_commit_that_never_came_are_cleared_away(tmp_path: Path) -> None:
    with LocalStore.open(tmp_path) as store:
        store.append(request([span(1)]))
    (file,) = (tmp_path / TABLE).glob("*/*.parquet")
    stray = file.with_name("stray.parquet")
    stray.write_bytes(file.read_bytes())
    with LocalStore.open(tmp_path) as store, store.reader() as reader:
        assert ids(reader) == [1]
    assert not stray.exists()


def test_a_missing_commit_is_told(tmp_path: Path) -> None:
    """Else a store of which a commit was deleted answers as if nothing had come since."""
    with LocalStore.open(tmp_path) as store:
        for number in (1, 2, 3):
            store.append(request([span(number)]))
            store.flush()
        with store.reader() as reader:
            assert ids(reader) == [1, 2, 3]
    missing = tmp_path / TABLE / delta.LOG / f"{2:020d}.json"
    missing.unlink()
    with pytest.raises(StoreError, match=f"{missing.name} is missing"), LocalReader.open(tmp_path) as outside:
        ids(outside)
    with pytest.raises(StoreError, match=f"{missing.name} is missing"):
        LocalStore.open(tmp_path)


def test_a_request_that_is_in_log_and_table_counts_once(tmp_path: Path) -> None:
    """A crash between commit and cutting the log leaves both."""
    data = request([span(1), span(2, parent=1)])
    with LocalStore.open(tmp_path) as store:
        store.append(data)
    log: wal.Wal[None] = wal.Wal(tmp_path / WAL, 1, lambda _: None)
    log.append(data, None)
    log.close()
    with LocalReader.open(tmp_path) as outside:
        assert ids(outside) == [1, 2]
    with LocalStore.open(tmp_path) as store, store.reader() as reader:
        assert ids(reader) == [1, 2]
        assert store.append(request([span(3)])).accepted == 1
        assert ids(reader) == [1, 2, 3]
