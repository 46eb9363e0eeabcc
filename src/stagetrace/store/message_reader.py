"""A reader of any store that yields its spans as OTLP requests: all other methods follow from that."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stagetrace.errors import UnknownTrace
from stagetrace.span_attributes import stage_totals
from stagetrace.store import known
from stagetrace.store.base import (
    CANDIDATES,
    WHOLE,
    Breaches,
    Closing,
    Entry,
    Relations,
    Selection,
    SpanRow,
    Trace,
    TraceIds,
)
from stagetrace.store.entries import entry_of, is_breached_entry, matches
from stagetrace.store.rows import ServiceSpan, distinct, request_of, spans_of
from stagetrace.store.tally import Tallier, named_in

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class MessageReader(Closing, ABC):
    """Reader of a store that is read whole: each question from its beginning, in memory bounded by the result."""

    capabilities = WHOLE

    def __init__(self, name: str) -> None:
        """Read the store that error messages call `name`."""
        self.name = name

    @abstractmethod
    def messages(self, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield all that is stored; append to `cuts` what could not be read. Raise StoreError if nothing can."""

    def services(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        return tuple(sorted({one.service for one in self._spans([])}))

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` specifies."""
        cuts: list[str] = []
        selection, tallier, candidates = replace(selection, breached=True), Tallier(selection), []
        for one in self._entries(cuts):
            span = one.row()
            tallier.offer(span)
            if is_breached_entry(one.span) and matches(span, selection):
                candidates.append(span)
        found = distinct(candidates)
        if tallier.newest is None or (selection.codes and not found):
            known.check(selection, self, self.name)
        found.sort(key=lambda span: (-span.start_unix_nano, span.trace_id, span.span_id))
        if selection.limit is not None and len(found) > selection.limit:
            cuts.insert(0, f"limit {selection.limit} reached, there are older breaches")
            found = found[: selection.limit]
        entries = tuple(self._records(found))
        return Breaches(entries, "; ".join(cuts) or None, tallier.tally())

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` specifies."""
        for found in self.traces((trace_id,)):
            return found
        raise UnknownTrace(
            f"{self.name}: there is no trace {trace_id}\nit may have been sampled out, or is in another store"
        )

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies."""
        cuts: list[str] = []
        wanted = {bytes.fromhex(trace_id): list[ServiceSpan]() for trace_id in trace_ids}
        for one in self._spans(cuts):
            if one.span.trace_id in wanted:
                wanted[one.span.trace_id].append(one)
        for trace_id, spans in wanted.items():
            if spans:
                rows = tuple(distinct(one.row() for one in spans))
                yield Trace(trace_id.hex(), rows, "; ".join(cuts) or None)

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, as `Reader.trace_ids` specifies."""
        newest: dict[str, int] = {}
        for one in self._spans([]):
            trace_id = one.span.trace_id.hex()
            if trace_id.startswith(prefix):
                newest[trace_id] = max(newest.get(trace_id, 0), one.span.start_time_unix_nano)
        return TraceIds(tuple(heapq.nlargest(CANDIDATES, newest, key=lambda one: (newest[one], one))))

    def relations(self, selection: Selection) -> Relations:
        """Return both relations as `Reader.relations` specifies."""
        from stagetrace.store.load import Loader

        loader, cuts = Loader(selection), list[str]()
        for message in self.messages(cuts):
            loader.add(message.SerializeToString())
        relations = loader.select(selection, cuts)
        if loader.is_empty:
            self._check(selection)
        return relations

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` specifies."""
        wanted = self._ids(selection)
        if not wanted:
            self._check(selection)
        for message in self.messages(cuts):
            spans = [one for one in spans_of(message) if _is_wanted(one, selection, wanted)]
            if spans:
                yield request_of(spans)

    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request."""
        return any(matches(one.row(), selection) for one in self._entries([]))

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield the entry spans of a service, or of all; here that is every one."""
        return (one.row() for one in self._entries([]) if service in (None, one.service))

    def _check(self, selection: Selection) -> None:
        """Raise StoreError where a selection names what is not here."""
        ever = named_in(selection)
        if ever.is_filtered and not self.has(ever):
            known.check(selection, self, self.name)

    def _spans(self, cuts: list[str]) -> Iterator[ServiceSpan]:
        for message in self.messages(cuts):
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
