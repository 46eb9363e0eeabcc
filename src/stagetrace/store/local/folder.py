"""The folder of a local store: its lock and format, its Parquet files, and what a reader sees of it at one moment."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.columns import GENERATION
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.arrow_table import repeat, table
from stagetrace.otlp.decode.columns import SEQUENCE, SHARED, join_tables, schema
from stagetrace.store.local import delta, durable, wal
from stagetrace.store.local.delta import PARTITION, File, Received, Snapshot
from stagetrace.store.stored import SERVER_KIND
from stagetrace.system.access import open_own

if TYPE_CHECKING:
    import pyarrow as pa

    from stagetrace.otlp.decode.spans import Decoded

# --- Spans to Parquet files and back: encodings, order of rows, bounds.

# Readers unpack a group at a time, on as many cores as there are groups; of each they read the bounds first.
ROW_GROUP: Final = 65_536  # spans
ENTRY_GROUP: Final = 32_768  # entry spans, of which there are fewer
ROW_GROUP_BYTES: Final = 8 * 1024 * 1024  # in memory
_PART_BYTES: Final = 2 * 1024 * 1024  # of a file that is rewritten are in memory at a time, besides a group
# Of the groups without a trace, that its Bloom filters do not rule out: each costs more than a filter does.
_FALSE_FINDS: Final = 0.001
_END: Final = b"PAR1"
SAME_TIME_NS: Final = 120 * 10**9
# Times are close to each other in a sorted file, ids are random, everything else repeats.
_ENCODINGS: Final = {
    "start_unix_nano": "DELTA_BINARY_PACKED",
    "end_unix_nano": "DELTA_BINARY_PACKED",
    "seq": "DELTA_BINARY_PACKED",
    "span_id": "PLAIN",
}
_DELTA_TYPES: Final = {
    "binary": "binary",
    "string": "string",
    "bool": "boolean",
    "int32": "integer",
    "int64": "long",
    "double": "double",
}


def delta_schema() -> list[tuple[str, str]]:
    """Return the columns of the table with their Delta types."""
    columns = [(field.name, _DELTA_TYPES[str(field.type)]) for field in schema()]
    return [*columns, (PARTITION, "boolean")]


def partitions(table: pa.Table) -> list[tuple[bool, pa.Table]]:
    """Return the entry spans and the others of a table with all columns, in an order fit for a file."""
    import pyarrow.compute as pc

    is_entry = pc.equal(table["kind"], SERVER_KIND)
    parts = ((True, table.filter(is_entry)), (False, table.filter(pc.invert(is_entry))))
    return [(entry, in_order(part)) for entry, part in parts if part.num_rows]


def in_order(table: pa.Table) -> pa.Table:
    """Return the spans by start, or, if all are of about one time, as they came: that keeps traces together."""
    import pyarrow.compute as pc

    bounds = pc.min_max(table["start_unix_nano"]).as_py()
    if bounds["max"] - bounds["min"] <= SAME_TIME_NS:
        return table
    # Many small chunks make `take` slow.
    return table.combine_chunks().sort_by("start_unix_nano")


def is_sequence(files: Sequence[File]) -> bool:
    """Return whether files, by their first start, follow each other in time, so that joining them keeps the order."""
    return all(one.max_start <= after.min_start + SAME_TIME_NS for one, after in pairwise(files))


def write(folder: Path, table: pa.Table, received: Received, *, entry: bool, generation: int = GENERATION) -> File:
    """Write a table as one file, durably; on failure nothing of it stays. `received`, `generation`: as `File` has."""
    table = table.select([column for column in table.column_names if table[column].null_count < table.num_rows])
    rows = _group_rows(table.num_rows, raw_bytes(table), entry=entry)
    groups = (table.slice(at, rows) for at in range(0, table.num_rows, rows))
    if (file := _write(folder, set(table.column_names), groups, rows, received, entry=entry)) is None:
        raise ValueError("no spans, no file")
    return replace(file, generation=generation)


def rewrite(folder: Path, files: Sequence[File], change: Callable[[pa.Table], pa.Table] | None = None) -> File | None:
    """Write some files of one kind as one, durably, their spans in the same order; return None if none is left.

    `change` is given a few of them at a time, and returns what is to be written. No file is in memory whole.
    """
    import pyarrow.parquet as pq

    columns = {name for file in files for name in pq.read_schema(folder / file.path).names}
    count, raw, entry = sum(file.rows for file in files), sum(file.raw for file in files), files[0].entry
    rows = _group_rows(count, raw, entry=entry)
    parts = _parts([folder / file.path for file in files], max(1, _PART_BYTES * count // max(1, raw)))
    changed = parts if change is None else map(change, parts)
    received = Received.of(file.received for file in files)
    file = _write(folder, columns, _groups(changed, rows), rows, received, entry=entry)
    return file and replace(file, generation=min(one.generation for one in files))


def _parts(paths: Iterable[Path], rows: int) -> Iterator[pa.Table]:
    """Yield the spans of some files, up to `rows` at a time; one file is open at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shared = [name for name, _ in SHARED]
    for path in paths:
        with pq.ParquetFile(path, read_dictionary=shared, pre_buffer=False) as file:
            for batch in file.iter_batches(min(rows, ROW_GROUP), use_threads=False):
                yield pa.Table.from_batches([batch])


