"""Spans out of files: OTLP JSON lines and protobuf here, Parquet as `stagetrace export` writes it in `parquet.py`."""

from __future__ import annotations

import heapq
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from stagetrace.errors import StoreError
from stagetrace.span_attributes import stage_totals
from stagetrace.store import known
from stagetrace.store.base import (
    CANDIDATES,
    EXHAUSTIVE,
    RELATIONS,
    SEGMENTS,
    SQL,
    TAIL,
    Breaches,
    Closing,
    Entry,
    Selection,
    Trace,
    TraceIds,
)
from stagetrace.store.entries import entry_of, is_breached_entry, matches
from stagetrace.store.file import otlp
from stagetrace.store.rows import ServiceSpan, distinct, request_of, spans_of
from stagetrace.store.tally import Tallier, requests_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from stagetrace.store.base import Reader, Relations, SpanRow

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


class FileReader(Closing):
    """Reader of OTLP files. Each question reads them from their beginning, in memory bounded by what it finds."""

    def __init__(self, path: Path, paths: Sequence[Path]) -> None:
        """Read `paths`, which are `path` itself or lie in it."""
        self._path = path
        self._paths = paths
        followed = {TAIL} if len(paths) == 1 and paths[0].suffix in otlp.JSON else set()
        self.capabilities = frozenset({RELATIONS, SQL, SEGMENTS, EXHAUSTIVE, *followed})

    def services(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        return tuple(sorted({one.service for one in self._spans([])}))

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` says."""
        cuts: list[str] = []
        selection, tallier, candidates = replace(selection, breached=True), Tallier(selection), []
        for one in self._entries(cuts):
            span = one.row()
            tallier.offer(span)
            if is_breached_entry(one.span) and matches(span, selection):
                candidates.append(span)
        found = distinct(candidates)
        if tallier.newest is None:
            known.check(selection, self, str(self._path))
        found.sort(key=lambda span: (-span.start_unix_nano, span.trace_id, span.span_id))
        if selection.limit is not None and len(found) > selection.limit:
            cuts.insert(0, f"limit {selection.limit} reached, there are older breaches")
            found = found[: selection.limit]
        entries = tuple(self._records(found))
        return Breaches(entries, complete=not cuts, reason="; ".join(cuts) or None, tally=tallier.tally())

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` says."""
        for found in self.traces((trace_id,)):
            return found
        raise StoreError(f"{self._path}: there is no trace {trace_id}\nit may have been sampled out, or be elsewhere")

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` says."""
        cuts: list[str] = []
        wanted = {bytes.fromhex(trace_id): list[ServiceSpan]() for trace_id in trace_ids}
        for one in self._spans(cuts):
            if one.span.trace_id in wanted:
                wanted[one.span.trace_id].append(one)
        for trace_id, spans in wanted.items():
            if spans:
                rows = tuple(distinct(one.row() for one in spans))
                yield Trace(trace_id.hex(), rows, complete=not cuts, reason="; ".join(cuts) or None)

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, as `Reader.trace_ids` says."""
        newest: dict[str, int] = {}
        for one in self._spans([]):
            trace_id = one.span.trace_id.hex()
            if trace_id.startswith(prefix):
                newest[trace_id] = max(newest.get(trace_id, 0), one.span.start_time_unix_nano)
        return TraceIds(tuple(heapq.nlargest(CANDIDATES, newest, key=lambda one: (newest[one], one))))

    def relations(self, selection: Selection) -> Relations:
        """Return both relations as `Reader.relations` says."""
        from stagetrace.store.load import Loader

        loader, cuts = Loader(selection), list[str]()
        for message in self._messages(cuts):
            loader.add(message.SerializeToString())
        relations = loader.select(selection, cuts)
        if loader.is_empty:
            self._check(selection)
        return relations

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` says."""
        wanted = self._ids(selection)
        if not wanted:
            self._check(selection)
        for message in self._messages(cuts):
            spans = [one for one in spans_of(message) if _is_wanted(one, selection, wanted)]
            if spans:
                yield request_of(spans)

    def spans_after(self, cursor: int | None) -> tuple[list[SpanRow], int]:
        """Return the spans of lines behind the cursor, and the next cursor; the first is the file's end."""
        if cursor is None:
            return [], self._paths[0].stat().st_size
        requests, cursor = otlp.complete_lines(self._paths[0], cursor)
        return [one.row() for request in requests for one in spans_of(request)], cursor

    def has(self, selection: Selection) -> bool:
        """Tell whether there is any such request."""
        return any(matches(one.row(), selection) for one in self._entries([]))

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield the entry spans of a service, or of all; here that is every one."""
        return (one.row() for one in self._entries([]) if service in (None, one.service))

    def _check(self, selection: Selection) -> None:
        """Raise StoreError where a selection names what is not here."""
        ever = requests_of(selection, ever=True)
        if ever.is_filtered and not self.has(ever):
            known.check(selection, self, str(self._path))

    def _messages(self, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        whole, before, count = sum(path.stat().st_size for path in self._paths), 0, 0
        for path in self._paths:
            for message, behind in otlp.read_at(path, cuts):
                count += 1
                self.progress(count, "messages", (before + behind) / max(1, whole))
                yield message
            before += path.stat().st_size

    def _spans(self, cuts: list[str]) -> Iterator[ServiceSpan]:
        for message in self._messages(cuts):
            yield from spans_of(message)

    def _entries(self, cuts: list[str]) -> Iterator[ServiceSpan]:
        return (one for one in self._spans(cuts) if one.span.kind == one.span.SPAN_KIND_SERVER)

    def _ids(self, selection: Selection) -> set[bytes] | None:
        """Return the ids of the traces that are meant, one more than the limit; None where only time counts."""
        if not selection.is_filtered:
            return None
        entries = (one.row() for one in self._entries([]))
        found: Iterable[tuple[int, str, str]] = {
            (-entry.start_unix_nano, entry.trace_id, entry.span_id) for entry in entries if matches(entry, selection)
        }
        if selection.limit is not None:
            found = heapq.nsmallest(selection.limit + 1, found)
        return {bytes.fromhex(trace_id) for _, trace_id, _ in found}

    def _records(self, found: Sequence[SpanRow]) -> Iterator[Entry]:
        """Yield the record of each entry span; those without stage totals get the spans beneath them."""
        bare = {(span.trace_id, span.span_id) for span in found if not stage_totals(span, ())}
        beneath: dict[tuple[str, str], list[SpanRow]] = {}
        if bare:
            for one in self._spans([]):
                above = one.span.trace_id.hex(), one.span.parent_span_id.hex()
                if above in bare:
                    beneath.setdefault(above, []).append(one.row())
        for span in found:
            yield entry_of(span, beneath.get((span.trace_id, span.span_id), ()))


def _is_wanted(one: ServiceSpan, selection: Selection, ids: set[bytes] | None) -> bool:
    if ids is not None:
        return one.span.trace_id in ids
    return selection.since_ns <= one.span.start_time_unix_nano < selection.until_ns
