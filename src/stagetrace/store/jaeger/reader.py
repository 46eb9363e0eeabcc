"""Requests and traces out of Jaeger, by the one API that all its versions from 2.13 on share."""

# ruff: noqa: S608 -- names in queries are constants of ours; every value is bound

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, cast

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from stagetrace import semconv
from stagetrace.columns import names_of
from stagetrace.errors import StoreError, UnknownTrace
from stagetrace.otlp.decode import arrow_table, columns
from stagetrace.otlp.decode.request import Unreadable, decode, read
from stagetrace.store import stored
from stagetrace.store.answers import Tallier, counted_breach, requests_of
from stagetrace.store.base import (
    CANDIDATES,
    Breaches,
    Closing,
    Entry,
    Relations,
    Selection,
    SpanRow,
    Tally,
    Trace,
    TraceIds,
)
from stagetrace.store.database import close, connect
from stagetrace.store.entries import HTTP_ROUTE, RPC_METHOD, is_whole, matches
from stagetrace.store.jaeger.client import JaegerClient, parse
from stagetrace.store.jaeger.search_windows import DEPTH, MAX_DEPTH, JaegerSearch, JaegerWalker, Picked
from stagetrace.store.load import define, set_variables
from stagetrace.store.message_reader import NamedReader, check_service
from stagetrace.store.rows import ServiceSpan, by_trace, distinct, request_of, spans_of
from stagetrace.store.search_windows import Found, Pick, breaches, requests, whole, whole_of_requests, with_progress

if TYPE_CHECKING:
    import pyarrow as pa
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from stagetrace.otlp.decode.spans import Decoded

# --- Jaeger's results, decoded to stored columns, and the finds of a selection in them.

_ENTRIES: Final = "SELECT DISTINCT -start_unix_nano, trace_id, span_id FROM matching"
# A whole trace is found by its newest span of the service in the window.
_TRACES: Final = """
    SELECT -max(start_unix_nano), trace_id, '' FROM loaded
    WHERE service = getvariable('service') AND start_unix_nano >= getvariable('since_ns')
        AND start_unix_nano < getvariable('until_ns')
    GROUP BY trace_id
"""


class Columns(Closing):
    """Applies a selection to one result after the other."""

    def __init__(self, selection: Selection) -> None:
        """Prepare a database. Raise StoreError where DuckDB or PyArrow is not installed."""
        self._empty = columns.schema().empty_table()
        self._connection = connect()
        stored.add_functions(self._connection)
        self._connection.register("answer", self._empty)
        entries = f"SELECT *, kind = {stored.SERVER_KIND} AS is_entry FROM answer"
        query = stored.loaded_query(f"{stored.nothing()} UNION ALL BY NAME {entries}", selection.segments)
        define(self._connection, query, selection)
        self._query = _ENTRIES if selection.is_filtered else _TRACES
        self._rejected = 0
        self._reason: str | None = None

    def pick(self, messages: Iterator[bytes], selection: Selection) -> Picked:
        """Return each selected entry span of a result, or, of a selection by time alone, each trace.

        What comes with each is the table of the whole answer.
        """
        found: list[Decoded] = []
        for message in messages:
            decoded = decode(message)
            found.append(decoded)
            self._rejected += decoded.rejected
            self._reason = self._reason or decoded.reason
        if not any(one.accepted for one in found):
            return Picked([], 0)
        spans = arrow_table.table(found)
        self._connection.register("answer", spans)
        set_variables(self._connection, selection)
        pick_each = self._connection.execute(self._query).fetchall()
        ((traces,),) = self._connection.execute("SELECT count(DISTINCT trace_id) FROM answer").fetchall()
        return Picked([Found(start, trace_id, span_id, spans) for start, trace_id, span_id in pick_each], traces)

    def unreadable(self) -> Iterable[str]:
        """Return a text for the spans that could not be decoded, if any."""
        return [f"{self._rejected} spans cannot be read: {self._reason}"] if self._rejected else []

    def close(self) -> None:
        """Release the database."""
        close(self._connection)


