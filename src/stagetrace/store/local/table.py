"""Writing to the table: new spans, those of the log after a crash, merged files, and what is too old or too much."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.otlp.decode.columns import join_tables
from stagetrace.otlp.decode.request import MalformedRequest
from stagetrace.store.database import close
from stagetrace.store.local import delta, relation, wal
from stagetrace.store.local import folder as parquet
from stagetrace.store.local.delta import ARCHIVED, CLAIMED, PARTITION, Received
from stagetrace.store.local.durable import UNFINISHED
from stagetrace.store.local.folder import Tail, View
from stagetrace.store.local.relation import distinct
from stagetrace.store.stored import KEY

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.store.local.delta import Clock, File, Snapshot

MERGE_FILES: Final = 8  # this many files of about one size become one
MERGED_ROWS: Final = 524_288
MERGED_BYTES: Final = 256 * 1024 * 1024  # as in memory, where only a part of them is at a time
SORTED_BYTES: Final = 32 * 1024 * 1024  # of files that overlap in time, all of which are
MOST_DROPPED: Final = 1000  # files that leave the table in one commit
GRACE_S: Final = 300.0  # how long a file that was replaced stays for those who are reading it


class Table:
    """The writer of one table. Not safe for several threads at once."""

    def __init__(self, folder: Path, snapshot: Snapshot, clock: Clock, spread_ms: int | None = None) -> None:
        """Write to the table in `folder`, whose newest version is `snapshot`.

        Files are merged of spans that were received within `spread_ms`, so that they grow old together.
        """
        self.folder = folder
        self.snapshot = snapshot
        self.clock = clock
        self._spread_ms = spread_ms
        self.duplicates = 0  # spans that were there already
        self.unarchived = 0  # spans that retention dropped before an archive had them
        self._database = relation.database(folder.parent, "128MB", threads=1)
        self._replaced: list[tuple[float, str]] = []  # when each file left the table

    def append(self, spans: pa.Table, stored: int) -> None:
        """Add spans, those that are there already left out; `stored` is the number of the last request among them."""
        fresh = distinct(self._database, View(self.folder, self.snapshot), spans)
        removed: list[str] = []
        added: list[File] = []
        try:
            if fresh.replaced is not None:
                self._without(fresh.replaced, spans, added, removed)
            now = self.clock.now()
            late = any(self.snapshot.files[path].archive for path in removed)
            for entry, part in parquet.partitions(fresh.spans):
                added.append(replace(parquet.write(self.folder, part, Received(now, now), entry=entry), late=late))
        except OSError:
            self._discard(added)
            raise
        self._commit(added, removed, stored)
        self.duplicates += fresh.dropped

    def compact(self) -> int:
        """Merge all small files; return how many went in."""
        return sum(self._merge(group) for group in self._groups(everything=True))

    def compact_once(self) -> int:
        """Merge some files of about one size, if there are enough; return how many went in."""
        return self._merge(groups[0]) if (groups := self._groups(everything=False)) else 0

    def _merge(self, group: Sequence[File]) -> int:
        self._rewrite(group)
        return len(group)

    def prune(self, before_ns: int) -> int:
        """Drop the spans that started before; return how many."""
        import pyarrow.compute as pc

        at_least = pc.field("start_unix_nano") >= before_ns
        files = list(self.snapshot.files.values())
        dropped = self._drop([file for file in files if file.max_start < before_ns])
        for file in self._whole(files):
            if file.min_start < before_ns <= file.max_start:
                dropped += self._rewrite([file], lambda part: part.filter(at_least))
        return dropped

    def expire(self, age_ms: int) -> int:
        """Drop files of which all spans were received longer ago, the oldest first and some; return how many spans."""
        before = self.clock.now() - age_ms
        return self._expire([file for file in self._by_receipt() if file.received.last < before][:MOST_DROPPED])

    def drop_oldest(self, keep_bytes: int) -> int:
        """Drop files, those received first, until the rest takes at most so many bytes; return how many spans."""
        size = self.size
        removed: list[File] = []
        for file in self._by_receipt()[:MOST_DROPPED]:
            if size <= keep_bytes:
                break
            size -= file.size
            removed.append(file)
        return self._expire(removed)

    def claim(self, keep_bytes: int | None, most: int) -> list[File]:
        """Return up to so many files that an archive lacks and no merge will change, those received first.

        They are those of a window that is over, large ones, and of what takes more than half of `keep_bytes` the first:
        these are dropped soon. From now on no merge takes them, so that what was copied is not copied again in another.
        """
        merging = {file.path for group in self._groups(everything=False) for file in group}
        window = self._window(self.clock.now())
        beyond = 0 if keep_bytes is None else self.size - keep_bytes // 2
        found: list[File] = []
        for file in self._by_receipt():
            is_over = self._window(file.received.last) < window or file.rows >= MERGED_ROWS // 2
            due = file.archive == CLAIMED or (is_over and file.path not in merging) or beyond > 0
            beyond -= file.size
            if file.archive != ARCHIVED and due and self._whole([file]):
                found.append(replace(file, archive=CLAIMED))
            if len(found) == most:
                break
        self._describe([file for file in found if self.snapshot.files[file.path].archive != CLAIMED])
        return found

    def note_archived(self, path: str) -> None:
        """Record that an archive has a file, unless it has left the table."""
        if (file := self.snapshot.files.get(path)) is not None:
            self._describe([replace(file, archive=ARCHIVED)])

    def _describe(self, files: Sequence[File]) -> None:
        """Record something else about files that are in the table. Raise OSError; then nothing has changed."""
        if not files:
            return
        try:
            self.snapshot = delta.commit(self.folder, self.snapshot, files, [], 0, self.clock.reading(), changes=False)
        except OSError:
            self.snapshot = delta.load(self.folder, self.snapshot)  # it may be there all the same
            raise
        self._checkpoint_in_time()

    def _expire(self, files: Sequence[File]) -> int:
        """Drop whole files for retention, and count what no archive has."""
        dropped = self._drop(files)
        self.unarchived += sum(file.rows for file in files if file.archive != ARCHIVED)
        return dropped

    def _by_receipt(self) -> list[File]:
        return sorted(self.snapshot.files.values(), key=lambda one: one.received.last)

    def _drop(self, files: Sequence[File]) -> int:
        """Take whole files out of the table; return how many spans are in them."""
        if files:
            self._commit([], [file.path for file in files], 0)
        return sum(file.rows for file in files)

    def _whole(self, files: Iterable[File]) -> list[File]:
        """Return files but damaged ones, which stay in the table, so that answers report what they lack."""
        return [file for file in files if parquet.is_whole(self.folder / file.path)]

    @property
    def size(self) -> int:
        """Return the bytes of all files that are in the table."""
        return sum(file.size for file in self.snapshot.files.values())

    def vacuum(self, grace_s: float = GRACE_S) -> None:
        """Delete files that left the table longer ago than that."""
        due = time.monotonic() - grace_s
        for left, path in self._replaced:
            if left <= due:
                (self.folder / path).unlink(missing_ok=True)
        self._replaced = [one for one in self._replaced if one[0] > due]

    def delete_strays(self) -> None:
        """Delete the files of earlier processes that are not in the table."""
        for path in self.folder.glob(f"{PARTITION}=*/*.parquet"):
            if f"{path.parent.name}/{path.name}" not in self.snapshot.files:
                path.unlink(missing_ok=True)
        for path in (self.folder / delta.LOG).glob(f".*{UNFINISHED}"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the database."""
        close(self._database)

    def _rewrite(self, files: Sequence[File], change: Callable[[pa.Table], pa.Table] | None = None) -> int:
        """Replace files of one kind by one; return how many spans `change` took away, given a few at a time."""
        if parquet.is_sequence(files):
            one = parquet.rewrite(self.folder, files, change)
        else:
            table = parquet.in_order(parquet.read(self.folder, files))
            received = Received.of(file.received for file in files)
            generation = min(file.generation for file in files)
            one = parquet.write(self.folder, table, received, entry=files[0].entry, generation=generation)
        one = one and _as_before(one, files)
        self._commit([one] if one else [], [file.path for file in files], 0)
        return sum(file.rows for file in files) - (one.rows if one else 0)

    def _groups(self, *, everything: bool) -> list[list[File]]:
        """Return the groups of files that are worth merging, each in order of time."""
        now = self._window(self.clock.now())
        tiers: dict[tuple[bool, int, int], list[File]] = {}
        least: dict[tuple[bool, int, int], int] = {}
        files = self.snapshot.files.values()
        small = self._whole(file for file in files if file.rows < MERGED_ROWS // 2 and not file.archive)
        for file in sorted(small, key=lambda one: one.min_start):
            window = self._window(file.received.last)
            # Eight of one tier make one of the next, so that a span is rewritten a few times in all; no file joins
            # those of a window that is over.
            is_last = everything or window < now
            tier = file.entry, window, 0 if is_last else file.rows.bit_length() // 3
            tiers.setdefault(tier, []).append(file)
            least[tier] = 2 if is_last else MERGE_FILES
        groups = [group for tier, files in tiers.items() if len(files) >= least[tier] for group in _fitting(files)]
        return [group for group in groups if len(group) > 1]

    def _window(self, received_ms: int) -> int:
        """Return the number of the window in which spans that were received then become one file."""
        return 0 if self._spread_ms is None else received_ms // self._spread_ms

    def _without(self, keys: pa.Table, spans: pa.Table, added: list[File], removed: list[str]) -> None:
        """Write the files that hold spans of these keys, and of the times of `spans`, once more without them."""
        import pyarrow.compute as pc

        def left(part: pa.Table) -> pa.Table:
            database.register("part", part)
            try:
                rest = database.sql(f"SELECT * FROM part ANTI JOIN keys USING ({KEY})").to_arrow_table()  # noqa: S608
            finally:
                database.unregister("part")
            return join_tables([rest])

        bounds = pc.min_max(spans["start_unix_nano"]).as_py()
        view, database = View(self.folder, self.snapshot), self._database
        database.register("keys", keys)
        try:
            for file in view.files(bounds["min"], bounds["max"] + 1):
                held = f"SELECT 1 FROM read_parquet($1, hive_partitioning = false) SEMI JOIN keys USING ({KEY}) LIMIT 1"  # noqa: S608
                if database.execute(held, [str(self.folder / file.path)]).fetchall():
                    removed.append(file.path)
                    one = parquet.rewrite(self.folder, [file], left)
                    added += [_as_before(one, [file])] if one else []
        finally:
            database.unregister("keys")

    def _commit(self, added: Sequence[File], removed: Iterable[str], stored: int) -> None:
        """Commit, and delete the new files if that fails."""
        removed = list(removed)
        try:
            after = delta.commit(self.folder, self.snapshot, added, removed, stored, self.clock.reading())
        except OSError:
            # The commit may be there all the same: the disk has the last word.
            after = delta.load(self.folder, self.snapshot)
            if after.version == self.snapshot.version:
                self._discard(added)
                raise
        self.snapshot = after
        now = time.monotonic()
        self._replaced += [(now, path) for path in removed]
        self._checkpoint_in_time()

    def _checkpoint_in_time(self) -> None:
        """Write a checkpoint if it is time; where that fails, the commits stay and the next one is written in time."""
        if self.snapshot.version % delta.CHECKPOINT_EVERY:
            return
        try:
            delta.write(self.folder / delta.LOG, self.snapshot)
        except OSError as error:
            log.once(
                f"checkpoint {self.folder}", f"cannot write a checkpoint of {self.folder}: {error}; no span is lost"
            )

    def _discard(self, added: Iterable[File]) -> None:
        for file in added:
            (self.folder / file.path).unlink(missing_ok=True)


def recover(folder: Path, table: Table, at_once: int) -> None:
    """Move the log's requests behind the table into it, about `at_once` bytes at a time, and delete the log.

    Killed in the middle, it is done again: the table knows up to which request it has them.
    """
    tail = Tail()
    replay = wal.Replay(folder, table.snapshot.stored)
    for frame in replay:
        try:
            tail.replay(frame)
        except MalformedRequest:  # cannot have been acknowledged
            continue
        if tail.bytes >= at_once:
            table.append(join_tables(tail.tables()), tail.last)
            tail = Tail()
    if tail.rows:
        table.append(join_tables(tail.tables()), tail.last)
    if replay.lost:
        log.error(f"{wal.lost_requests(replay.lost)} (store {folder.parent}); all others are there")
    for _, path in replay.segments:
        path.unlink()


def _as_before(one: File, files: Sequence[File]) -> File:
    """Return a file that took the place of some with what an archive has of them; of several it has none.

    A file without some of its spans needs no copy where the whole one has been copied; where that may be, its copy is
    one of spans that are in another file.
    """
    (archive,) = {file.archive for file in files} or {0}
    return replace(one, archive=archive, late=archive == CLAIMED or any(file.late for file in files))


def _fitting(files: Iterable[File]) -> list[list[File]]:
    """Return files as groups of those that may become one."""
    groups: list[list[File]] = []
    for file in files:
        if groups and _fit([*groups[-1], file]):
            groups[-1].append(file)
        else:
            groups.append([file])
    return groups


def _fit(files: Sequence[File]) -> bool:
    """Return whether files, in order of time, may become one."""
    rows, raw = sum(one.rows for one in files), sum(one.raw for one in files)
    most = MERGED_BYTES if parquet.is_sequence(files) else SORTED_BYTES
    return rows <= MERGED_ROWS + MERGED_ROWS // 4 and raw <= most
