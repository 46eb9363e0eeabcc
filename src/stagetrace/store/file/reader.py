"""Spans out of files: OTLP JSON lines and protobuf here, Parquet as `stagetrace export` writes it in `parquet.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from stagetrace.errors import StoreError
from stagetrace.store.base import TAIL, Reader, SpanRow
from stagetrace.store.file import otlp
from stagetrace.store.message_reader import MessageReader
from stagetrace.store.rows import spans_of

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


PARQUET: Final = ".parquet"
SUFFIXES: Final = (*otlp.JSON, *otlp.PROTOBUF, PARQUET)


def open_url(url: str) -> Reader:
    """Return a reader of `file:///PATH`: one file, or a folder of files of one kind."""
    host, slash, path = url.partition("://")[2].partition("/")
    if host or not slash:
        raise StoreError(f"cannot open store {url!r}: the path must be whole\nwrite file:///folder/spans.jsonl")
    return open_path(Path("/" + unquote(path)))


def open_path(path: Path) -> Reader:
    """Return a reader of one file or of a folder's. Raise StoreError if there is nothing to read."""
    if path.is_dir():
        paths = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and not one.name.startswith("."))
    else:
        paths = [path]
    if not path.exists():
        raise StoreError(f"there is no file {path}\ncheck the path")
    if not paths or any(one.suffix not in SUFFIXES for one in paths):
        raise StoreError(f"{path} is nothing that can be read\nreadable are {' '.join(SUFFIXES)}, or a folder of these")
    columnar = {one.suffix == PARQUET for one in paths}
    if columnar == {True, False}:
        raise StoreError(f"{path} holds Parquet beside other files\nname one of them")
    if columnar == {True}:
        from stagetrace.store.file.parquet import ParquetReader

        return ParquetReader(path, paths)
    return FileReader(path, paths)


class FileReader(MessageReader):
    """Reader of OTLP files."""

    def __init__(self, path: Path, paths: Sequence[Path]) -> None:
        """Read `paths`, which are `path` itself or lie in it."""
        super().__init__(str(path))
        self._paths = paths
        followed = {TAIL} if len(paths) == 1 and paths[0].suffix in otlp.JSON else set()
        self.capabilities = MessageReader.capabilities | followed

    def spans_after(self, cursor: int | None, *, entries: bool = False) -> tuple[list[SpanRow], int]:
        """Return the spans of lines behind the cursor, and the next cursor; the first is the file's end."""
        if cursor is None:
            return [], self._paths[0].stat().st_size
        requests, cursor = otlp.complete_lines(self._paths[0], cursor)
        spans = [one for request in requests for one in spans_of(request)]
        return [one.row() for one in spans if not entries or one.span.kind == one.span.SPAN_KIND_SERVER], cursor

    def messages(self, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the requests in the files, and report progress by bytes."""
        whole, before, count = sum(path.stat().st_size for path in self._paths), 0, 0
        for path in self._paths:
            for message, behind in otlp.read_at(path, cuts):
                count += 1
                self.progress(count, "messages", (before + behind) / max(1, whole))
                yield message
            before += path.stat().st_size