def of_traces(spans: pa.Table, trace_ids: Sequence[str]) -> pa.Table:
    """Return those spans that are of one of these traces."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array([bytes.fromhex(one) for one in trace_ids], pa.binary())
    return spans.filter(pc.is_in(spans["trace_id"], wanted))


_AT_ONCE: Final = 50_000  # spans that wait to be loaded, beside those of one result

_DAY_NS: Final = 86_400 * 10**9
# The windows that are searched for an id of which only the first digits are known, each in bounded time.
_NEWEST_NS: Final = {"the last hour": _DAY_NS // 24, "the last 30 days": 30 * _DAY_NS}
NEWEST_TRACES: Final = 2000


# Jaeger counts nothing, so its traces are read for that: about so many, and so many breaches, for one query.
COUNTED: Final = 2000
_LOOKED_AT: Final = 400  # traces, for the names in them
_LEAST: Final = 50  # of each service
_EVER_NS: Final = 2**63 - 1


def open_url(url: str) -> JaegerReader:
    """Return a reader of `jaeger://HOST[:PORT]` or `jaegers://HOST[:PORT]`."""
    host, port, access = parse(url)
    return JaegerReader(JaegerClient(host, port, access=access))


class JaegerReader(NamedReader):
    """Reader of one Jaeger. Not for use by several threads at once."""

    def __init__(self, client: JaegerClient, depth: int = DEPTH, max_depth: int = MAX_DEPTH) -> None:
        """Search for `depth` traces at once, and for up to `max_depth` where a window cannot be halved any more."""
        super().__init__(client.url)
        self._client = client
        self._walker = JaegerWalker(client, depth, max_depth)

    def services(self) -> tuple[str, ...]:
        """Return the services that Jaeger knows, sorted."""
        return tuple(sorted(self._client.services()))

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` specifies."""
        if selection.judging is not None:
            return self._breaches(selection, self.relations)
        cuts: list[str] = []
        limit = selection.limit
        wanted = replace(selection, breached=True, limit=None)
        most = None if limit is None else max(limit, COUNTED) + 1
        entries = [cast("Entry", one.what) for one in islice(self._newest(wanted, breaches, cuts), most)]
        tally = self._tally(selection, entries, all_missed=not cuts and len(entries) != most)
        if selection.codes and not entries:
            self.check_names(selection)
        if limit is not None and len(entries) > limit:
            cuts.insert(0, f"limit {limit} reached, there are older breaches")
            entries = entries[:limit]
        return Breaches(tuple(entries), "; ".join(cuts) or None, tally)

    def _tally(self, selection: Selection, breaches: Sequence[Entry], *, all_missed: bool) -> Tally:
        """Return the outcomes of the requests, as far as a bounded number of traces shows them.

        Raise StoreError for an unknown name.
        """
        cuts: list[str] = [] if all_missed else [f"only the newest {len(breaches)} breaches"]
        tallier = Tallier(selection)
        for one in self._newest(requests_of(selection), requests, cuts, most=COUNTED):
            tallier.offer(cast("SpanRow", one.what))
        for entry in breaches:
            tallier.add(counted_breach(entry, selection.judged_by))
        reason = f"not all requests are counted: {', '.join(cuts)}" if cuts else None
        tally = replace(tallier.tally(reason), all_missed=all_missed)
        if tally.requests:
            return tally
        self.check_names(selection)
        newest = self._newest(replace(requests_of(selection, ever=True), limit=1), requests, [])
        return replace(tally, newest_unix_nano=next((-one.minus_start for one in newest), None))

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` specifies."""
        cuts: list[str] = []
        spans = _rows(self._client.get_trace(trace_id), cuts)
        if cuts and not spans:
            raise StoreError(f"{self.name}: {cuts[0]}, and trace {trace_id} has no others\nsee it elsewhere")
        if not spans:
            raise UnknownTrace(
                f"{self.name}: there is no trace {trace_id}\n"
                "it may still be on its way (spans are sent in batches), or have been sampled out or deleted by age"
            )
        return Trace(trace_id, tuple(distinct(spans)), "; ".join(cuts) or None)

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin so, out of the newest traces: Jaeger cannot search them."""
        now = time.time_ns()
        for window, window_ns in _NEWEST_NS.items():
            selection = Selection(now - window_ns, now + _DAY_NS, limit=NEWEST_TRACES)
            cuts: list[str] = []
            newest = [one.trace_id for one in islice(self._newest(selection, _id, cuts), NEWEST_TRACES + 1)]
            ids = dict.fromkeys(one for one in newest[:NEWEST_TRACES] if one.startswith(prefix))
            is_cut = len(newest) > NEWEST_TRACES
            searched = f"the newest {NEWEST_TRACES:,} traces" if is_cut else f"the traces of {window}"
            if ids or is_cut:
                break
        reason = f"Jaeger cannot search by a part of an id, so only {searched} were searched"
        return TraceIds(tuple(islice(ids, CANDIDATES)), reason)

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies; several calls run at once, for each gives one trace."""
        for parts in self._client.get_traces(trace_ids):
            cuts: list[str] = []
            if spans := _rows(parts, cuts):
                yield Trace(spans[0].trace_id, tuple(distinct(spans)), "; ".join(cuts) or None)

    def relations(self, selection: Selection) -> Relations:
        """Return both relations as `Reader.relations` specifies; memory holds a thousand traces at a time."""
        from stagetrace.store.load import Loader

        loader, cuts = Loader(selection), list[str]()
        for spans in self._tables(selection.stored, cuts):
            loader.take(spans)
        relations = loader.select(selection, cuts)
        if loader.is_empty:
            self.check_names(selection)
        return relations

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the selected spans as `Reader.iter_otlp` specifies, a trace at a time; without DuckDB, for `tail`."""
        found = self._traces(selection, cuts)
        first = next(found, None)
        if first is None:
            self.check_names(selection)
            return
        for trace in chain((first,), found):
            within = (
                one
                for one in trace
                if selection.is_filtered or selection.since_ns <= one.span.start_time_unix_nano < selection.until_ns
            )
            yield request_of(within)

    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request, as far as Jaeger can search it, and else among some."""
        if any(matches(span, selection) for span in self.newest_requests(selection.service)):
            return True
        if selection.judged_by is not None or not all(map(is_whole, selection.codes)):
            return True  # for all that is known: Jaeger cannot search by a part of a value
        searches = [_attributes(selection)] if _attributes(selection) else list[dict[str, str]]()
        searches += [{name: value} for key, value in selection.segments.items() for name in names_of(key)]
        if selection.route is not None:
            searches += [{RPC_METHOD: selection.route}, {HTTP_ROUTE: selection.route.rpartition(" ")[2]}]
        return any(next(self._newest(replace(selection, limit=1), requests, [], at), None) for at in searches)

    def newest_requests(self, service: str | None) -> Iterator[SpanRow]:
        """Yield entry spans of a service, or of all; of each a few hundred traces."""
        wanted = Selection(0, _EVER_NS, service=service)
        found = self._newest(wanted, requests, [], most=_LOOKED_AT)
        return (cast("SpanRow", one.what) for one in found)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _traces(self, selection: Selection, cuts: list[str]) -> Iterator[list[ServiceSpan]]:
        """Yield each trace of the selection once, whole, and with a limit one request more than it."""
        found = self._newest(selection, whole_of_requests if selection.is_filtered else whole, cuts)
        taken: set[str] = set()
        for one in islice(found, None if selection.limit is None else selection.limit + 1):
            if one.trace_id not in taken:
                taken.add(one.trace_id)
                yield cast("list[ServiceSpan]", one.what)

    def _tables(self, selection: Selection, cuts: list[str]) -> Iterator[pa.Table]:
        """Yield the spans of the selected traces as decoded columns, and with a limit one request more than it.

        A trace comes once, although each service that has a part in it finds it.
        """
        with Columns(selection) as columns:
            found = self._newest(selection, columns, cuts)
            taken: set[str] = set()
            wanted: dict[int, tuple[pa.Table, list[str]]] = {}
            spans = 0
            for one in islice(found, None if selection.limit is None else selection.limit + 1):
                if one.trace_id not in taken:
                    taken.add(one.trace_id)
                    table = cast("pa.Table", one.what)
                    if id(table) not in wanted:
                        spans += table.num_rows
                        wanted[id(table)] = table, []
                    wanted[id(table)][1].append(one.trace_id)
                if spans >= _AT_ONCE:
                    yield from (of_traces(*parts) for parts in wanted.values())
                    wanted, spans = {}, 0
            yield from (of_traces(*parts) for parts in wanted.values())
            cuts += columns.unreadable()

    def _newest(
        self,
        selection: Selection,
        pick: Pick | Columns,
        cuts: list[str],
        attributes: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> Iterator[Found]:
        """Yield the finds of `pick` in all selected services, newest first.

        `attributes` are those to search by, in place of those of the selection; `most`: read about so many traces.
        """
        if selection.service == "":  # some storages refuse it, others take it for any service
            check_service("", self.services(), self.name)
        names = self.services() if selection.service is None else (selection.service,)
        # One more than the limit shows whether there are more; a search for many more would only cost time.
        depth = None if selection.limit is None else selection.limit + 1
        each = None if most is None else max(most // max(len(names), 1), _LEAST)
        unreadable = Unreadable(cuts)
        # A search asks for one value.
        causes: list[tuple[str, ...]] = [(cause,) for cause in selection.causes] or [()]
        is_apart = bool(selection.codes) and all(map(is_whole, selection.codes))  # else two may select the same
        codes: list[tuple[str, ...]] = [(code,) for code in selection.codes] if is_apart else [selection.codes]
        parts = [replace(selection, causes=cause, codes=code) for cause in causes for code in codes]
        walks = [
            self._walker.walk(
                JaegerSearch(
                    one,
                    cuts,
                    f" of {one.service}",
                    each,
                    service=one.service or "",
                    pick=_of_answers(pick, unreadable) if callable(pick) else pick.pick,
                    attributes=_attributes(one) if attributes is None else attributes,
                ),
                each if depth is None else depth,
            )
            for one in (replace(part, service=name) for name in names for part in parts)
        ]
        return with_progress(heapq.merge(*walks, key=lambda one: one[:3]), selection.since_ns, self.progress)


def _attributes(selection: Selection) -> dict[str, str]:
    """Return the attributes that Jaeger itself can filter by: text and true, since storages differ in the rest."""
    is_http = selection.route is not None and selection.route.startswith("/")  # else it may be an RPC's method
    wanted = {HTTP_ROUTE: selection.route if is_http else None, semconv.ML_MODEL_NAME: selection.model}
    wanted[semconv.SLA_BREACHED] = "true" if selection.breached else None
    wanted[semconv.SLA_BREACH_CAUSE] = selection.causes[0] if len(selection.causes) == 1 else None
    is_code = len(selection.codes) == 1 and is_whole(selection.codes[0])
    wanted[semconv.SLA_BREACH_CODE] = selection.codes[0] if is_code else None
    return {key: value for key, value in wanted.items() if value is not None}


def _rows(parts: Iterable[bytes], cuts: list[str]) -> list[SpanRow]:
    """Return the spans of a trace's parts."""
    return [one.row() for part in _readable(parts, Unreadable(cuts)) for one in spans_of(part)]


def _readable(messages: Iterable[bytes], unreadable: Unreadable) -> Iterator[TracesData]:
    """Yield serialized TracesData as messages, those in which nothing can be read aside."""
    for message in messages:
        try:
            yield read(TracesData, message, unreadable)
        except DecodeError:  # noqa: PERF203 -- of one trace
            unreadable.add(message)


def _of_answers(pick: Pick, unreadable: Unreadable) -> Callable[[Iterator[bytes], Selection], Picked]:
    """Return a function that applies `pick` to each trace of a result."""

    def pick_each(messages: Iterator[bytes], selection: Selection) -> Picked:
        found: dict[tuple[str, str], Found] = {}
        ids: set[bytes] = set()
        for trace_id, trace in by_trace(_readable(messages, unreadable)):
            ids.add(trace_id)
            for one in pick(trace, selection):
                # Delivery is at least once: the same span may be stored twice.
                found.setdefault((one.trace_id, one.span_id), one)
        return Picked(list(found.values()), len(ids))

    return pick_each


def _id(trace: list[ServiceSpan], selection: Selection) -> Iterator[Found]:
    """Yield the id of a trace as `whole` yields the trace."""
    for one in whole(trace, selection):
        yield one._replace(what=None)
