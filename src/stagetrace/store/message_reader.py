"""A reader of any store that yields its spans as OTLP requests; the error for a name that a store does not know."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import islice
from typing import TYPE_CHECKING, Final

from stagetrace import semconv
from stagetrace.errors import StoreError, UnknownTrace
from stagetrace.semconv import stage_totals, text
from stagetrace.store import answers
from stagetrace.store.answers import Tallier, named_in, requests_of
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
from stagetrace.store.entries import (
    entry_of,
    is_breached_entry,
    matches,
    objectives_of,
    path,
    request_text,
    route,
    segment,
)
from stagetrace.store.rows import ServiceSpan, distinct, request_of, spans_of

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

# --- The error for a name that a store does not know: an empty result would look like good news.

SAMPLED: Final = 2000  # requests that are looked at for names, of stores that hold many
_NAMED: Final = 10
_LONGEST: Final = 100  # of a name in a message


def check_service(service: str, known: Sequence[str], store: str) -> None:
    """Raise StoreError if `service` is not among the `known` ones of `store`."""
    if service not in known:
        has = f"it holds {nearest(service, known)}" if known else "it holds no spans of any service yet"
        raise StoreError(f"{store}: there is no service {service!r}\n{has}")


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Return names, those most alike first, and how many more there are."""
    names = sorted(set(known), key=lambda name: (-SequenceMatcher(None, wanted, name).ratio(), name))
    shown = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names[:_NAMED]]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(map(_quote, shown))}{more}"


def _quote(name: str) -> str:
    """Return a name, in quotes where it is empty or has characters that do not show."""
    return name if name and name.isprintable() and "," not in name else repr(name)


def _each_filter(selection: Selection, ever: Selection) -> Iterator[tuple[str, str | None, Selection]]:
    """Yield for each filter but the service its text, the key of a segment, and the filter alone."""
    if selection.route is not None:
        yield f"the route {selection.route!r}", None, replace(ever, route=selection.route)
    if selection.model is not None:
        yield f"the model {selection.model!r}", None, replace(ever, model=selection.model)
    if selection.judged_by is not None:
        yield f"the objective {selection.judged_by!r}", None, replace(ever, judged_by=selection.judged_by)
    for code in selection.codes:
        yield f"the line of code {code!r}", None, replace(ever, codes=(code,))
    for key, value in selection.segments.items():
        yield f"the attribute {key}={value}", key, replace(ever, segments={key: value})


def _instead(one: Selection, key: str | None, sample: Sequence[SpanRow]) -> str:
    """Return the names that the requests have instead."""
    if one.route is not None:
        names = {name if (name := route(span.attributes)) is not None else span.name for span in sample}
        if " " in one.route:
            names = {request_text(span.name, route(span.attributes) or path(span.attributes)) for span in sample}
        return f"there are {nearest(one.route, names)}" if names else "there is none with a route"
    if one.model is not None:
        names = {name for span in sample if (name := text(span.attributes, semconv.ML_MODEL_NAME)) is not None}
        return f"there are {nearest(one.model, names)}" if names else "no model is known of any of them"
    if one.judged_by is not None:
        names = {name for span in sample for name in objectives_of(span)}
        return f"there are {nearest(one.judged_by, names)}" if names else "no objective is known of any of them"
    if one.codes:
        codes = {name for span in sample if (name := text(span.attributes, semconv.SLA_BREACH_CODE)) is not None}
        return f"there are {nearest(one.codes[0], codes)}" if codes else "no line of code is known of any of them"
    (wanted,) = one.segments.values()
    values = {value for span in sample if (value := segment(span, key or "")) is not None}
    if values:
        return f"{key} is {nearest(wanted, values)}"
    keys = {name for span in sample for has in (span.resource, span.attributes) for name in has}
    return f"they have the attributes {nearest(key or '', keys)}" if keys else "they have no attributes"


# --- A reader of any store that yields its spans as OTLP requests: all other methods follow from that.


