"""Writing to the table: new spans, merged files, and what is too old or too much."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stagetrace.otlp.decoder_columns import joined
from stagetrace.store.local import delta, parquet, relation
from stagetrace.store.local.duplicates import KEY, distinct
from stagetrace.store.local.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import pyarrow as pa

    from stagetrace.store.local.delta import File, Snapshot

MERGE_FILES: Final = 8  # this many files of about one size become one
MERGED_ROWS: Final = 524_288
MERGED_BYTES: Final = 48 * 1024 * 1024  # in memory
GRACE_S: Final = 300.0  # how long a file that was replaced stays for those who are reading it


class Table:
    """The writer of one table. Not safe for several threads at once."""

    def __init__(self, folder: Path, snapshot: Snapshot) -> None:
        """Write to the table in `folder`, whose newest version is `snapshot`."""
        self.folder = folder
        self.snapshot = snapshot
        self.duplicates = 0  # spans that were there already
        self._database = relation.database(memory="128MB")
        self._replaced: list[tuple[float, str]] = []  # when each file left the table

    def append(self, spans: pa.Table, stored: int) -> None:
        """Add spans, those that are there already left out; `stored` is the number of the last request among them."""
        fresh = distinct(self._database, View(self.folder, self.snapshot), spans)
        removed: list[str] = []
        added: list[File] = []
        try:
            if fresh.replaced is not None:
                self._without(fresh.replaced, spans, added, removed)
            for entry, part in parquet.partitions(fresh.spans):
                added.append(parquet.write(self.folder, part, entry=entry))
        except OSError:
            self._discard(added)
            raise
        self._commit(added, removed, stored)
        self.duplicates += fresh.dropped

    def compact(self, *, everything: bool = False) -> int:
        """Merge files of about one size, where there are enough; `everything`: any files. Return how many went in."""
        merged = 0
        for entry in (True, False):
            for group in _groups(
                [one for one in self.snapshot.files.values() if one.entry is entry], everything=everything
            ):
                self._rewrite(group)
                merged += len(group)
        return merged

    def prune(self, before_ns: int) -> int:
        """Drop the spans that started before; return how many."""
        import pyarrow.compute as pc

        at_least = pc.field("start_unix_nano") >= before_ns
        dropped = 0
        for file in list(self.snapshot.files.values()):
            if file.max_start < before_ns:
                self._commit([], [file.path], 0)
                dropped += file.rows
            elif file.min_start < before_ns:
                dropped += self._rewrite([file], lambda table: table.filter(at_least))
        return dropped

    def drop_oldest(self, keep_bytes: int) -> int:
        """Drop whole files, the oldest first, until the rest takes at most so many bytes; return how many spans."""
        size, dropped = self.size, 0
        removed: list[str] = []
        for file in sorted(self.snapshot.files.values(), key=lambda one: one.max_start):
            if size <= keep_bytes:
                break
            size -= file.size
            dropped += file.rows
            removed.append(file.path)
        if removed:
            self._commit([], removed, 0)
        return dropped

    def drop_before(self, before_ns: int) -> int:
        """Drop the files in which all spans started before; return how many spans."""
        old = [file for file in self.snapshot.files.values() if file.max_start < before_ns]
        if old:
            self._commit([], [file.path for file in old], 0)
        return sum(file.rows for file in old)

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
        for path in self.folder.glob(f"{delta.PARTITION}=*/*.parquet"):
            if f"{path.parent.name}/{path.name}" not in self.snapshot.files:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the database."""
        self._database.close()

    def _rewrite(self, files: Sequence[File], change: Callable[[pa.Table], pa.Table] | None = None) -> int:
        """Replace files of one kind by one; return how many spans `change` took away."""
        table = parquet.read(self.folder, files)
        before: int = table.num_rows
        if change is not None:
            table = change(table)
        added = []
        if table.num_rows:
            table = table if parquet.is_sequence(files) else parquet.ordered(table)
            added.append(parquet.write(self.folder, table, entry=files[0].entry))
        self._commit(added, [file.path for file in files], 0)
        left: int = table.num_rows
        return before - left

    def _without(self, keys: pa.Table, spans: pa.Table, added: list[File], removed: list[str]) -> None:
        """Write the files that hold spans of these keys, and of the times of `spans`, once more without them."""
        import pyarrow.compute as pc

        bounds = pc.min_max(spans["start_unix_nano"]).as_py()
        for file in View(self.folder, self.snapshot).files(bounds["min"], bounds["max"] + 1):
            table = parquet.read(self.folder, [file])
            self._database.register("old", table)
            self._database.register("keys", keys)
            left = self._database.sql(f"SELECT * FROM old ANTI JOIN keys USING ({KEY})").to_arrow_table()  # noqa: S608
            self._database.unregister("old")
            self._database.unregister("keys")
            if left.num_rows < table.num_rows:
                removed.append(file.path)
                if left.num_rows:
                    added.append(parquet.write(self.folder, parquet.ordered(joined([left])), entry=file.entry))

    def _commit(self, added: Sequence[File], removed: Iterable[str], stored: int) -> None:
        """Commit, and delete the new files if that fails."""
        removed = list(removed)
        try:
            after = delta.commit(self.folder, self.snapshot, added, removed, stored)
        except OSError:
            # The commit may be there all the same: the disk has the last word.
            after = delta.load(self.folder, self.snapshot)
            if after.version == self.snapshot.version:
                self._discard(added)
                raise
        self.snapshot = after
        now = time.monotonic()
        self._replaced += [(now, path) for path in removed]
        if after.version % delta.CHECKPOINT_EVERY == 0:
            delta.checkpoint(self.folder, after.version)

    def _discard(self, added: Iterable[File]) -> None:
        for file in added:
            (self.folder / file.path).unlink(missing_ok=True)


def _groups(files: list[File], *, everything: bool) -> list[list[File]]:
    """Return the groups of files that are worth merging, each in order of time."""
    tiers: dict[int, list[File]] = {}
    for file in sorted(files, key=lambda one: one.min_start):
        if file.rows < MERGED_ROWS // 2:
            # Eight of one tier make one of the next, so that a span is rewritten a few times in all.
            tiers.setdefault(0 if everything else file.rows.bit_length() // 3, []).append(file)
    least = 2 if everything else MERGE_FILES
    groups: list[list[File]] = []
    for tier in tiers.values():
        if len(tier) < least:
            continue
        group: list[File] = []
        for file in tier:
            rows, raw = sum(one.rows for one in group), sum(one.raw for one in group)
            if group and (rows + file.rows > MERGED_ROWS + MERGED_ROWS // 4 or raw + file.raw > MERGED_BYTES):
                groups.append(group)
                group = []
            group.append(file)
        groups.append(group)
    return [group for group in groups if len(group) > 1]
