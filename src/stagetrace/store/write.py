"""Spans into a file: OTLP JSON lines, OTLP protobuf or Parquet. A file is whole or not there, at any time."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from stagetrace.errors import StoreError
from stagetrace.otlp import json_form
from stagetrace.store.load import COLUMNS, arrow, arrow_schema, cells, connect, needs, sql
from stagetrace.store.parquet import OTLP
from stagetrace.store.rows import request_of, spans_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    # Called with the number of spans written so far.
    Progress = Callable[[int], None]

_BATCH: Final = 20_000  # spans in one row group


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
    write = _line if path.suffix in (".jsonl", ".json", ".ndjson") else _framed
    count = 0
    with replacing(path) as partial, partial.open("wb") as file:
        for message in messages:
            write(file, message)
            count += sum(1 for _ in spans_of(message))
            progress(count)
    return count


def parquet(path: Path, messages: Iterable[ExportTraceServiceRequest], progress: Progress) -> int:
    """Write Parquet as `ParquetReader` reads it, each span once; return the number of spans."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise needs("Parquet", "pyarrow") from None
    schema = arrow_schema().append(pa.field(OTLP, pa.binary()))
    count = 0
    with replacing(path) as partial:
        with ParquetWriter(partial, schema, compression="zstd") as writer:
            for rows in _batches(messages):
                writer.write_table(arrow(rows, schema))
                count += len(rows)
                progress(count)
        return count - _drop_repeated(partial)


def _batches(messages: Iterable[ExportTraceServiceRequest]) -> Iterator[list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
    for message in messages:
        for one in spans_of(message):
            content = request_of((one,)).resource_spans[0].SerializeToString()
            rows.append((*cells(one.row()), content))
        if len(rows) >= _BATCH:
            yield rows
            rows = []
    if rows:
        yield rows


def _drop_repeated(path: Path) -> int:
    """Rewrite the file without the copies of spans that were delivered twice, if there are any; return how many."""
    with connect() as connection:
        received = connection.read_parquet(str(path))
        received.create_view("received")
        asked = "SELECT count(*) - count(DISTINCT (trace_id, span_id, service, kind)) FROM received"
        (repeated,) = connection.execute(asked).fetchone() or (0,)
        if repeated:
            connection.execute(sql("once"))
            columns = ", ".join(f'"{name}"' for name in (*COLUMNS, OTLP))
            whole = path.with_name(f"{path.name}.whole")
            try:
                connection.sql(f"SELECT {columns} FROM once").write_parquet(str(whole), compression="zstd")  # noqa: S608
                whole.replace(path)
            finally:
                whole.unlink(missing_ok=True)
    return int(repeated)


def _line(file: BinaryIO, message: ExportTraceServiceRequest) -> None:
    file.write(json_form.encode(message).encode() + b"\n")


def _framed(file: BinaryIO, message: ExportTraceServiceRequest) -> None:
    """Write a message behind its length in four bytes, as the Collector's file exporter does."""
    content = message.SerializeToString()
    file.write(len(content).to_bytes(4, "big") + content)
