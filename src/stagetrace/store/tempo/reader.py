"""Requests and traces out of a Tempo, by TraceQL searches and `/api/v2/traces`.

A search names traces, and each of them is one more call. So listings of breaches read every trace that a search by the
verdict names, and whatever needs all requests reads the newest `SAMPLE` traces and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from stagetrace.errors import StoreError, UnknownTrace
from stagetrace.otlp.decode.request import Unreadable, read
from stagetrace.store.answers import Tallier, counted_breach, requests_of
from stagetrace.store.base import (
    CANDIDATES,
    EXHAUSTIVE,
    WHOLE,
    Breaches,
    Entry,
    Relations,
    Selection,
    SpanRow,
    Tally,
    Trace,
    TraceIds,
)
from stagetrace.store.entries import breached_entries, matches
from stagetrace.store.message_reader import NamedReader, check_service
from stagetrace.store.rows import ServiceSpan, distinct, request_of, spans_of
from stagetrace.store.search_windows import (
    Found,
    Pick,
    breaches,
    requests,
    whole,
    whole_of_requests,
    with_progress,
)
from stagetrace.store.tempo import traceql
from stagetrace.store.tempo.address import parse
from stagetrace.store.tempo.client import RangeRefusedError, Stored, TempoClient
from stagetrace.store.tempo.search_windows import DEPTH, MAX_DEPTH, NOTHING_BEFORE, TempoSearch, TempoWalker
from stagetrace.store.typed import give_types

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SAMPLE: Final = 2000  # traces that are read for one answer about all requests
NEWEST_TRACES: Final = 10_000  # whose ids are looked at for one of which only the first digits are known
_LOOKED_AT: Final = 400  # traces, for the names in them
_LEAST: Final = 20  # traces of a search, however few are wanted
_EVER_NS: Final = 2**63 - 1
_HOUR_NS: Final = 3600 * 10**9
_DAY_NS: Final = 24 * _HOUR_NS
_NEWEST_NS: Final = {"the last hour": _HOUR_NS, "the last 30 days": 30 * _DAY_NS}


def open_url(url: str) -> TempoReader:
    """Return a reader of `tempo://HOST[:PORT][/PREFIX]` or `tempos://HOST[:PORT][/PREFIX]`."""
    return TempoReader(TempoClient(parse(url)))


class _Judged(NamedTuple):
    """A request, and its record if it is a breach."""

    row: SpanRow
    entry: Entry | None


class TempoReader(NamedReader):
    """Reader of one Tempo. Not for use by several threads at once, `interrupt` aside."""

    capabilities = WHOLE - {EXHAUSTIVE}

    def __init__(self, client: TempoClient, depth: int = DEPTH, max_depth: int = MAX_DEPTH) -> None:
        """Search for `depth` traces at once, and for up to `max_depth` within one second."""
        super().__init__(client.url)
        self._client = client
        self._walker = TempoWalker(client, depth, max_depth)
        self._is_victoria = client.address.is_victoria

    def services(self) -> tuple[str, ...]:
        """Return the services that Tempo knows, of as wide a time as it searches at once, sorted."""
        until_s = time.time_ns() // 10**9 + 86_400
        try:
            found = self._client.services((1, until_s))
        except RangeRefusedError as error:
            found = self._client.services((until_s - error.widest_s, until_s))
        return tuple(sorted(set(found)))

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` specifies."""
        if selection.judging is not None:
            return self._breaches(selection, self.relations)
        limit = selection.limit
        wanted = replace(selection, breached=True, limit=None)
        uncounted: list[str] = []
        tallier, entries = Tallier(selection), list[Entry]()
        for one in self._newest(requests_of(selection), _judged, uncounted, SAMPLE):
            row, entry = cast("_Judged", one.what)
            tallier.offer(row)
            if entry is not None and matches(row, wanted):
                entries.append(entry)
        cuts: list[str] = []
        all_missed = True
        if uncounted:  # then the breaches are searched for
            most = None if limit is None else max(limit, SAMPLE) + 1
            entries = [cast("Entry", one.what) for one in islice(self._newest(wanted, breaches, cuts), most)]
            all_missed = not cuts and len(entries) != most
            for one_entry in entries:
                tallier.add(counted_breach(one_entry, selection.judged_by))
        if selection.codes and not entries:
            self.check_names(selection)
        tally = self._tally(selection, tallier, uncounted, all_missed=all_missed)
        if limit is not None and len(entries) > limit:
            cuts.insert(0, f"limit {limit} reached, there are older breaches")
            entries = entries[:limit]
        return Breaches(tuple(entries), "; ".join(cuts) or None, tally)

    def _tally(self, selection: Selection, tallier: Tallier, cuts: Sequence[str], *, all_missed: bool) -> Tally:
        """Return the outcomes of the requests that were counted. Raise StoreError for an unknown name."""
        reason = f"not all requests are counted: {', '.join(cuts)}" if cuts else None
        tally = replace(tallier.tally(reason), all_missed=all_missed)
        if tally.requests:
            return tally
        self.check_names(selection)
        newest = self._newest(replace(requests_of(selection, ever=True), limit=1), requests, [])
        return replace(tally, newest_unix_nano=next((-one.minus_start for one in newest), None))

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` specifies."""
        for found in self.traces((trace_id,)):
            return found
        raise UnknownTrace(
            f"{self.name}: there is no trace {trace_id}\n"
            "it may still be on its way (spans are sent in batches), or have been sampled out or deleted by age"
        )

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies; several calls run at once, for each gives one trace."""
        for trace_id, stored in zip(trace_ids, self._client.get_traces(trace_ids), strict=True):
            cuts = [] if stored.reason is None else [stored.reason]
            unreadable = Unreadable(cuts)
            if rows := [one.row() for one in self._spans(stored, unreadable)]:
                yield Trace(trace_id, tuple(distinct(rows)), "; ".join(cuts) or None)
            elif stored.data:
                why = cuts[0] if cuts else "no span of it can be read"
                raise StoreError(f"{self.name}: {why}, and trace {trace_id} has no others\nsee it elsewhere")

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, out of the newest traces: Tempo cannot search them."""
        now = time.time_ns()
        for window, window_ns in _NEWEST_NS.items():
            search = TempoSearch(Selection(now - window_ns, now + _DAY_NS), [], query="{}")
            every = (one.trace_id for found in self._walker.windows(search) for one in found)
            newest = list(dict.fromkeys(islice(every, NEWEST_TRACES + 1)))
            is_cut = len(newest) > NEWEST_TRACES
            ids = [one for one in newest[:NEWEST_TRACES] if one.startswith(prefix)]
            searched = f"the newest {NEWEST_TRACES:,} traces" if is_cut else f"the traces of {window}"
            if ids or is_cut:
                break
        # A search knows when a trace began, and not when its newest span did.
        starts = {
            one.trace_id: max(span.start_unix_nano for span in one.spans) for one in self.traces(ids[: 2 * CANDIDATES])
        }
        found = sorted(starts, key=lambda one: -starts[one])
        reason = f"Tempo cannot search by a part of an id, so only {searched} were searched"
        return TraceIds(tuple(found[:CANDIDATES]), reason)

    def relations(self, selection: Selection) -> Relations:
        """Return both relations as `Reader.relations` specifies, of the newest `SAMPLE` traces."""
        from stagetrace.store.load import Loader

        loader, cuts = Loader(selection), list[str]()
        for trace in self._traces(selection.stored, cuts):
            loader.add(request_of(trace).SerializeToString())
        relations = loader.select(selection, cuts)
        if loader.is_empty:
            self.check_names(selection)
        return relations

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` specifies, a trace at a time, of the newest `SAMPLE`."""
        found = self._traces(selection, cuts)
        first = next(found, None)
        if first is None:
            self.check_names(selection)
            return
        for trace in chain((first,), found):
            yield request_of(
                one
                for one in trace
                if selection.is_filtered or selection.since_ns <= one.span.start_time_unix_nano < selection.until_ns
            )

    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request, as far as a few hundred traces that a search gives show it."""
        cuts: list[str] = []
        found = next(self._newest(replace(selection, limit=1), requests, cuts, _LOOKED_AT), None)
        return found is not None or any(not cut.startswith(NOTHING_BEFORE) for cut in cuts)

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield entry spans of a service, or of all; of a few hundred traces."""
        found = self._newest(Selection(0, _EVER_NS, service=service), requests, [], _LOOKED_AT)
        return (cast("SpanRow", one.what) for one in found)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _traces(self, selection: Selection, cuts: list[str]) -> Iterator[list[ServiceSpan]]:
        """Yield each trace of the selection once, whole, and with a limit one request more than it."""
        found = self._newest(selection, whole_of_requests if selection.is_filtered else whole, cuts, SAMPLE)
        taken: set[str] = set()
        for one in islice(found, None if selection.limit is None else selection.limit + 1):
            if one.trace_id not in taken:
                taken.add(one.trace_id)
                yield cast("list[ServiceSpan]", one.what)

    def _newest(self, selection: Selection, pick: Pick, cuts: list[str], most: int | None = None) -> Iterator[Found]:
        """Yield the finds of `pick`, newest first, each once, of the newest `most` traces; `cuts` says what is left."""
        if selection.service == "":  # no search finds spans of no service
            check_service("", self.services(), self.name)
        found = self._found(selection, pick, cuts, most)
        return with_progress(found, selection.since_ns, self.progress)

    def _found(self, selection: Selection, pick: Pick, cuts: list[str], most: int | None) -> Iterator[Found]:
        known: set[tuple[str, str]] = set()
        read_ids: set[str] = set()
        for window in self._walker.windows(self._search(selection, cuts), _depth(selection)):
            wanted, is_cut = _some(window, read_ids, most)
            found: list[Found] = []
            for spans, one in zip(self._each(wanted, cuts), wanted, strict=True):
                # VictoriaTraces finds a span by its end, so of a trace all counts; newest first is then roughly so.
                within = selection if self._is_victoria else cast("Selection", one.what)
                found += pick(spans, within)
            for each in sorted(found, key=lambda one: one[:3]):
                if each[1:3] not in known:  # delivery is at least once, and a long trace is in several windows
                    known.add((each.trace_id, each.span_id))
                    yield each
            if is_cut:
                cuts.append(f"only the newest {most:,} traces are read, as Tempo returns one at a time")
                return

    def _search(self, selection: Selection, cuts: list[str]) -> TempoSearch:
        query = traceql.query(selection, texts=self._is_victoria)
        if self._is_victoria:  # a request that began before `until` may have ended behind it
            selection = replace(selection, until_ns=min(selection.until_ns + _DAY_NS, _EVER_NS))
        return TempoSearch(selection, cuts, query=query)

    def _each(self, wanted: Sequence[Found], cuts: list[str]) -> Iterator[list[ServiceSpan]]:
        """Yield the spans of each of these traces; `cuts` says what is missing in one."""
        unreadable = Unreadable(cuts)
        for stored in self._client.get_traces(one.trace_id for one in wanted):
            if stored.reason is not None and stored.reason not in cuts:
                cuts.append(stored.reason)
            yield self._spans(stored, unreadable)

    def _spans(self, stored: Stored, unreadable: Unreadable) -> list[ServiceSpan]:
        try:
            data = read(TracesData, stored.data, unreadable)
        except DecodeError:
            unreadable.add(stored.data)
            return []
        if self._is_victoria:
            give_types(data)
        return list(spans_of(data))


def _depth(selection: Selection) -> int | None:
    # One more than the limit shows whether there are more; a search for many more would only cost time.
    return None if selection.limit is None else max(selection.limit + 1, _LEAST)


def _some(window: Sequence[Found], read_ids: set[str], most: int | None) -> tuple[list[Found], bool]:
    """Return the traces of a window that are read so that no more than `most` are, and whether some are not."""
    if most is None:
        return list(window), False
    wanted: list[Found] = []
    for one in window:
        if one.trace_id not in read_ids:
            if len(read_ids) >= most:
                return wanted, True
            read_ids.add(one.trace_id)
        wanted.append(one)
    return wanted, False


def _judged(trace: list[ServiceSpan], selection: Selection) -> Iterator[Found]:
    """Yield the selected requests of one trace, with the record of each that is a breach."""
    records = {(one.trace_id, one.span_id): one for one in breached_entries(trace, selection)}
    for one in requests(trace, selection):
        row = cast("SpanRow", one.what)
        yield one._replace(what=_Judged(row, records.get((row.trace_id, row.span_id))))
