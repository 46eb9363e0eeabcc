"""Spans to Parquet files and back: encodings, order of rows, bounds."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.columns import GENERATION
from stagetrace.otlp.decode.columns import SHARED, joined, schema
from stagetrace.store.local import durable
from stagetrace.store.local.snapshot import PARTITION, File, Received
from stagetrace.store.stored import SERVER_KIND

if TYPE_CHECKING:
    import pyarrow as pa

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
    return [(entry, ordered(part)) for entry, part in parts if part.num_rows]


def ordered(table: pa.Table) -> pa.Table:
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
                yield joined(held)
                held, room = [], rows
    if held:
        yield joined(held)


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
                table = joined([empty, group])
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
    return joined([pq.read_table(folder / file.path, partitioning=None, read_dictionary=shared) for file in files])
