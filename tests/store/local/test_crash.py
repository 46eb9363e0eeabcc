"""A writer that is killed at any moment, or by a power failure: what it acknowledged is there, once."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

import pytest

from backend.processes import WITHIN_S, Lines, started
from heavy import scaled
from stagetrace.errors import StoreError
from stagetrace.store.local import LocalReader, LocalStore, delta, wal
from stagetrace.store.local.folder import TABLE, WAL
from store.local import power
from store.local.made import EVER, NOW, ids, request, span
from store.local.writer import PER_REQUEST

ROUNDS = scaled(4, 15, 50)
TESTS = Path(__file__).parents[2]


def _killed(folder: Path, first: int, requests: int, after_s: float) -> set[int]:
    """Run a writer, kill it some time after so many requests; return the numbers of all spans it said were on disk."""
    argv = [sys.executable, "-m", "store.local.writer", str(folder), str(first), str(folder.with_name("kept"))]
    with started(argv, stderr=None, cwd=TESTS) as process:
        lines = Lines(process.stdout)
        assert lines.next() == "ready"
        said = [lines.next() for _ in range(requests)]
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        said += lines.rest()
        assert process.wait(WITHIN_S) == -signal.SIGKILL
    return {number for line in said for number in _numbers(*map(int, line.split()))}


def _numbers(first: int, count: int) -> range:
    return range(first, first + count)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(1, marks=pytest.mark.smoke),
        pytest.param(ROUNDS, marks=[pytest.mark.heavier(f"{ROUNDS} kills"), pytest.mark.sample]),
    ],
)
def test_everything_acknowledged_outlives_kill_9(tmp_path: Path, rounds: int) -> None:
    """Kill the writer again and again on one folder; read beside the corpse, after a power failure and recovery."""
    draw = random.Random(4)
    acknowledged: set[int] = set()
    for round_ in range(rounds):
        first = 10_000_000 * (round_ + 1)
        acknowledged |= _killed(tmp_path / "store", first, draw.randrange(10, 150), draw.uniform(0, 0.05))
        with LocalReader.open(tmp_path / "store") as outside:
            found = ids(outside)
        assert len(found) == len(set(found)), "a span is there twice"
        assert acknowledged <= set(found), f"lost after round {round_}"
        damage = power.fail(tmp_path / "kept", tmp_path / "store", draw)
        with LocalReader.open(tmp_path / "store") as outside, outside.relations(EVER) as relations:
            found = ids(outside)
            assert relations.reason is None, damage
        assert len(found) == len(set(found)), damage
        assert acknowledged <= set(found), f"lost after round {round_}: {damage}"
        with LocalStore.open(tmp_path / "store") as store, store.reader() as reader:
            assert ids(reader) == found
        assert not wal.segments(tmp_path / "store" / WAL), "what is in the table is not in the log any more"
    assert len(acknowledged) >= rounds * 10 * PER_REQUEST


@pytest.mark.thorough
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


def test_a_missing_commit_is_reported(tmp_path: Path) -> None:
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
