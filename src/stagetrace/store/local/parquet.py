"""Spans to Parquet files and back: encodings, order of rows, bounds."""

from __future__ import annotations

import os
import uuid
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from stagetrace.otlp.decoder_columns import SHARED, joined, schema
from stagetrace.store.local.delta import PARTITION, File
from stagetrace.store.local.wal import sync_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

SERVER_KIND: Final = 2
ROW_GROUP: Final = 32_768  # spans
ROW_GROUP_BYTES: Final = 32 * 1024 * 1024  # in memory
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
    """Tell whether files, by their first start, follow each other in time, so that joining them keeps the order."""
    return all(one.max_start <= after.min_start + SAME_TIME_NS for one, after in pairwise(files))


def write(folder: Path, table: pa.Table, *, entry: bool) -> File:
    """Write a table as one file, durably; on failure nothing of it stays."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = table.select([column for column in table.column_names if table[column].null_count < table.num_rows])
    name = f"{PARTITION}={str(entry).lower()}/{uuid.uuid4().hex}.parquet"
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    # Readers unpack a group at a time.
    group = max(1, min(ROW_GROUP, ROW_GROUP_BYTES * table.num_rows // max(1, raw_bytes(table))))
    encodings = {column: one for column, one in _ENCODINGS.items() if column in table.column_names}
    dictionaries = [field.name for field in table.schema if field.name not in _ENCODINGS]
    try:
        pq.write_table(
            table,
            path,
            compression="zstd",
            compression_level=1,
            use_dictionary=dictionaries,
            column_encoding=encodings,
            row_group_size=group,
            write_statistics=["start_unix_nano", "end_unix_nano", "seq", "trace_id"],
            store_schema=False,
            bloom_filter_options={
                "trace_id": {"ndv": max(1, min(group, table.num_rows) // (1 if entry else 4)), "fpp": 0.01}
            },
        )
        size = _sync(path)
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    start, sequence = (pc.min_max(table[name]).as_py() for name in ("start_unix_nano", "seq"))
    return File(
        name,
        size,
        table.num_rows,
        entry,
        start["min"],
        start["max"],
        sequence["min"],
        sequence["max"],
        raw_bytes(table),
    )


def raw_bytes(table: pa.Table) -> int:
    """Return about how much memory the spans take, those parts that repeat counted once."""
    return int(table.nbytes)


def _sync(path: Path) -> int:
    """Make a file durable and return its size."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        return os.fstat(file).st_size
    finally:
        os.close(file)


def read(folder: Path, files: Sequence[File]) -> pa.Table:
    """Return the spans of some files as one table."""
    import pyarrow.parquet as pq

    shared = [name for name, _ in SHARED]
    return joined([pq.read_table(folder / file.path, partitioning=None, read_dictionary=shared) for file in files])
