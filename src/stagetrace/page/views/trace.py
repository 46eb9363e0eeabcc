"""One trace: its spans, stages, unseen time, critical path and evidence."""

from __future__ import annotations

import json
import re
from shlex import quote
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from markupsafe import Markup

from stagetrace.analysis import latency_map as ranking
from stagetrace.analysis.breach_details import BreachEvidence, evidence_of, places_of_bound
from stagetrace.errors import UnknownTrace
from stagetrace.output import breaches, units
from stagetrace.output.breaches import BREACH, Verdict, verdict_of
from stagetrace.output.trace import as_json, by_time
from stagetrace.output.units import milliseconds
from stagetrace.page.base import BadRequest, File, Part, View, url_time
from stagetrace.page.trace_picture import Stood, key_of, picture, spans_by_key, stood_of
from stagetrace.semconv import as_text
from stagetrace.store.base import CANDIDATES, SERVER, Selection
from stagetrace.store.entries import path, request_text, route
from stagetrace.store.follow import latest
from stagetrace.text import printable_json, printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Missed, Reader, SpanRow, Trace

LATEST: Final = "latest"
_ID: Final = re.compile(r"[0-9a-f]{4,32}")
_DIGITS: Final = 32
_HOUR_NS: Final = 3600 * 10**9
_NEAR_NS: Final = 300 * 10**9  # in the heat map
_ENTRIES: Final = 10  # whose verdict is shown; and of those with ranks
_RANKED: Final = 3
_SHOWN: Final = 160  # characters of a value, before it is folded
_LONGEST: Final = 50_000


class Card(NamedTuple):
    """The evidence of one breach, or of one more bound that it missed, and the keys of the spans that it is about."""

    entry: str  # the key of its span
    verdict: Verdict
    missed: Missed | None
    evidence: BreachEvidence | None
    keys: tuple[str, ...]
    stood: Stood | None = None
    same_line: str | None = None  # a link to the breaches at its line of code
    version: str | None = None  # the release of its service


class Value(NamedTuple):
    """An attribute in text form, as far as it is shown, and how long it is in all."""

    name: str
    text: str
    length: int

    @property
    def is_long(self) -> bool:
        """Return whether it is folded."""
        return len(self.text) > _SHOWN or "\n" in self.text


def _given(asked: Asked) -> str:
    """Return the id in the path, or its first digits. Raise BadRequest where it can be none."""
    given = asked.path["trace_id"].lower()
    if given != LATEST and not (_ID.fullmatch(given) and given != "0" * _DIGITS):
        raise BadRequest(
            f"{given[:60]!r} is neither {LATEST} nor a trace id\nwrite 32 hex digits, or the first 4 or more"
        )
    return given


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return whether a whole id is asked for."""
    given = _given(asked)
    return {"trace_id": given, "is_whole": len(given) == _DIGITS}


def find(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the trace that `latest` or the first digits of an id mean, or those that they may."""
    given, service = _given(asked), asked.one("service")
    if given == LATEST:
        return Part(
            "trace_find.html", {"given": given, "ids": (latest(reader, service, breached=None).trace_id,), "most": 1}
        )
    found = reader.trace_ids(given)
    if not found.ids:
        why = "it may have been sampled out, or be in another store" if found.reason is None else found.reason
        raise UnknownTrace(f"there is no trace whose id begins with {given}\n{why}\ngive the whole id, of 32 digits")
    return Part("trace_find.html", {"given": given, "ids": found.ids, "most": CANDIDATES}, found.reason)


