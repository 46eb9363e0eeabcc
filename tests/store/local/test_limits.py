"""What bounds a store: the disk, memory, and hostile or merely lavish attributes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from heavy import HEAVY
from stagetrace.store.local import LocalReader, LocalStore, StoreFull, wal
from stagetrace.store.local.folder import WAL
from stagetrace.store.local.search import Search
from store.local.made import NOW, ids, request, span

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[2]
MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_and_goes_on_reading(small_disk: Path) -> None:
    """Every span acknowledged before stays readable; what was refused is not there; with room again, it goes on."""
    kept = []
    with LocalStore.open(small_disk / "store", reserve_bytes=0) as store:
        with pytest.raises(StoreFull) as told:  # noqa: PT012 -- it is not known which one does not fit
            for number in range(1, 100):
                store.append(request([span(number, raw=os.urandom(300_000))]))
                kept.append(number)
        assert "no room" in str(told.value)
        assert len(kept) > 10
        with store.reader() as inside, LocalReader.open(small_disk / "store") as outside:
            assert ids(inside) == ids(outside) == kept
            with pytest.raises(StoreFull):
                store.append(request([span(500, raw=os.urandom(300_000))]))
            assert ids(outside) == kept
    with LocalReader.open(small_disk / "store") as outside:
        assert ids(outside) == kept
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with LocalStore.open(small_disk / "store", reserve_bytes=0) as store, store.reader() as reader:
        assert ids(reader) == kept
        store.append(request([span(1000)]))
        assert ids(reader) == [*kept, 1000]


def test_some_of_the_disk_stays_free(tmp_path: Path) -> None:
    """So that the log can always be moved into the table."""
    with LocalStore.open(tmp_path, reserve_bytes=2**60) as store:
        with pytest.raises(StoreFull, match="MiB are free"):
            store.append(request([span(1)]))
        with store.reader() as reader:
            assert ids(reader) == []


def test_half_a_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle of a frame: the log is as it was, and the next request is fine."""
    with LocalStore.open(tmp_path) as store:
        store.append(request([span(1)]))
        real = os.write

        def half(file: int, data: bytes) -> int:
            written = real(file, bytes(data)[: len(data) // 2])
            if written < len(data):
                monkeypatch.undo()
                raise OSError(errno.ENOSPC, "No space left on device")
            return written

        monkeypatch.setattr("stagetrace.store.local.wal.os.write", half)
        with pytest.raises(StoreFull):
            store.append(request([span(2)]))
        store.append(request([span(3)]))
        with store.reader() as inside, LocalReader.open(tmp_path) as outside:
            assert ids(inside) == ids(outside) == [1, 3]


def test_a_table_that_cannot_be_written_keeps_spans_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalStore.open(tmp_path) as store:
        store.append(request([span(1)]))
        with monkeypatch.context() as broken:
            broken.setattr("stagetrace.store.local.delta.os.link", _fails)
            with pytest.raises(OSError, match="No space"):
                store.flush()
            store.append(request([span(2)]))
            with store.reader() as inside, LocalReader.open(tmp_path) as outside:
                assert ids(inside) == ids(outside) == [1, 2]
            assert wal.segments(tmp_path / WAL)
        store.flush()
        store.flush()
        assert not wal.segments(tmp_path / WAL)
        with store.reader() as inside, LocalReader.open(tmp_path) as outside:
            assert ids(inside) == ids(outside) == [1, 2]


def _fails(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


LAVISH = """
import os, sys
from pathlib import Path
from store.local.made import NOW, request, span
from stagetrace.store.local import LocalStore

def rss(name):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) // 1024

with LocalStore.open(Path(sys.argv[1])) as store:
    with store.reader() as reader:
        reader.services()
    before = rss("VmRSS")
    for number in range(1, int(sys.argv[2]) + 1):
        {append}
    store.flush()
    store.compact()
    print(rss("VmHWM") - before)
"""


@pytest.mark.thorough
@pytest.mark.heavier
@pytest.mark.parametrize(
    ("append", "count"),
    [
        ("store.append(request([span(number, start=NOW + number, big=os.urandom(1 << 20))]))", 1500 if HEAVY else 150),
        ("store.append(request([span(number, start=NOW + number, zero=bytes(1 << 20))]))", 1500 if HEAVY else 150),
        (
            (
                "numbers = range(number * 100, number * 100 + 100);"
                "store.append(request([span(at + 1, start=NOW, **{f'key{at % 10_000}': at}) for at in numbers]))"
            ),
            10_000 if HEAVY else 300,
        ),
        (
            "store.append(request([span(number * 1000 + at, start=NOW + number) for at in range(1000)]))",
            10_000 if HEAVY else 150,
        ),
    ],
    ids=["1 MiB attributes", "1 MiB of zeros", "10,000 keys", "many spans"],
)
def test_memory_is_bounded_whatever_comes_in(tmp_path: Path, append: str, count: int) -> None:
    """The growth over an open, empty store, at its highest."""
    code = LAVISH.replace("{append}", append)
    argv = [sys.executable, "-c", code, str(tmp_path), str(count)]
    grown = subprocess.run(argv, capture_output=True, text=True, cwd=TESTS, timeout=280, check=False)
    assert grown.returncode == 0, grown.stderr
    assert int(grown.stdout) < 400


@pytest.mark.thorough
def test_realistic_traffic_takes_at_most_40_bytes_a_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the folder, log and commits included; nine spans a request, which has 25 attributes and a verdict."""
    monkeypatch.syspath_prepend(str(TESTS.parent))
    from benchmarks.traffic import Traffic

    with LocalStore.open(tmp_path / "store") as store:
        spans = sum(store.append(one).accepted for one in Traffic(NOW).requests(50_000))
    size = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert spans > 49_000
    assert size < 40 * spans, size / spans


def test_what_answers_for_weeks_is_bounded(tmp_path: Path) -> None:
    """DuckDB keeps the footer of each file it ever read, a gigabyte a day, and lets go only at its limit."""
    with LocalStore.open(tmp_path) as store, store.reader() as inside, LocalReader.open(tmp_path) as outside:
        for reader in (inside, outside):
            limit = reader._connection.execute("SELECT current_setting('memory_limit')").fetchone()
            assert limit == ("244.1 MiB",)


def test_ten_thousand_keys_and_large_values_come_back(tmp_path: Path) -> None:
    with LocalStore.open(tmp_path) as store:
        store.append(request([span(1, start=NOW, **{f"key{at}": at for at in range(10_000)}, big="x" * MIB)]))
        for _ in range(2):
            with store.reader() as reader:
                (found,) = reader.trace(f"{1:032x}").spans
                assert len(found.attributes) == 10_001
                assert found.attributes["key9999"] == 9999
                assert found.attributes["big"] == "x" * MIB
                assert len(list(reader.find_traces(Search(attributes={"key1234": "1234"})))) == 1
            store.flush()