def _group_rows(rows: int, raw: int, *, entry: bool) -> int:
    """Return how many of so many spans, which take `raw` bytes in memory, make a group."""
    return max(1, min(ENTRY_GROUP if entry else ROW_GROUP, rows, ROW_GROUP_BYTES * rows // max(1, raw)))


def _groups(parts: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield tables of `rows` spans, the last one of fewer."""
    held: list[pa.Table] = []
    room = rows
    for part in parts:
        at = 0
        while at < part.num_rows:
            # Cut before they are joined: a table keeps the values that its dictionaries had before it was cut.
            held.append(part.slice(at, room))
            at += held[-1].num_rows
            room -= held[-1].num_rows
            if not room:
                yield join_tables(held)
                held, room = [], rows
    if held:
        yield join_tables(held)


def _write(
    folder: Path, columns: set[str], groups: Iterable[pa.Table], rows: int, received: Received, *, entry: bool
) -> File | None:
    """Write groups of up to `rows` spans as one file with these columns; return None, and leave none, without any."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    shared = {name for name, _ in SHARED}
    fields = [field for field in schema() if field.name in columns]
    coded = [f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in shared else f for f in fields]
    empty = pa.schema(coded).empty_table()
    name = f"{PARTITION}={str(entry).lower()}/{uuid.uuid4().hex}.parquet"
    path = folder / name
    durable.make_folder(path.parent)
    count = raw = 0
    bounds: list[tuple[Any, Any]] = []
    try:
        durable.make_file(path)
        with pq.ParquetWriter(
            path,
            empty.schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[field.name for field in fields if field.name not in _ENCODINGS],
            column_encoding={column: one for column, one in _ENCODINGS.items() if column in columns},
            write_statistics=["start_unix_nano", "end_unix_nano", "seq", "trace_id"],
            store_schema=False,
            bloom_filter_options={"trace_id": {"ndv": max(1, rows // (1 if entry else 4)), "fpp": _FALSE_FINDS}},
        ) as writer:
            for group in groups:
                table = join_tables([empty, group])
                writer.write_table(table, rows)
                count += table.num_rows
                raw += raw_bytes(table)
                bounds.append(tuple(pc.min_max(table[name]).as_py() for name in ("start_unix_nano", "seq")))
        if not count:
            path.unlink()
            return None
        size = durable.sync(path)
        durable.sync_folder(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    start, sequence = zip(*bounds, strict=True)
    return File(
        name,
        size,
        count,
        entry,
        min(one["min"] for one in start),
        max(one["max"] for one in start),
        min(one["min"] for one in sequence),
        max(one["max"] for one in sequence),
        raw,
        received,
    )


def raw_bytes(table: pa.Table) -> int:
    """Return about how much memory the spans take, those parts that repeat counted once."""
    return int(table.nbytes)


def is_whole(path: Path) -> bool:
    """Return whether a file is there and ends as a Parquet file does, which one that was cut off does not."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False


def read(folder: Path, files: Sequence[File]) -> pa.Table:
    """Return the spans of some files as one table."""
    import pyarrow.parquet as pq

    shared = [name for name, _ in SHARED]
    return join_tables([pq.read_table(folder / file.path, partitioning=None, read_dictionary=shared) for file in files])


# --- What a reader sees of a folder at one moment: files of one version of the table, and the log behind it.
#
# The log's spans, acknowledged and not in the table yet, are a `Tail`: Arrow tables that grow.

TABLE: Final = "spans"
WAL: Final = "wal"
FORMAT: Final = "format.json"
_ATTEMPTS: Final = 20
# Arrow takes a fifth of the memory of Python's lists. Not too much at once: what was one large block of memory is, once
# free, full of holes.
_SEALED_ROWS: Final = 8192
_SEALED_BYTES: Final = 1 * 1024 * 1024


@dataclass(frozen=True)
class View:
    """One consistent state. `tail` holds what is not in the files; a span may be in both where it came twice."""

    table: Path
    snapshot: Snapshot
    tail: tuple[pa.Table, ...] = ()
    last: int = 0  # number of the newest request
    lost: int = 0  # requests that are missing from the log

    def files(self, since_ns: int, until_ns: int, *, entry: bool | None = None) -> list[File]:
        """Return the files that may hold spans which start in [since_ns, until_ns), but damaged ones."""
        return self.split(since_ns, until_ns, entry=entry)[0]

    def split(self, since_ns: int, until_ns: int, *, entry: bool | None = None) -> tuple[list[File], list[File]]:
        """Return the files as `files` does, and those of the same times that are missing or damaged."""
        found = [
            file
            for file in self.snapshot.files.values()
            if file.max_start >= since_ns and file.min_start < until_ns and entry in (None, file.entry)
        ]
        damaged = [file for file in found if not is_whole(self.table / file.path)]
        return [file for file in found if file not in damaged], damaged


class Tail:
    """Requests in order of their numbers. Not safe for several threads."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.last = 0  # number of the newest request
        self._tables: list[pa.Table] = []
        self._open: list[tuple[int, Decoded]] = []
        self._open_rows = self._open_bytes = 0

    def add(self, sequence: int, decoded: Decoded, size: int) -> None:
        """Take in one request of `size` bytes."""
        self._open.append((sequence, decoded))
        self._open_rows += decoded.accepted
        self._open_bytes += size
        self.rows += decoded.accepted
        self.bytes += size
        self.last = sequence
        if self._open_rows >= _SEALED_ROWS or self._open_bytes >= _SEALED_BYTES:
            self._seal()

    def replay(self, frame: wal.Frame) -> None:
        """Take in one request of the log. Raise MalformedRequest."""
        from stagetrace.otlp.decode.request import decode  # a command that finds an empty log does without
        from stagetrace.otlp.decode.spans import EVER

        decoded = decode(frame.request, latest=EVER if frame.latest is None else frame.latest)
        self.add(frame.sequence, decoded, len(frame.request))

    def over(self, rows: int, size: int) -> bool:
        """Return whether it holds at least so many spans or bytes."""
        return self.rows >= rows or self.bytes >= size

    def tables(self) -> list[pa.Table]:
        """Return all spans."""
        self._seal()
        return list(self._tables)

    def _seal(self) -> None:
        if self._open_rows:
            self._tables.append(with_sequence(self._open))
        self._open, self._open_rows, self._open_bytes = [], 0, 0


def with_sequence(requests: Sequence[tuple[int, Decoded]]) -> pa.Table:
    """Return the spans of some requests with the number of theirs."""
    spans = table([decoded for _, decoded in requests])
    return spans.append_column(SEQUENCE, repeat([(number, one.accepted) for number, one in requests], "q"))


class Outside:
    """The state of a folder that another process may write to, read from its files. Not for several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = folder / TABLE
        self._snapshot = Snapshot()
        self._tail = Tail()
        self._behind = 0  # the tail holds what comes after this number
        self._lost = 0  # requests that the log lacks behind it

    def view(self) -> View:
        """Return the present state."""
        for _ in range(_ATTEMPTS):
            self._snapshot = delta.load(self._table, self._snapshot)
            try:
                self._follow()
            except FileNotFoundError:
                continue  # its spans went into the table in between
            # Whatever left the log while it was read is in a newer version than was looked at before.
            if delta.load(self._table, self._snapshot).stored == self._snapshot.stored:
                break
        last = max(self._snapshot.stored, self._tail.last)
        return View(self._table, self._snapshot, tuple(self._tail.tables()), last, self._lost)

    def _follow(self) -> None:
        """Bring the tail up to date: drop what the table has, decode what is new."""
        from stagetrace.otlp.decode.request import MalformedRequest

        if self._behind != self._snapshot.stored:
            self._tail, self._behind, self._lost = Tail(), self._snapshot.stored, 0
        replay = wal.Replay(self._folder / WAL, max(self._behind, self._tail.last))
        for frame in replay:
            try:
                self._tail.replay(frame)
            except MalformedRequest:  # noqa: PERF203 -- cannot have been acknowledged, and must not stop the others
                continue
        self._lost += replay.lost


# --- The folder of a local store: its lock and its format.

FORMAT_VERSION: Final = 1
LOCK: Final = "lock"  # names the process that has the folder, and on a second line its socket for other writers
_MOST: Final = 4096


class StoreTaken(StoreError):  # noqa: N818 - a state, not a fault
    """Say which process has the folder; `control` is its socket, if it writes for others."""

    def __init__(self, message: str, control: Path | None) -> None:
        super().__init__(message)
        self.control = control


def prepare(folder: Path) -> int:
    """Make a folder a store if it is none, and return the open file that marks it as taken.

    Raise StoreTaken if another process has it, StoreError if a newer stagetrace made it.
    """
    durable.make_folder(folder)
    lock = _lock(folder)
    try:
        if not (folder / FORMAT).exists():
            _claim(folder)
        check_format(folder)
        durable.make_folder(folder / WAL)
        if delta.load(folder / TABLE).version < 0:
            delta.create(folder / TABLE, delta_schema())
        for parent in (folder, folder / TABLE):  # a process that was killed may have made what is in it, and no more
            durable.sync_folder(parent)
    except BaseException:
        os.close(lock)
        raise
    return lock


def check_format(folder: Path) -> None:
    """Raise StoreError if the folder is no store, or if its format is newer than this code."""
    try:
        version = json.loads((folder / FORMAT).read_text("utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError):
        if (folder / TABLE / delta.LOG).is_dir():
            raise StoreError(
                f"cannot open the store in {folder}: {FORMAT}, which gives its format, is missing or damaged\n"
                f'if stagetrace has made this folder, write {{"version": {FORMAT_VERSION}}} into {folder / FORMAT}'
            ) from None
        remedy = f"`stagetrace up --data {folder}` makes one and fills it"
        if folder.is_dir() and any(folder.iterdir()):
            remedy = f"if it holds files of spans, name it {folder.absolute().as_uri()}"
        raise StoreError(f"{folder} is no store\n{remedy}") from None
    if version > FORMAT_VERSION:
        raise StoreError(
            f"cannot open the store in {folder}: its format is {version}, and this stagetrace knows {FORMAT_VERSION}\n"
            "update stagetrace, or name another folder"
        )


def _lock(folder: Path) -> int:
    file = open_own(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner, _, control = os.pread(file, _MOST, 0).decode(errors="replace").partition("\n")
        os.close(file)
        message = (
            f"cannot write to the store in {folder}: process {owner.strip() or 'unknown'} has it\n"
            "wait for that process or stop it, or name another folder; reading needs no lock"
        )
        raise StoreTaken(message, Path(control) if control else None) from None
    _clear_away(os.pread(file, _MOST, 0).decode(errors="replace").partition("\n")[2])
    announce(file)
    return file


def _clear_away(control: str) -> None:
    """Delete the socket, and the folder made for it, of a process that was killed.

    Nothing else: a folder may be a copy of somebody else's, whose lock names any file.
    """
    if control:
        with suppress(OSError, ValueError):
            if stat.S_ISSOCK(Path(control).lstat().st_mode):
                Path(control).unlink()
                Path(control).parent.rmdir()


def announce(lock: int, control: Path | None = None) -> None:
    """Write the owner of the folder into its lock."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, "\n".join([str(os.getpid()), *([] if control is None else [str(control)])]).encode(), 0)


def _claim(folder: Path) -> None:
    """Mark a new folder as a store. Raise StoreError if it holds anything else."""
    others = sorted(path.name for path in folder.iterdir() if path.name != LOCK and path.suffix != durable.UNFINISHED)
    if (folder / TABLE / delta.LOG).is_dir():
        return  # for `check_format` to report
    if others:
        (folder / LOCK).unlink()
        raise StoreError(f"{folder} is no store and not empty: it holds {others[0]}\nname an empty or a new folder")
    durable.replace_file(folder / FORMAT, json.dumps({"version": FORMAT_VERSION}).encode())