def body(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return a trace: its verdicts and evidence, and what its pictures are drawn of."""
    trace = _trace(asked, reader)
    entries = _entries(trace)
    verdicts = [verdict_of(span, trace.spans) for span in entries[:_ENTRIES]]
    start = min(span.start_unix_nano for span in trace.spans)
    drawn, notes = picture(trace)
    values = {
        "trace": trace,
        "start_ns": start,
        "services": sorted({span.service for span in trace.spans}),
        "entries": len(entries),
        "verdicts": [one for one in verdicts if one.word != BREACH],
        "cards": list(_cards(asked, trace, entries[:_ENTRIES], verdicts)),
        "notes": notes,
        "picture": drawn,
        "links": list(_links(asked, entries)),
        "missed_sentence": breaches.missed_sentence,
        "meter": _meter,
        "lines": _lines,
        "most": _ENTRIES,
        "jaeger": site.jaeger(trace.trace_id),
        "command": f"stagetrace trace {trace.trace_id} --store {quote(site.store)}",
    }
    return Part("trace_body.html", values, trace.reason)


def ranks(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return how its requests and their stages rank among others of their kind."""
    trace = _trace(asked, reader)
    entries = _entries(trace)
    found: list[dict[str, Any]] = []
    chips: dict[str, tuple[str, str]] = {}
    unusual: dict[str, str] = {}
    for span in entries[:_RANKED]:
        entry = verdict_of(span, trace.spans).entry
        wanted = _kind(asked, span, entry.model)
        with reader.relations(wanted) as relations:
            of_kind = ranking.ask_ranks(relations, entry.duration_ms, entry.stages)
            reason = relations.reason
        kind = f"{entry.service} {entry.name}{f', model {entry.model}' if entry.model else ''}"
        note = units.note(kind, of_kind.sample)
        found.append({"kind": kind, "window": wanted, "of_kind": of_kind, "note": note, "reason": reason})
        chips |= dict(_chips(span, trace.spans, of_kind, kind))
        unusual[key_of(span)] = "; ".join(map(_unusual, of_kind.unusual))
    reason = "; ".join(dict.fromkeys(one["reason"] for one in found if one["reason"] is not None)) or None
    return Part(
        "trace_ranks.html",
        {
            "found": found,
            "given": {"chips": chips, "unusual": unusual},
            "entries": len(entries),
            "least": ranking.LEAST,
        },
        reason,
    )


def span(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return all of one span."""
    trace = _trace(asked, reader)
    key = asked.one("span", "") or ""
    found = spans_by_key(trace.spans).get(key)
    if found is None:
        raise UnknownTrace(
            f"trace {trace.trace_id} has no span {key[:60]!r}\nchange `span` in the URL, or leave it out"
        )
    values = {
        "span": found,
        "trace_start_ns": min(one.start_unix_nano for one in trace.spans),
        "attributes": list(_values(found.attributes)),
        "resource": list(_values(found.resource)),
        "events": [(one, list(_values(one.attributes))) for one in found.events],
        "links": [(one, list(_values(one.attributes))) for one in found.links],
        "longest": _LONGEST,
        "lines": _lines,
    }
    return Part("trace_span.html", values)


def json_file(asked: Asked, reader: Reader, site: Site) -> File:
    """Return the trace as `stagetrace trace --json` prints it."""
    trace = _trace(asked, reader)
    text = json.dumps(as_json(trace), allow_nan=False, ensure_ascii=False)
    return File(f"{printable_json(text)}\n".encode(), "application/json", f"trace-{trace.trace_id}.json")


def _trace(asked: Asked, reader: Reader) -> Trace:
    return reader.trace(_given(asked))


def _entries(trace: Trace) -> list[SpanRow]:
    return sorted((span for span in trace.spans if span.kind == SERVER), key=by_time)


def _cards(asked: Asked, trace: Trace, entries: Sequence[SpanRow], verdicts: Sequence[Verdict]) -> Iterator[Card]:
    """Yield a card for each breach, and for each bound beyond the first one that it missed."""
    places = {id(span): place for place, span in enumerate(trace.spans)}

    def keys(found: Sequence[int]) -> tuple[str, ...]:
        return tuple(key_of(trace.spans[place]) for place in found)

    for entry, verdict in zip(entries, verdicts, strict=True):
        if verdict.word != BREACH:
            continue
        place = places[id(entry)]
        evidence = evidence_of(place, trace.spans)
        about = keys(evidence.places or (place,))
        code, stood = verdict.entry.code, stood_of(place, trace.spans, about)
        same_line = None if code is None else asked.url("/breaches", **_near(entry), code=code)
        version = as_text(entry.resource.get("service.version")) or None
        yield Card(key_of(entry), verdict, None, evidence, about, stood, same_line, version)
        for one in verdict.entry.missed[1:]:
            yield Card(key_of(entry), verdict, one, None, keys(places_of_bound(place, trace.spans, one.bound)))


def _links(asked: Asked, entries: Sequence[SpanRow]) -> Iterator[tuple[str, str]]:
    """Yield names and addresses of the views that show the first request among others."""
    for entry in entries[:1]:
        took = entry.duration_ns / 1e6
        wanted = {**_near(entry), "route": _route(entry)}
        near = (url_time(entry.start_unix_nano + by, 0) for by in (-_NEAR_NS, _NEAR_NS))
        box = dict(
            zip(("from", "to", "least_ms", "most_ms"), (*near, f"{0.8 * took:.4g}", f"{1.25 * took:.4g}"), strict=True)
        )
        yield "its place in the heat map", asked.url("/heatmap", **wanted, **box)
        yield "breaches around it", asked.url("/breaches", **wanted)
        yield "stages of its kind", asked.url("/stages", **wanted)


def _route(entry: SpanRow) -> str:
    """Return the route of a request or, without one, its text, by which it can be selected, too."""
    return route(entry.attributes) or request_text(entry.name, path(entry.attributes))


def _around(entry: SpanRow) -> tuple[int, int]:
    return entry.start_unix_nano - _HOUR_NS, entry.start_unix_nano + _HOUR_NS


def _near(entry: SpanRow) -> dict[str, str]:
    """Return the parameters that select the requests of its service around it."""
    since, until = (url_time(at, 0) for at in _around(entry))
    return {"since": since, "until": until, "service": entry.service}


def _kind(asked: Asked, entry: SpanRow, model: str | None) -> Selection:
    """Return the requests of the same kind: in the window that is asked for, if that holds it, else around it."""
    window = _around(entry)
    if "since" in asked.params and asked.selection.since_ns <= entry.start_unix_nano < asked.selection.until_ns:
        window = (asked.selection.since_ns, asked.selection.until_ns)
    return Selection(*window, service=entry.service, route=_route(entry), model=model)


def _unusual(stage: ranking.Rank) -> str:
    usual = "" if stage.median_ms is None else f", usually {milliseconds(stage.median_ms)}"
    return f"{stage.part} {milliseconds(stage.took_ms)}{usual}"


def _chips(
    entry: SpanRow, spans: Sequence[SpanRow], of_kind: ranking.Ranks, kind: str
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield key of a span, its rank and that in words; of a stage with several visits, at the longest."""
    stored = "stored requests" if of_kind.sample.is_estimate else "requests"
    for one in of_kind.ranks:
        if one.label is None:
            continue
        at = entry
        if one.part != ranking.REQUEST:
            visits = [span for span in spans if span.parent_span_id == entry.span_id and span.name == one.part]
            if not visits:
                continue
            at = max(visits, key=lambda span: span.duration_ns)
        what = "the request" if one.part == ranking.REQUEST else f"{one.part}, all visits"
        words = f"{what}: longer than {one.percent} % of {one.stored:,} {stored} of {kind}"
        yield key_of(at), (one.label, words)


def _meter(share: float) -> Markup:
    """Return a bar of so much of its width."""
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}"
    return Markup(
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect width="{}" height="8"/></svg>'
    ).format(width)


def _lines(text: str) -> Markup:
    """Return text in lines, with the other characters written out that do not show."""
    return Markup("{}").format(printable_lines(text))


def _values(attributes: Mapping[str, Any]) -> Iterator[Value]:
    for name in sorted(attributes):
        full = as_text(attributes[name])
        yield Value(name, full[:_LONGEST], len(full))


VIEW: Final = View(
    "trace",
    "Trace",
    "/trace/{trace_id}",
    "trace.html",
    {"find": find, "body": body, "ranks": ranks, "span": span, "json": json_file},
    shell=shell,
    in_menu=False,
)