class NamedReader(Closing, ABC):
    """What all readers share: the error for a name that no request has, and records of breaches without stages."""

    capabilities: frozenset[str] = WHOLE
    traces_at_once = 500  # of which rows are made

    def __init__(self, name: str) -> None:
        """Read the store that error messages call `name`."""
        self.name = name

    @abstractmethod
    def services(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""

    @abstractmethod
    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield these traces as `Reader.traces` specifies."""

    @abstractmethod
    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request."""

    @abstractmethod
    def newest_requests(self, service: str | None) -> Iterable[SpanRow]:
        """Yield entry spans of a service, or of all, in which its names can be looked up; not all of very many."""

    def trace(self, trace_id: str) -> Trace:
        """Return one trace as `Reader.trace` specifies."""
        for found in self.traces((trace_id,)):
            return found
        raise UnknownTrace(
            f"{self.name}: there is no trace {trace_id}\nit may have been sampled out, or be in another store"
        )

    def check_names(self, selection: Selection) -> None:
        """Raise StoreError if no request, of any time, has a name of `selection`: its service, route, model ..."""
        if selection.service is not None:
            check_service(selection.service, self.services(), self.name)
        ever = Selection(0, 2**63 - 1, service=selection.service)
        of = "" if selection.service is None else f" of {selection.service}"
        for what, key, one in _each_filter(selection, ever):
            if not self.has(one):
                sample = list(islice(self.newest_requests(selection.service), SAMPLED))
                raise StoreError(f"{self.name}: no request{of} has {what}\n{_instead(one, key, sample)}")

    def _check(self, selection: Selection) -> None:
        """Raise StoreError where a selection names what is not here; ask for all names at once first."""
        ever = named_in(selection)
        if ever.is_filtered and not self.has(ever):
            self.check_names(selection)

    def _breaches(self, selection: Selection, select: Callable[[Selection], Relations]) -> Breaches:
        """Return breached entry spans out of the relations that `select` gives."""
        limit = selection.limit
        with select(requests_of(selection)) as relations:
            tally = answers.tally(relations, selection)
            late = relations.narrow(replace(selection, breached=True, limit=None))
            found = answers.breaches(late, None if limit is None else limit + 1) if tally.requests else []
        if not tally.requests or (selection.codes and not found):
            self.check_names(selection)
        if not tally.requests:
            with select(requests_of(selection, ever=True)) as of_any_time:
                tally = replace(tally, newest_unix_nano=answers.newest(of_any_time))
        reasons = [] if relations.reason is None else [relations.reason]
        if limit is not None and len(found) > limit:
            found = found[:limit]
            reasons.insert(0, f"limit {limit} reached, there are older breaches")
        return Breaches(tuple(self._with_stages(found)), "; ".join(reasons) or None, tally)

    def _with_stages(self, found: Sequence[Entry]) -> Iterator[Entry]:
        """Yield the records, those without stage totals with the ones of their stage spans; many traces at once."""
        for at in range(0, len(found), self.traces_at_once):
            some = found[at : at + self.traces_at_once]
            bare = [one.trace_id for one in some if not one.stages]
            traces = {one.trace_id: one.spans for one in self.traces(bare)} if bare else {}
            for one in some:
                trace = traces.get(one.trace_id, ())
                its = next((span for span in trace if span.span_id == one.span_id), None)
                yield one if one.stages or its is None else replace(one, stages=stage_totals(its, trace))


class RelationReader(NamedReader):
    """Reader of a store that DuckDB reads: nothing is read before the relations are asked."""

    @abstractmethod
    def _select(self, selection: Selection) -> Relations:
        """Return both relations, whether or not anything is known by the names in the selection."""

    def relations(self, selection: Selection) -> Relations:
        """Return both relations as `Reader.relations` specifies."""
        self._check(selection)
        return self._select(selection)

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` specifies."""
        return self._breaches(selection, self._select)

    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request."""
        with self._select(selection) as relations:
            return answers.count(relations, 1) > 0


class MessageReader(NamedReader):
    """Reader of a store that is read whole: each question from its beginning, in memory bounded by the result."""

    traces_at_once = 2**31

    @abstractmethod
    def messages(self, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield all that is stored; append to `cuts` what could not be read. Raise StoreError if nothing can."""

    def services(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        return tuple(sorted({one.service for one in self._spans([])}))

    def breaches(self, selection: Selection) -> Breaches:
        """Return breached entry spans as `Reader.breaches` specifies."""
        if selection.judging is not None:
            return self._breaches(selection, self.relations)
        cuts: list[str] = []
        selection, tallier, candidates = replace(selection, breached=True), Tallier(selection), []
        for one in self._entries(cuts):
            span = one.row()
            tallier.offer(span)
            if is_breached_entry(one.span) and matches(span, selection):
                candidates.append(span)
        found = distinct(candidates)
        if tallier.newest is None or (selection.codes and not found):
            self.check_names(selection)
        found.sort(key=lambda span: (-span.start_unix_nano, span.trace_id, span.span_id))
        if selection.limit is not None and len(found) > selection.limit:
            cuts.insert(0, f"limit {selection.limit} reached, there are older breaches")
            found = found[: selection.limit]
        entries = tuple(self._with_stages([entry_of(one, ()) for one in found]))
        return Breaches(entries, "; ".join(cuts) or None, tallier.tally())

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


def _is_wanted(one: ServiceSpan, selection: Selection, ids: set[bytes] | None) -> bool:
    if ids is not None:
        return one.span.trace_id in ids
    return selection.since_ns <= one.span.start_time_unix_nano < selection.until_ns
