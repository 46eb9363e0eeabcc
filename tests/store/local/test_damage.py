"""A file of a store is damaged or gone: all else is read, what is lost is reported, and no damage is a traceback."""

from __future__ import annotations

import os
import random
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from deltalake import DeltaTable

from heavy import scaled
from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.store.local import LocalReader, LocalStore, counts, delta, wal
from stagetrace.store.local.counts import CountStore
from stagetrace.store.local.folder import FORMAT, LOCK, TABLE, WAL
from store.local.made import EVER, NOW, ids, judged, request, span

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.thorough

EVERY: Final = 4
SPANS: Final = [*range(1, 11)]


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: Final[dict[str, Callable[[Path], None]]] = {
    "cut off": _half,
    "empty": lambda path: os.truncate(path, 0),
    "zeros": _zeros,
    "gone": Path.unlink,
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
spoilt = pytest.mark.parametrize("damage", [DAMAGES[name] for name in ("zeros", "gone")], ids=["zeros", "gone"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of ten files, whose spans are ten apart and judged, and of two checkpoints, at 4 and 8."""
    folder = tmp_path_factory.mktemp("made") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "CHECKPOINT_EVERY", EVERY)
        patch.setattr(LocalStore, "_work", lambda _: None)
        with LocalStore.open(folder) as store:
            for number in SPANS:
                store.append(request([judged(number, start=NOW + number * 10**9)]))
                store.flush()
    assert checkpoints(folder) == [8, 4]
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of it, which is changed only by what a test does."""
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", EVERY)
    monkeypatch.setattr(LocalStore, "_work", lambda _: None)
    monkeypatch.setattr(log, "_logged", set())
    return Path(shutil.copytree(made, tmp_path / "store"))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "error", lines.append)
    return lines


def commit(folder: Path, version: int) -> Path:
    return folder / TABLE / delta.LOG / f"{version:020d}.json"


def checkpoints(folder: Path) -> list[int]:
    return delta.versions(path.name for path in (folder / TABLE / delta.LOG).iterdir())


def commits(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / TABLE / delta.LOG).glob("*.json"))


def checkpoint_of(folder: Path, version: int) -> Path:
    return delta.path_of(folder / TABLE / delta.LOG, version)


def all_is_there(folder: Path) -> None:
    """Read it from outside, open it, write to it, and read it as any Delta reader does."""
    with LocalReader.open(folder) as outside:
        assert ids(outside) == SPANS
    with LocalStore.open(folder) as store, store.reader() as reader:
        assert ids(reader) == SPANS
        for number in (11, 12, 13):
            store.append(request([span(number)]))
            store.flush()
        store.compact()
        assert ids(reader) == list(range(1, 14))
    assert DeltaTable(str(folder / TABLE)).version() == delta.load(folder / TABLE).version


# --- checkpoints


@pytest.mark.parametrize(("version", "name"), [(4, "zeros"), *((8, name) for name in DAMAGES)])
def test_an_older_checkpoint_and_the_commits_stand_in_for_a_damaged_one(folder: Path, version: int, name: str) -> None:
    DAMAGES[name](checkpoint_of(folder, version))
    all_is_there(folder)


@spoilt
def test_the_commits_stand_in_for_the_only_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", EVERY)
    with LocalStore.open(tmp_path) as store:
        for number in SPANS[:6]:
            store.append(request([span(number)]))
            store.flush()
    assert checkpoints(tmp_path) == [4]
    assert commit(tmp_path, 0).exists(), "no commit is deleted before there are two checkpoints"
    damage(checkpoint_of(tmp_path, 4))
    with LocalReader.open(tmp_path) as reader:
        assert ids(reader) == SPANS[:6]


@spoilt
def test_the_pointer_to_the_checkpoint_is_for_others(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / TABLE / delta.LOG / "_last_checkpoint")
    all_is_there(folder)


def test_without_checkpoints_and_old_commits_the_error_has_the_remedy(folder: Path) -> None:
    for version in (4, 8):
        _half(checkpoint_of(folder, version))
    for opened in (LocalReader.open, LocalStore.open):
        with pytest.raises(StoreError) as raised, opened(folder) as store:
            ids(store if isinstance(store, LocalReader) else store.reader())
        lines = str(raised.value).splitlines()
        assert len(lines) <= 3
        assert all(name in lines[0] for name in (commit(folder, 0).name, checkpoint_of(folder, 8).name))
        assert lines[-1] == "put it back from a copy, or name another store"


def test_two_checkpoints_and_the_commits_behind_the_older_one_stay(folder: Path) -> None:
    assert commits(folder) == list(range(5, 11))
    with LocalStore.open(folder) as store:
        for number in (11, 12):
            store.append(request([span(number)]))
            store.flush()
    assert checkpoints(folder) == [12, 8]
    assert commits(folder) == list(range(9, 13))


def test_a_checkpoint_of_another_writer_is_read_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an older stagetrace had them written by deltalake."""
    monkeypatch.setattr(LocalStore, "_work", lambda _: None)
    with LocalStore.open(tmp_path) as store:
        for number in (1, 2):
            store.append(request([span(number)]))
            store.flush()
    DeltaTable(str(tmp_path / TABLE)).create_checkpoint()
    for version in (0, 1, 2):
        commit(tmp_path, version).unlink()
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", EVERY)
    with LocalStore.open(tmp_path) as store:
        for number in (3, 4):
            store.append(request([span(number)]))
            store.flush()
        assert checkpoints(tmp_path) == [4, 2]
        with store.reader() as reader:
            assert ids(reader) == [1, 2, 3, 4]
    theirs, ours = DeltaTable(str(tmp_path / TABLE)), delta.load(tmp_path / TABLE)
    assert (theirs.version(), len(theirs.file_uris())) == (ours.version, len(ours.files)) == (4, 4)


def test_a_checkpoint_that_cannot_be_written_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with LocalStore.open(folder) as store:
        with monkeypatch.context() as broken:
            broken.setattr("pyarrow.parquet.write_table", fails)
            for number in (11, 12, 13):
                store.append(request([span(number)]))
                store.flush()
        assert ["cannot write a checkpoint" in line for line in logged] == [True]
        assert checkpoints(folder) == [8, 4]
        assert commit(folder, 5).exists()
        for number in (14, 15, 16):
            store.append(request([span(number)]))
            store.flush()
    assert checkpoints(folder) == [16, 8]
    assert not [*commit(folder, 0).parent.glob(".*")]
    with LocalReader.open(folder) as reader:
        assert ids(reader) == [*range(1, 17)]


# --- commits


@spoilt
def test_a_checkpoint_stands_in_for_a_commit_before_it(folder: Path, damage: Callable[[Path], None]) -> None:
    """Also for a reader that has followed up to it."""
    with LocalReader.open(folder) as reader:
        known = delta.load(folder / TABLE)
        early = known.__class__(5, {}, 5)
        damage(commit(folder, 6))
        assert delta.load(folder / TABLE, early) == known
        assert ids(reader) == SPANS
    all_is_there(folder)


@pytest.mark.parametrize("name", ["cut off", "empty", "zeros"])
@pytest.mark.parametrize("version", [9, 10])
def test_a_damaged_commit_is_an_error_and_nothing_is_deleted(folder: Path, name: str, version: int) -> None:
    DAMAGES[name](commit(folder, version))
    before = sorted(folder.rglob("*.parquet"))
    for opened in (LocalReader.open, LocalStore.open):
        damaged_one = f"{commit(folder, version).name} is damaged"
        with pytest.raises(StoreError, match=damaged_one) as raised, opened(folder) as store:
            ids(store if isinstance(store, LocalReader) else store.reader())
        assert len(str(raised.value).splitlines()) == 2
    assert sorted(folder.rglob("*.parquet")) == before


def test_the_log_tells_that_the_newest_commit_is_gone(folder: Path, logged: list[str]) -> None:
    """Its requests had left the log; the number of the next one shows it."""
    commit(folder, 10).unlink()
    written: wal.Wal[None] = wal.Wal(folder / WAL, 11, lambda _: None)
    written.append(request([span(11)]), None)
    written.close()
    with LocalReader.open(folder) as reader, reader.relations(EVER) as relations:
        assert "1 requests are missing" in str(relations.reason)
    with LocalStore.open(folder) as store, store.reader() as reader:
        assert ids(reader) == [*SPANS[:-1], 11]
    assert ["1 requests are missing" in line for line in logged] == [True]


# --- the log


def _log(folder: Path) -> list[Path]:
    """Return the three segments, of three requests each, of a log whose requests never reached the table."""
    LocalStore.open(folder).close()
    for first in (1, 4, 7):
        written: wal.Wal[None] = wal.Wal(folder / WAL, first, lambda _: None)
        for number in range(first, first + 3):
            written.append(request([span(number, start=NOW + number)]), None)
        written.close()
    return [path for _, path in wal.segments(folder / WAL)]


@pytest.mark.parametrize(
    ("segment", "damage", "lost"),
    [
        (0, lambda path: path.write_bytes(bytes(8) + path.read_bytes()[8:]), []),
        (1, lambda path: path.write_bytes(bytes(8) + path.read_bytes()[8:]), []),
        (1, lambda path: path.write_bytes(path.read_bytes()[:8] + bytes(20) + path.read_bytes()[28:]), [4]),
        (2, lambda path: path.write_bytes(path.read_bytes()[:8] + bytes(20) + path.read_bytes()[28:]), [7]),
        (1, _half, [5, 6]),
        (1, lambda path: os.truncate(path, 0), [4, 5, 6]),
        (1, _zeros, [4, 5, 6]),
        (1, Path.unlink, [4, 5, 6]),
        (0, Path.unlink, [1, 2, 3]),
    ],
    ids=["magic", "magic 2", "frame", "last frame", "half", "empty", "zeros", "gone", "first gone"],
)
def test_what_the_log_lacks_is_counted_and_all_else_is_there(
    tmp_path: Path, logged: list[str], segment: int, damage: Callable[[Path], None], lost: list[int]
) -> None:
    damage(_log(tmp_path)[segment])
    there = [number for number in range(1, 10) if number not in lost]
    sentence = f"{len(lost)} requests are missing"
    with LocalReader.open(tmp_path) as reader:
        assert ids(reader) == there
        with reader.relations(EVER) as relations:
            assert (sentence in str(relations.reason)) is bool(lost)
    with LocalStore.open(tmp_path) as store, store.reader() as reader:
        assert ids(reader) == there
    assert [sentence in line for line in logged] == [True] * bool(lost), logged


def test_a_failed_write_leaves_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would look as if a request were missing."""
    written: wal.Wal[None] = wal.Wal(tmp_path, 1, lambda _: None)

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    written.append(b"one", None)
    with monkeypatch.context() as broken:
        broken.setattr("stagetrace.store.local.wal.os.fdatasync", fails)
        with pytest.raises(OSError, match="No space"):
            written.append(b"two", None)
    written.append(b"three", None)
    written.close()
    replay = wal.Replay(tmp_path, 0)
    assert [(frame.sequence, frame.request) for frame in replay] == [(1, b"one"), (2, b"three")]
    assert replay.lost == 0


# --- files of spans


@pytest.mark.thorough
@damaged
def test_without_a_file_answers_report_what_they_lack(
    folder: Path, logged: list[str], damage: Callable[[Path], None]
) -> None:
    file = next(one for one in delta.load(folder / TABLE).files.values() if one.min_sequence == 5)
    damage(folder / TABLE / file.path)
    there = [number for number in SPANS if number != 5]
    reason = f"1 spans cannot be read: of 1 files that are missing or damaged one is {folder / TABLE / file.path}"
    with LocalReader.open(folder) as outside, LocalStore.open(folder) as store, store.reader() as inside:
        for reader in (outside, inside):
            assert ids(reader) == there
            answer = reader.breaches(EVER)
            assert (len(answer.breaches), answer.reason) == (9, reason)
            with reader.relations(EVER) as relations:
                assert relations.reason == reason
        store.append(request([judged(5, start=NOW + 5 * 10**9), judged(11, start=NOW + 11 * 10**9)]))  # sent again
        store.flush()
        store.compact()
        store.prune(NOW + 2 * 10**9)
        for reader in (outside, inside):
            assert ids(reader) == [*range(2, 12)]
            assert reader.breaches(EVER).reason == reason
        assert store.stats()["files"] == 2, "one file, and the damaged one, for which answers stay incomplete"
    assert [file.path in line for line in logged] == [True]


def test_damage_inside_a_file_is_an_error_with_its_name(folder: Path) -> None:
    file = next(iter(delta.load(folder / TABLE).files.values()))
    path = folder / TABLE / file.path
    path.write_bytes(bytes(file.size - 8) + path.read_bytes()[-8:])
    with LocalReader.open(folder) as reader, pytest.raises(StoreError) as raised:
        reader.services()
    assert str(path) in str(raised.value)
    assert "without the file, answers report what they lack" in str(raised.value)


# --- what else is in the folder


@spoilt
def test_the_format_can_be_put_back(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / FORMAT)
    for opened in (LocalReader.open, LocalStore.open):
        with pytest.raises(StoreError, match="missing or damaged") as raised:
            opened(folder)
        assert 'write {"version": 1} into' in str(raised.value)
    (folder / FORMAT).write_text('{"version": 1}')
    all_is_there(folder)


@spoilt
def test_the_lock_holds_nothing_that_is_missed(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / LOCK)
    all_is_there(folder)


def test_counts_of_which_nothing_was_stored_yet_are_none(tmp_path: Path) -> None:
    (tmp_path / counts.FILE).touch()
    assert counts.read(tmp_path, 0, NOW) == []
    store = CountStore(tmp_path)
    store.append([])
    store.close()
    assert counts.read(tmp_path, 0, NOW) == []


@pytest.mark.parametrize("name", ["cut off", "zeros"])
def test_damaged_counts_can_be_deleted(tmp_path: Path, name: str) -> None:
    store = CountStore(tmp_path)
    store.append([counts.Point("api", "a", NOW, "/x", "* within 1s", "good", 1, NOW + 1)])
    store.close()
    DAMAGES[name](tmp_path / counts.FILE)
    store = CountStore(tmp_path)
    for asked in (lambda: counts.read(tmp_path, 0, 2 * NOW), lambda: store.append([])):
        with pytest.raises(StoreError, match="or delete it: services count on"):
            asked()
    (tmp_path / counts.FILE).unlink()
    store.append([counts.Point("api", "a", NOW, "/x", "* within 1s", "good", 2, NOW + 2)])
    store.close()
    assert len(counts.read(tmp_path, 0, 2 * NOW)) == 1


@pytest.mark.heavier("400 damaged stores")
def test_no_damage_goes_unnoticed(made: Path, tmp_path: Path, logged: list[str]) -> None:
    """Of any file but the newest of the log: all is there, or the answer or the log shows what is not, or an error."""
    draw = random.Random(9)
    for round_ in range(scaled(4, 20, 400)):
        folder = Path(shutil.copytree(made, tmp_path / str(round_)))
        written: wal.Wal[None] = wal.Wal(folder / WAL, 11, lambda _: None)
        written.append(request([span(11)]), None)
        written.close()
        path = draw.choice(sorted(path for path in (*folder.glob("*.json"), *(folder / TABLE).rglob("*.*"))))
        name = draw.choice([*DAMAGES])
        DAMAGES[name](path)
        openers: list[Callable[[Path], LocalReader | LocalStore]] = [LocalReader.open, LocalStore.open]
        for opened in openers:
            logged.clear()
            try:
                with ExitStack() as stack:
                    store = opened(folder)
                    stack.callback(store.close)
                    reader = store if isinstance(store, LocalReader) else stack.enter_context(store.reader())
                    found = ids(reader)
                    reason = stack.enter_context(reader.relations(EVER)).reason
            except StoreError as error:
                assert 2 <= len(str(error).splitlines()) <= 3, (path, name)  # noqa: PT017 -- most raise none
                continue
            assert found == [*SPANS, 11] or reason or logged, (path, name)
            assert len(found) >= len(SPANS), (path, name)
        shutil.rmtree(folder)


# --- whom files belong to


def test_nobody_else_can_read_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that was there before, whatever the umask; the folder itself stays as it was."""
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 2)
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        with LocalStore.open(tmp_path) as store:
            for number in (1, 2, 3):
                store.append(request([span(number), span(number + 10, parent=number)]))
                store.flush()
            store.append_counts([counts.Point("api", "a", NOW, "/x", "* within 1s", "good", 1, NOW + 1)])
            store.append(request([span(4)]))
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o700"}
    assert {oct(mode) for path, mode in modes.items() if path.is_file()} == {"0o600"}
    assert {path.suffix for path in modes} >= {".json", ".parquet", ".sqlite", ".wal"}


@pytest.mark.parametrize("name", [LOCK, counts.FILE])
def test_a_link_in_the_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("years of work")
    with LocalStore.open(tmp_path / "store") as store:
        store.append(request([span(1)]))
    (tmp_path / "store" / name).unlink(missing_ok=True)
    (tmp_path / "store" / name).symlink_to(victim)
    with pytest.raises(StoreError, match="is a link"), LocalStore.open(tmp_path / "store") as store:
        store.append_counts([counts.Point("api", "a", NOW, "/x", "* within 1s", "good", 1, NOW + 1)])
    assert victim.read_text() == "years of work"
