"""Spans into a file: OTLP JSON lines, OTLP protobuf, Parquet or CSV. A file is whole or not there, at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from csv import writer as write_csv
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from stagetrace.errors import StoreError
from stagetrace.otlp.decode.json import encode
from stagetrace.store.database import needs
from stagetrace.store.reductions import LOADED
from stagetrace.store.rows import spans_of
from stagetrace.store.stored import OTLP
from stagetrace.text import spreadsheet_cell

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from stagetrace.store.load import DuckDBRelations

    # Called with the number of spans written so far.
    Progress = Callable[[int], None]

_BATCH: Final = 20_000  # spans in one row group
_ROWS: Final = 5000


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file there becomes `path` when the block ends well, and goes where it does not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}\nnothing of it was left behind") from None
    finally:
        partial.unlink(missing_ok=True)


def otlp(path: Path, messages: Iterable[ExportTraceServiceRequest], progress: Progress) -> int:
    """Write OTLP, one message after another, by the suffix of `path`; return the number of spans."""
    write = _line if path.suffix in (".jsonl", ".json", ".ndjson") else _frame
    count = 0
    with replacing(path) as partial, partial.open("wb") as file:
        for message in messages:
            write(file, message)
            count += sum(1 for _ in spans_of(message))
            progress(count)
    return count


def parquet(path: Path, relations: DuckDBRelations, progress: Progress) -> int:
    """Write the spans of relations as Parquet, as `ParquetReader` reads it, by start; return their number."""
    try:
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise needs("Parquet", "pyarrow") from None
    columns = ", ".join(f'"{name}"' for name in (*LOADED, OTLP))
    # In order of time, so that a reader of part of the time reads part of the file.
    query = f"SELECT {columns} FROM whole ORDER BY start_unix_nano, trace_id, span_id"  # noqa: S608 -- names of ours
    count = 0
    batches = relations.connection.sql(query).to_arrow_reader(_BATCH)
    with replacing(path) as partial, ParquetWriter(partial, batches.schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
            progress(count)
    return count


def csv(path: Path, relations: DuckDBRelations, relation: str, progress: Progress) -> int:
    """Write one of two relations as comma-separated values by start; return the number of rows.

    Maps are JSON, and text is none that a spreadsheet would run.
    """
    columns = relations.connection.table(relation)
    cells = [_text(name, str(kind)) for name, kind in zip(columns.columns, columns.types, strict=True)]
    query = f"SELECT {', '.join(cells)} FROM {relation} ORDER BY start_unix_nano, trace_id, span_id"  # noqa: S608 -- ours
    count = 0
    result = relations.connection.execute(query)
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = write_csv(file, lineterminator="\n")
        writer.writerow(columns.columns)
        while rows := result.fetchmany(_ROWS):
            writer.writerows(
                [[spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
            )
            count += len(rows)
            progress(count)
    return count


def _text(column: str, kind: str) -> str:
    """Return the SQL of a cell whose text Python would write differently, or slower."""
    return (
        f'to_json("{column}")::VARCHAR' if kind.startswith("MAP") else f'"{column}"' + "::VARCHAR" * (kind == "BOOLEAN")
    )


def _line(file: BinaryIO, message: ExportTraceServiceRequest) -> None:
    file.write(encode(message).encode() + b"\n")


def _frame(file: BinaryIO, message: ExportTraceServiceRequest) -> None:
    """Write a message behind its length in four bytes, as the Collector's file exporter does."""
    content = message.SerializeToString()
    file.write(len(content).to_bytes(4, "big") + content)
